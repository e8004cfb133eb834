"""A catalog in a folder, and a disk that is full."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyiceberg.catalog import Catalog

import warehouse.catalogs


def catalog_in(folder: Path) -> Catalog:
    """The embedded catalog: for what does not depend on which one it is."""
    return warehouse.catalogs.open_catalog(warehouse.catalogs.embedded_catalog(folder))


@contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[Callable[[int], None]]:
    """No file of this process grows beyond so many bytes: what a full disk looks like, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    limit(size_bytes)
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
