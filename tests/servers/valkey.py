"""Valkey, or Redis where that is what there is: on loopback, with a password, nothing written to disk."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import valkey

from tests.servers.process import LOOPBACK, Server, ServerFailedError, ServerMissingError, free_ports


@dataclass(frozen=True, kw_only=True)
class Valkey:
    """A running server; the password is made anew for every start."""

    server: Server
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


def _start(folder: Path, *, timeout_s: float) -> Valkey:
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        raise ServerMissingError(
            "Valkey or Redis is required for these tests; install it with apt-get install valkey-server, or redis-server"
        )
    folder.mkdir()
    (port,), password = free_ports(1), secrets.token_hex(16)
    configuration = folder / "valkey.conf"
    configuration.write_text(
        f'bind {LOOPBACK}\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndir {folder}\n'
    )
    server = Server("valkey", [program, str(configuration)], folder=folder, environment={"PATH": "/usr/bin:/bin"})
    running = Valkey(server=server, port=port, password=password)
    try:
        server.wait_until(lambda: valkey.Valkey.from_url(running.url).ping(), timeout_s=timeout_s)
    except BaseException:
        server.stop()
        raise
    return running
