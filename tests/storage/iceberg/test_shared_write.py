"""A write shared out to processes: each hands its files over, one commit makes all of them the table's."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup.dedup.checksum import ContentChecksum
from reqdedup.storage import Layout, TableSource, create_table, sweep_orphans
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.iceberg.reference import TableRef
from reqdedup.storage.measure import checks
from tests.storage.iceberg.shared_write import write_task
from tests.storage.small_log import log_schema, make_log

BUCKETS = 4
LOG = make_log(num_users=20, seed=7)


@pytest.fixture
def table(catalog: Catalog) -> Table:
    catalog.create_namespace("n")
    return create_table(catalog, "n.t", log_schema(), Layout.BY_REQUEST, num_buckets=BUCKETS)


def of_bucket(bucket: int) -> list[dict]:
    return [request for request in LOG if buckets_of([request["user_id"]], BUCKETS)[0] == bucket]


def on_disk(table: Table) -> list[str]:
    return sorted(path.name for path in Path(urlparse(table.location()).path).rglob("*.parquet"))


@pytest.mark.slow
def test_what_processes_wrote_is_committed_once_and_whole(table: Table) -> None:
    reference = TableRef.of(table)
    context = multiprocessing.get_context("spawn")
    with StagedFiles(table) as files, ProcessPoolExecutor(2, mp_context=context) as pool:
        parts = [request for bucket in range(BUCKETS) if (request := of_bucket(bucket))]
        done = list(pool.map(write_task, [reference] * len(parts), [files.write_id] * len(parts), parts))
        for written in done:
            files.adopt(pickle.loads(pickle.dumps(written)))
        assert TableSource(table).num_rows == 0
        files.commit(replace=False)
    table.refresh()
    total = sum((written.checksum for written in done), ContentChecksum())
    assert checks.content_checksum(TableSource(table)) == total
    assert total.rows == sum(len(request["items"]) for request in LOG) == sum(written.rows for written in done)
    assert sum(written.requests for written in done) == len(LOG)
    assert all(name.startswith(f"{files.write_id}-") for name in on_disk(table))
    assert table.current_snapshot().summary["reqdedup.write-id"] == files.write_id


def test_adopted_files_go_if_the_write_fails(table: Table) -> None:
    with contextlib.suppress(ZeroDivisionError), StagedFiles(table) as files:
        files.adopt(write_task(TableRef.of(table), files.write_id, LOG))
        assert on_disk(table)
        raise ZeroDivisionError
    assert on_disk(table) == []


@pytest.mark.slow
def test_a_task_that_ran_twice_is_committed_once_and_the_rest_is_found_by_its_name(table: Table) -> None:
    reference = TableRef.of(table)
    with StagedFiles(table) as files:
        files.adopt(write_task(reference, files.write_id, LOG))
        lost = write_task(reference, files.write_id, LOG)
        with pytest.raises(IntegrityError, match="each partition once"):
            files.adopt(lost)
        files.commit(replace=False)
    assert len(on_disk(table)) == 2 * len(lost.files)
    other = write_task(reference, "another", LOG)  # of a write that goes on
    swept = sweep_orphans(table, write_id=files.write_id, dry_run=False)
    assert sorted(swept.files["path"].to_pylist()) == sorted(data_file.file_path for data_file, _ in lost.files)
    assert len(on_disk(table)) == len(lost.files) + len(other.files)
    assert TableSource(table).num_rows == lost.rows


def test_files_of_another_write_or_fewer_rows_than_promised_are_refused(table: Table) -> None:
    reference = TableRef.of(table)
    with (
        StagedFiles(table) as files,
        pytest.raises(IntegrityError, match=r"files of write .* found another.*sweep_orphans"),
    ):
        files.adopt(write_task(reference, "another", LOG))
    with StagedFiles(table) as files, pytest.raises(IntegrityError, match="3 rows required in the new files, found 0"):
        files.hand_over(ContentChecksum(3, 0))
