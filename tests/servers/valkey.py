"""Valkey, or Redis where that is what there is: on loopback, with a password, nothing written to disk but by `restart`."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import valkey

from tests.servers.process import LOOPBACK, Server, ServerFailedError, ServerMissingError, free_ports


@dataclass(frozen=True, kw_only=True)
class Valkey:
    """A running server; the password is made anew for every start. folder: of its configuration and data."""

    server: Server
    folder: Path
    port: int
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"valkey://:{self.password}@{LOOPBACK}:{self.port}/0"


def start_valkey(folder: Path, *, timeout_s: float = 15.0, tries: int = 3) -> Valkey:
    """Start it. Raises ServerMissingError or ServerFailedError."""
    for attempt in range(tries):
        try:
            return _start(folder / f"valkey-{attempt}", timeout_s=timeout_s)
        except ServerFailedError:  # most likely a port that another process took in between
            if attempt == tries - 1:
                raise
    raise AssertionError("unreachable")


def restart(running: Valkey, *, timeout_s: float = 15.0) -> Valkey:
    """End it with its data written, and start it again at its port with that data."""
    with valkey.Valkey.from_url(running.url) as client:
        client.shutdown(save=True)
    running.server.stop()
    return _run(running.folder, running.port, running.password, timeout_s=timeout_s)


def _start(folder: Path, *, timeout_s: float) -> Valkey:
    folder.mkdir()
    (port,), password = free_ports(1), secrets.token_hex(16)
    (folder / "valkey.conf").write_text(
        f'bind {LOOPBACK}\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndir {folder}\n'
    )
    return _run(folder, port, password, timeout_s=timeout_s)


def _run(folder: Path, port: int, password: str, *, timeout_s: float) -> Valkey:
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        raise ServerMissingError(
            "Valkey or Redis is required for these tests; install it with apt-get install valkey-server, or redis-server"
        )
    command = [program, str(folder / "valkey.conf")]
    server = Server("valkey", command, folder=folder, environment={"PATH": "/usr/bin:/bin"})
    running = Valkey(server=server, folder=folder, port=port, password=password)
    try:
        server.wait_until(lambda: valkey.Valkey.from_url(running.url).ping(), timeout_s=timeout_s)
    except BaseException:
        server.stop()
        raise
    return running
