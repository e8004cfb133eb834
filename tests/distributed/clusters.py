"""Ray clusters for tests, in network namespaces of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.ray_cluster import Cluster, Hosts, why_not

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def ray_cluster(num_hosts: int = 2, *, cores: int = 2, token: bool = True, **settings: str) -> Iterator[Cluster]:
    """A cluster whose nodes find this repository; the test is skipped if this machine cannot have one. settings: as of
    `Cluster`."""
    if reason := why_not():
        pytest.skip(f"Ray listens on all interfaces, so its tests need network namespaces: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))
    try:
        with (
            Hosts(num_hosts) as hosts,
            Cluster(hosts, folder, cores=cores, token=token, PYTHONPATH=str(ROOT), **settings) as made,
        ):
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
