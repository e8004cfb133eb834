"""Manifests of consecutive buckets: a commit rewrites those that it touches, and any reader finds the same files."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from reqdedup.storage import Layout, TableSource, compact, delete_user, write
from reqdedup.storage.iceberg import manifest_groups
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.manifests import data_files, entries_of, listed, manifests_of
from reqdedup.storage.maintenance.live import live_files
from tests.storage.small_log import make_log, to_batches
from tests.storage.tables import new_table, rows_of

BUCKETS = 8


def spans(table) -> list[tuple[int, int]]:
    """First and last bucket of each manifest, rising."""
    found = []
    for manifest in manifests_of(table, table.current_snapshot()):
        buckets = [entry.data_file.partition[0] for entry in entries_of(table, manifest)]
        if buckets:
            found.append((min(buckets), max(buckets)))
    return sorted(found)


def paths(table) -> set[str]:
    return {manifest.manifest_path for manifest in manifests_of(table, table.current_snapshot())}


def origins(table) -> dict[str, tuple]:
    """By file who added it and when, as its entry says."""
    entries = [e for m in manifests_of(table, table.current_snapshot()) for e in entries_of(table, m)]
    return {e.data_file.file_path: (e.snapshot_id, e.sequence_number, e.file_sequence_number) for e in entries}


@pytest.fixture
def few(monkeypatch) -> None:
    monkeypatch.setattr(manifest_groups, "FILES_PER_MANIFEST", 3)


def full_table(catalog, layout=Layout.BY_REQUEST):
    table = new_table(catalog, layout, num_buckets=BUCKETS)
    batches = to_batches(make_log(num_users=40, seed=5))
    write(table, batches)
    return table, batches


def test_a_write_lists_consecutive_buckets_together(catalog, few):
    table, batches = full_table(catalog)
    assert spans(table) == [(0, 2), (3, 5), (6, 7)]
    assert rows_of(TableSource(table).batches()) == rows_of(batches)
    assert pl.scan_iceberg(table).select(pl.len()).collect().item() == TableSource(table).num_rows


def test_a_bucket_replaced_rewrites_its_manifest_and_no_other(catalog, few):
    table, batches = full_table(catalog)
    before, came = paths(table), origins(table)
    compact(table, [4], force=True)
    assert len(before & paths(table)) == 2
    assert spans(table) == [(0, 2), (3, 5), (6, 7)]
    now = origins(table)
    assert len(set(came) & set(now)) == BUCKETS - 1
    assert all(now[path] == came[path] for path in set(came) & set(now)), "who added a file, and when, is kept"
    assert {now[path][0] for path in set(now) - set(came)} == {table.current_snapshot().snapshot_id}
    assert rows_of(TableSource(table).batches()) == rows_of(batches)


@pytest.mark.slow
def test_a_manifest_of_all_buckets_is_grouped_when_it_is_touched(catalog, monkeypatch):
    table, batches = full_table(catalog)
    more = to_batches(make_log(num_users=40, seed=6))
    write(table, more, mode="append")
    assert spans(table) == [(0, BUCKETS - 1)] * 2, "an append leaves what is there alone"
    monkeypatch.setattr(manifest_groups, "FILES_PER_MANIFEST", 4)
    compact(table, [4])
    found = spans(table)
    assert all(before[1] < after[0] for before, after in pairwise(found))
    assert len(found) == 4
    assert rows_of(TableSource(table).batches()) == rows_of(batches + more)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [pytest.param(one, marks=() if one in (Layout.ARRIVAL, Layout.BY_REQUEST) else pytest.mark.soak) for one in Layout],
)
def test_every_layout_keeps_its_rows_through_writes_appends_and_deletions(catalog, few, layout):
    table, batches = full_table(catalog, layout)
    late = to_batches(make_log(num_users=9, seed=8))
    write(table, late, mode="append")
    user = late[0]["user_id"][0].as_py()
    delete_user(table, user)
    if layout is not Layout.SHUFFLED:
        compact(table)
    left = [batch.filter(np.not_equal(batch["user_id"].to_numpy(), user)) for batch in batches + late]
    assert rows_of(TableSource(table).batches()) == rows_of(left)
    assert {file.file_path for file in data_files(table)} == {file.path for file in live_files(table)}
    assert int(table.current_snapshot().summary["total-data-files"]) == len(live_files(table))


def test_only_manifests_that_may_list_a_file_are_read(catalog, few):
    table, _ = full_table(catalog)
    files = [file.data_file for file in live_files(table) if file.partition == 4]
    for manifest in manifests_of(table, table.current_snapshot()):
        buckets = [entry.data_file.partition[0] for entry in entries_of(table, manifest)]
        if 4 not in buckets:
            table.io.delete(manifest.manifest_path)
    assert listed(table, table.current_snapshot(), files) == {file.file_path for file in files}
    with StagedFiles(table) as staged:  # nor does a commit that replaces them look at the others
        staged.commit(replace=True, removed=files, rebase=True)
    assert spans_left(table) == [(3, 5)]


def spans_left(table) -> list[tuple[int, int]]:
    """As `spans`, of the manifests that are there."""
    found = []
    for manifest in manifests_of(table, table.current_snapshot()):
        if table.io.new_input(manifest.manifest_path).exists():
            buckets = [entry.data_file.partition[0] for entry in entries_of(table, manifest)]
            found += [(min(buckets), max(buckets))] if buckets else []
    return sorted(found)
