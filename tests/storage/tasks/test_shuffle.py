"""Rows in any order, written by maps and reduces: the files of one process, and no other file is left."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from reqdedup.distributed import Inline, Processes
from reqdedup.storage import Layout, TableSource, create_table, sweep_orphans, write
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.tasks import parts, shuffle
from tests.distributed.faulty import Faulty
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import files_of, rows_of

pytestmark = pytest.mark.slow

SPLIT = [layout for layout in Layout if layout is not Layout.SHUFFLED]
IN_EVERY_RUN = (Layout.BY_REQUEST,)
LOG = make_log(num_users=40, seed=11, mean_fan_out=50)


@pytest.fixture
def source(catalog, monkeypatch) -> TableSource:
    """Shuffled rows in several row groups, requests cut anywhere."""
    monkeypatch.setattr(parts, "MAP_ROWS", 1_000)
    table = create_table(catalog, "test.source", log_schema(), Layout.SHUFFLED)
    for start in range(0, len(LOG), 20):
        write(table, to_batches(LOG[start : start + 20]), mode="append")
    return TableSource(table)


def made(catalog, layout, name):
    return create_table(catalog, f"test.{name}", log_schema(), layout, num_buckets=4)


def contents(table) -> dict[str, bytes]:
    return {Path(path).parent.name: Path(path).read_bytes() for path in files_of(table.refresh())}


@pytest.mark.parametrize(
    "layout", [pytest.param(one, marks=() if one in IN_EVERY_RUN else pytest.mark.soak) for one in SPLIT]
)
def test_files_are_those_of_one_process_bit_for_bit(catalog, source, layout):
    once, shared = made(catalog, layout, "once"), made(catalog, layout, "shared")
    wanted = write(once, source)
    engine = Faulty(1)
    report = write(shared, source, engine=engine)
    assert engine.retries
    counted = ("rows", "requests", "users", "files", "row_groups", "bytes")
    assert [getattr(report, name) for name in counted] == [getattr(wanted, name) for name in counted]
    assert contents(once) == contents(shared)
    assert on_disk(shared) == needed_by(shared)
    write(shared, source, mode="append", engine=Faulty(2))
    assert rows_of(TableSource(shared.refresh()).batches()) == rows_of([*source.batches(), *source.batches()])


@pytest.mark.soak
def test_processes_write_the_same_bits(catalog, source):
    once, shared = made(catalog, Layout.BY_REQUEST, "once"), made(catalog, Layout.BY_REQUEST, "shared")
    write(once, source)
    write(shared, source, engine="processes:2")
    assert contents(once) == contents(shared)


def test_maps_of_a_large_write_have_more_rows(monkeypatch):
    monkeypatch.setattr(parts, "MAP_ROWS", 100)
    monkeypatch.setattr(parts, "MOST_MAPS", 10)
    sizes = [[len(group) for group in parts.grouped([30] * count, lambda rows: rows)] for count in (9, 900)]
    assert sizes == [[3, 3, 3], [90] * 10]


def test_a_write_that_fails_leaves_nothing(catalog, source):
    changed = [dict(request, device=request["device"] + 1) for request in LOG[:3]]
    write(source.table, to_batches(changed), mode="append")
    table = made(catalog, Layout.BY_REQUEST, "t")
    before = on_disk(table)
    with pytest.raises(ValueError, match="one value per request required"):
        write(table, TableSource(source.table), engine=Faulty(3))
    assert on_disk(table) == before


def test_what_a_killed_driver_left_is_swept(catalog, source):
    class Killed(Inline):
        is_here = False

        def run(self, work, tasks):
            for number, result in super().run(pickle.loads(pickle.dumps(work)), tasks):
                if number:
                    return  # nobody cleans up
                yield number, result

    table = made(catalog, Layout.BY_REQUEST, "t")
    write(table, source)
    groups = parts.row_groups_of(source, source.schema)
    of_write = shuffle.Shuffle(table=shuffle.PortableTable(table), schema=source.schema, updates=())
    list(Killed().run(shuffle.MapWork(shuffle=of_write, source=groups), shuffle.map_tasks(groups, "0" * 32)))
    left = on_disk(table) - needed_by(table)
    assert len(left) > 0
    assert all("_exchange" in path for path in left)
    sweep_orphans(table, write_id="0" * 32, dry_run=False)
    assert on_disk(table) == needed_by(table)


def test_the_gate_compares_what_was_read_with_what_was_written(catalog, source):
    class Losing(Inline):
        is_here = False

        def run(self, work, tasks):
            for number, result in super().run(work, tasks):
                if isinstance(result, shuffle.Exchanged):
                    object.__setattr__(result, "partitions", result.partitions[: 0 if number == 1 else None])
                yield number, result

    table = made(catalog, Layout.BY_REQUEST, "t")
    with pytest.raises(IntegrityError, match="the rows of the source required in the new files"):
        write(table, source, engine=Losing())
    assert TableSource(table.refresh()).num_rows == 0


def test_what_cannot_be_split_is_refused_by_name(catalog, source):
    table, shuffled = made(catalog, Layout.BY_REQUEST, "t"), made(catalog, Layout.SHUFFLED, "s")
    with pytest.raises(ValueError, match=r"what several processes can read.*by engine processes:2, found a list"):
        write(table, to_batches(LOG), engine="processes:2")
    with pytest.raises(ValueError, match="found a TableSource and SHUFFLED"):
        write(shuffled, source, engine=Processes(2))
