"""PostgreSQL from Debian's package: a fresh cluster with a password, on loopback, its socket in the cluster's folder."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.process import (
    LOOPBACK,
    Server,
    ServerFailedError,
    ServerMissingError,
    as_user,
    free_ports,
    unprivileged_user,
)

USER = "reqdedup"
DATABASE = "postgres"


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A running PostgreSQL; the password is made anew for every start."""

    server: Server
    port: int
    password: str = field(repr=False)

    def uri(self, *, password: str | None = None, port: int | None = None) -> str:
        """SQLAlchemy URL. The driver is named: a bare `postgresql://` means psycopg 3 from SQLAlchemy 2.1 on."""
        return f"postgresql+psycopg2://{USER}:{password or self.password}@{LOOPBACK}:{port or self.port}/{DATABASE}"


def start_postgres(folder: Path, *, timeout_s: float = 30.0, tries: int = 3) -> Postgres:
    """Start it with its data under `folder`, which the unprivileged user must be able to enter."""
    for attempt in range(tries):
        try:
            return _start(folder / f"postgres-{attempt}", timeout_s=timeout_s)
        except ServerFailedError:  # most likely a port that another process took in between
            if attempt == tries - 1:
                raise
    raise AssertionError("unreachable")


def postgres_programs() -> Path:
    """The folder of `initdb` and `postgres`: Debian keeps it off the PATH, one per version; the newest is taken."""

    def version(path: Path) -> int:
        found = re.search(r"/postgresql/(\d+)/", str(path))
        return int(found.group(1)) if found else 0

    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=version)
    if debian:
        return debian[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise ServerMissingError(
            "PostgreSQL (`initdb`, `postgres`) is required for these tests; install it (Debian: apt-get install postgresql)"
        )
    return Path(on_path).resolve().parent


def _start(folder: Path, *, timeout_s: float) -> Postgres:
    programs, user = postgres_programs(), unprivileged_user()
    password, port = secrets.token_hex(16), free_ports(1)[0]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(folder)}
    folder.mkdir()
    password_file = folder / "password"
    password_file.write_text(password)
    if user is not None:
        shutil.chown(folder, user)
        shutil.chown(password_file, user)
    data = folder / "data"
    made = subprocess.run(
        as_user(
            [
                str(programs / "initdb"),
                f"--pgdata={data}",
                f"--username={USER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-sync",
            ],
            user,
        ),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    os.unlink(password_file)
    if made.returncode != 0:
        raise ServerFailedError(f"initdb ended with code {made.returncode}\n{made.stdout}{made.stderr}")
    server = Server(
        "postgres",
        [
            str(programs / "postgres"),
            f"-D{data}",
            f"-k{folder}",
            f"-p{port}",
            f"-clisten_addresses={LOOPBACK}",
            "-cfsync=off",
            "-cmax_connections=50",
        ],
        folder=folder,
        environment=environment,
        user=user,
        stop_signal=signal.SIGINT,  # end without waiting for open connections
    )
    running = Postgres(server=server, port=port, password=password)
    try:
        server.wait_until(lambda: _answers(running), timeout_s=timeout_s)
    except BaseException:
        server.stop()
        raise
    return running


def _answers(postgres: Postgres) -> bool:
    import psycopg2

    psycopg2.connect(
        host=LOOPBACK,
        port=postgres.port,
        user=USER,
        password=postgres.password,
        dbname=DATABASE,
        connect_timeout=2,
    ).close()
    return True
