"""A bucket with more rows than are held at once is written in stretches: the same files, in memory that is bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.schema import REQUEST_ID
from reqdedup.storage import (
    Layout,
    TableSource,
    WriteSettings,
    add_request_feature,
    bucket_join,
    compact,
    create_feature_table,
    create_table,
    delete_user,
    promote,
    rebucket,
    sample_users,
    write,
)
from reqdedup.storage.maintenance.live import by_partition, is_compact, live_files
from reqdedup.storage.write import arrange, writer
from tests.distributed.faulty import Faulty
from tests.storage.feature_tables import COUNT, of_request
from tests.storage.small_log import log_schema, make_log, make_request, to_batches
from tests.storage.tables import rows_of

pytestmark = pytest.mark.slow
HELD = 300
"""Rows at once."""

LARGE, SMALL = WriteSettings(row_group_rows=60), WriteSettings(row_group_rows=60, file_bytes=8_000)
"""Files of a whole bucket, and of some row groups."""


def heavy_tailed() -> list[dict]:
    """One user has half of the rows, in requests that come again in several batches, others few."""
    rng = np.random.default_rng(3)
    events = np.zeros((0, 3), np.int64)
    fan_outs = [2 * HELD if number == 7 else int(rng.integers(1, 90)) for number in range(40)]
    of_heavy = [make_request(rng, 12, 100 + n, fan_out=count, events=events, day=1) for n, count in enumerate(fan_outs)]
    return [*make_log(num_users=40, seed=5, mean_fan_out=20), *of_heavy]


def made(catalog, name, layout=Layout.BY_REQUEST, settings=LARGE):
    return create_table(catalog, f"test.{name}", log_schema(), layout, num_buckets=2, settings=settings)


def contents(table) -> dict[str, list[tuple]]:
    """Users and bytes of the files of each bucket; files of one user have no order among themselves."""
    files = by_partition(live_files(table.refresh()))
    return {
        str(bucket): sorted((one.users, Path(one.path.removeprefix("file://")).read_bytes()) for one in of)
        for bucket, of in files.items()
    }


@pytest.mark.parametrize(
    "layout",
    [
        Layout.BY_REQUEST,
        *(pytest.param(one, marks=pytest.mark.soak) for one in (Layout.SORTED, Layout.SORTED_LARGE_PAGES)),
    ],
)
def test_files_are_the_same_bits_and_few_rows_are_held(catalog, monkeypatch, layout):
    rows, held = to_batches(heavy_tailed(), size=5), []
    whole, cut, shared = (made(catalog, name, layout) for name in ("whole", "cut", "shared"))
    write(whole, rows)
    monkeypatch.setattr(arrange, "RANGE_ROWS", HELD)
    taken = arrange._rows_of
    monkeypatch.setattr(arrange, "_rows_of", lambda *given: held.append(taken(*given)) or held[-1])
    write(cut, rows)
    assert contents(cut) == contents(whole)
    sizes = [(part.num_rows, len(np.unique(requests))) for part, requests in held]
    assert len(sizes) > 4
    assert all(count <= HELD or requests == 1 for count, requests in sizes), "one request is never cut"
    source = create_table(catalog, "test.source", log_schema(), Layout.SHUFFLED)
    write(source, rows)
    write(shared, TableSource(source), engine=Faulty(1))
    assert contents(shared) == contents(whole)


def test_several_files_of_a_bucket_are_read_left_alone_and_compacted(catalog, monkeypatch):
    monkeypatch.setattr(arrange, "RANGE_ROWS", HELD)
    rows = to_batches(heavy_tailed(), size=5)
    table = made(catalog, "small", settings=SMALL)
    write(table, rows)
    groups = by_partition(live_files(table.refresh()))
    assert all(len(files) > 2 and is_compact(files, Layout.BY_REQUEST) for files in groups.values())
    assert rows_of(TableSource(table).batches()) == rows_of(rows)
    report = compact(table)
    assert (report.buckets, report.left_alone) == ((), 2)
    late = to_batches(make_log(num_users=9, seed=6))
    write(table, late, mode="append")
    assert compact(table, engine=Faulty(2)).left_alone == 0
    files = by_partition(live_files(table.refresh()))
    assert all(len(one) > 2 and is_compact(one, Layout.BY_REQUEST) for one in files.values())
    assert rows_of(TableSource(table).batches()) == rows_of([*rows, *late])


@pytest.mark.soak
def test_several_files_of_a_bucket_are_joined_sampled_promoted_and_lose_a_user(catalog, monkeypatch):
    monkeypatch.setattr(arrange, "RANGE_ROWS", HELD)
    log = heavy_tailed()
    main = made(catalog, "main", settings=SMALL)
    write(main, to_batches(log, size=5))
    side = create_feature_table(catalog, "test.side", main, [COUNT])
    add_request_feature(main, side, of_request, engine=Faulty(3))
    assert all(len(files) > 2 for files in by_partition(live_files(main.refresh())).values())

    joined = bucket_join(main, side)
    with_count = [(*row, row[1]) for row in rows_of(to_batches(log))]
    assert joined.schema.names[1] == REQUEST_ID
    assert rows_of(joined.batches()) == sorted(with_count, key=repr)
    target = create_table(catalog, "test.joined", joined.schema, Layout.BY_REQUEST, num_buckets=2, settings=SMALL)
    joined.write_to(target, engine=Faulty(4))
    assert rows_of(TableSource(target).batches()) == sorted(with_count, key=repr)
    sample = sample_users(joined, rate=0.5)
    kept = [request for request in log if request["user_id"] in set(sample.user_ids.tolist())]
    assert sorted(row[:-1] for row in rows_of(sample.batches())) == sorted(rows_of(to_batches(kept)))
    promote(main, [side], engine=Faulty(5))
    assert rows_of(TableSource(main.refresh()).batches()) == sorted(with_count, key=repr)

    delete_user([main, side, target], 12, engine=Faulty(6))
    others = sorted((row for row in with_count if row[0] != 12), key=repr)
    for table in (main, target):
        assert rows_of(TableSource(table.refresh()).batches()) == others
    rebucket(target, 1, engine=Faulty(7))
    assert rows_of(TableSource(target.refresh()).batches()) == others
    assert all(len(one) > 2 and is_compact(one, Layout.BY_REQUEST) for one in by_partition(live_files(target)).values())


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says and limits what a process has")
def test_millions_of_rows_in_one_bucket_need_memory_for_a_stretch(catalog, tmp_path):
    """4.4 million rows need 441 MiB beyond the start if all are held, 192 MiB in stretches of half a million."""
    shape = {"mean_requests_per_user": 3, "mean_fan_out": 1_000, "max_fan_out": 3_000, "max_history": 32}
    for name, num_users in (("small", 4), ("source", 1_500)):
        log = SyntheticLogConfig(num_users=num_users, history_scale=1 / 600, **shape)
        table = create_table(catalog, f"test.{name}", synthetic_schema(log), Layout.ARRIVAL)
        num_rows = write(table, synthesize(log), engine="inline").rows
    assert num_rows > 4_000_000
    few_threads = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-m", "tests.storage.write.limited_memory", str(tmp_path)]
    done = {
        held: subprocess.run([*command, str(held), "270"], env=os.environ | few_threads, capture_output=True, text=True)
        for held in (2**19, 2**40)
    }
    assert done[2**19].stdout.split() == [str(num_rows)], done[2**19].stderr
    assert "MemoryError" in done[2**40].stderr
    assert TableSource(catalog.load_table(f"test.held_{2**40}")).num_rows == 0


def test_rows_by_which_forms_are_chosen_are_let_go_before_the_files_are_written(catalog, monkeypatch):
    """Where the first day has too few rows to choose by, another is arranged for it, and once more to be written."""
    made: list[weakref.ref] = []
    alive: list[int] = []
    row_groups, write_groups = writer._row_groups, writer._write_groups

    def kept_in_view(*args):
        found = row_groups(*args)
        made.append(weakref.ref(found))
        return found

    def counted(files, groups):
        for written in write_groups(files, groups):
            alive.append(sum(one() is not None for one in made))
            yield written

    monkeypatch.setattr(writer, "_row_groups", kept_in_view)
    monkeypatch.setattr(writer, "_write_groups", counted)
    rng, no_events = np.random.default_rng(0), np.zeros((0, 3), np.int64)
    requests = [
        make_request(rng, day, day, fan_out=fan_out, events=no_events, day=day)
        for day, fan_out in enumerate([2, writer.ENOUGH_ROWS])
    ]
    table = create_table(catalog, "test.days", log_schema(), Layout.ARRIVAL)
    assert write(table, to_batches(requests, size=1)).rows == writer.ENOUGH_ROWS + 2
    assert len(made) == 2
    assert set(alive) == {1}
