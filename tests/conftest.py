"""A real catalog, SQLite and local files, for every test of its own."""

from __future__ import annotations

import atexit
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from pyiceberg.catalog import Catalog, load_catalog

# Tensors of tests are tiny: a second thread of torch spins on a core that another test would use, in a busy machine for
# ten times as long as the work takes. Set before torch is loaded, and so for the processes that tests start. Arrow, which
# would take the variable for its own, keeps a thread per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
pa.set_cpu_count(os.cpu_count() or 1)

# pytest-xdist tells its processes a width of 80; what a command prints is not to depend on how the tests are run.
os.environ.pop("COLUMNS", None)
# A shell starts what runs in its background with Ctrl-C ignored; what a test interrupts is to be interrupted all the same.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example takes as long as the machine is busy; what is slow shows in --durations.
settings.register_profile("no deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no deadline")


LONGEST_FIRST = (
    "pipelines/test_graph.py",
    "pipelines/test_ui.py",
    "training/test_train.py",
    "test_documented_commands.py",
    "distributed/test_ray.py",
    "serving/http/test_server_life.py",
    "training/test_train_command.py",
    "training/test_loader_join.py",
    "examples/test_models.py",
    "audit/test_audit.py",
    "test_site.py",
    "notebooks/test_training_report.py",
    "catalogs/test_storage.py",
    "serving/http/test_hostile_clients.py",
)
"""Files that take the better part of a minute: begun last, they would be waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Modules and tests stay to the end: a collection that looked at all of them again would take half a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return load_catalog("test", type="sql", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/lake")
