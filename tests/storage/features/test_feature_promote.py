"""Features become columns of the main table: the same rows and values, in one switch, resumed where it was killed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.schema import Level
from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    promote,
    rollback_to,
    table_schema,
    tag,
    write,
)
from reqdedup.storage.features import promoted_units
from reqdedup.storage.measure import checks
from reqdedup.storage.tasks import groups as commit_groups
from tests.storage.feature_tables import (
    COUNT,
    LOG,
    NUM_BUCKETS,
    RATE,
    SEQUENCE,
    USERS,
    VECTOR,
    constant,
    main_table,
    of_request,
)
from tests.storage.small_log import log_schema, make_log, to_batches


def two_features(catalog, main):
    one = create_feature_table(catalog, "lake.one", main, [COUNT, VECTOR])
    add_request_feature(main, one, lambda r: {"count": of_request(r), "vector": [[1.5, i] for i in range(r.num_rows)]})
    two = create_feature_table(catalog, "lake.two", main, [SEQUENCE, RATE], by_position=True)
    # A sequence of an engagement table is as long as the history: here it is the history's items again.
    by_request = lambda r: {"sequence": r["history_item_id"], "rate": [0.5] * r.num_rows}  # noqa: E731
    add_request_feature(main, two, by_request)
    return [one, two]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.BY_REQUEST, Layout.SORTED, Layout.SORTED_LARGE_PAGES])
def test_the_main_table_then_reads_as_the_join_did(catalog, layout):
    main = main_table(catalog, layout=layout)
    sides = two_features(catalog, main)
    joined = checks.content_checksum(bucket_join(bucket_join(main, sides[0]), sides[1]))
    old, before = main.current_snapshot(), checks.content_checksum(TableSource(main))
    reader = catalog.load_table(main.name())
    report = promote(main, sides)
    assert report.columns == ("count", "vector", "sequence", "rate")
    assert (report.buckets, report.resumed, report.rows) == (NUM_BUCKETS, 0, before.rows)
    assert report.checksum == before
    assert report.bytes > report.old_bytes
    assert report.added_bytes > 0
    seen = catalog.load_table(main.name())
    assert seen.current_snapshot().snapshot_id == report.snapshot_id
    assert list(seen.metadata.refs) == ["main"]
    assert checks.content_checksum(TableSource(seen)) == joined
    assert table_schema(seen)["rate"] == RATE
    assert table_schema(seen)["vector"].level is Level.REQUEST
    assert set(table_schema(seen).names) == set(seen.schema().column_names) - {"element"} - {
        name for name in seen.schema().column_names if name.endswith(".element")
    }
    for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right):
        assert check(seen).ok
    # A reader of the old snapshot keeps its rows and columns, whether it opened the table before or after.
    for table in (reader, seen):
        assert checks.content_checksum(TableSource(table, snapshot_id=old.snapshot_id)) == before


@pytest.mark.slow
def test_the_files_are_those_that_a_write_of_the_joined_rows_makes(catalog):
    main = main_table(catalog)
    sides = two_features(catalog, main)
    joined = bucket_join(bucket_join(main, sides[0]), sides[1])
    other = create_table(catalog, "lake.written", joined.schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    write(other, joined.batches())
    promote(main, sides)

    def form(table):
        for task in sorted(table.scan().plan_files(), key=lambda task: task.file.partition[0]):
            footer = pq.ParquetFile(task.file.file_path.removeprefix("file://")).metadata
            groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
            leaves = {
                g.column(i).path_in_schema: g.column(i).total_compressed_size
                for g in groups
                for i in range(g.num_columns)
            }
            yield task.file.partition[0], [group.num_rows for group in groups], leaves

    assert list(form(main)) == list(form(other))


@pytest.mark.slow
def test_a_promotion_that_failed_is_resumed_and_readers_saw_nothing(catalog, monkeypatch):
    main = main_table(catalog)
    sides = two_features(catalog, main)
    before = main.current_snapshot()
    monkeypatch.setattr(commit_groups, "BUCKETS_TOGETHER", 1)

    def stop_at_three(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        promote(main, sides, progress=stop_at_three)
    seen = catalog.load_table(main.name())
    assert seen.current_snapshot() == before
    assert "count" not in table_schema(seen)
    assert "count" not in seen.schema().column_names
    report = promote(catalog.load_table(main.name()), [catalog.load_table(side.name()) for side in sides])
    assert (report.resumed, report.buckets) == (2, NUM_BUCKETS - 2), "the third was written, and not committed"
    assert report.checksum == checks.content_checksum(TableSource(main, snapshot_id=before.snapshot_id))
    again = promote(main, sides)  # a run that was killed after it had published
    assert (again.snapshot_id, again.buckets) == (report.snapshot_id, 0)
    assert len(main.refresh().snapshots()) == 1 + NUM_BUCKETS


@pytest.mark.slow
def test_what_was_done_for_other_versions_is_done_again(catalog):
    main = main_table(catalog)
    sides = two_features(catalog, main)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        promote(main, sides, progress=stop)
    add_request_feature(main, sides[0], constant(7), columns=[COUNT])
    report = promote(main, sides)
    assert report.resumed == 0
    assert {v for b in TableSource(main).batches(["count"]) for v in b["count"].to_pylist()} == {7}


@pytest.mark.slow
def test_another_writer_meanwhile_is_a_conflict_and_nothing_is_lost(catalog):
    main = main_table(catalog)
    sides = two_features(catalog, main)
    new = make_log(num_users=3, seed=9)

    def append(done, total):
        if done == 2:
            write(catalog.load_table(main.name()), to_batches(new), mode="append")

    with pytest.raises(RuntimeError, match=r"main at snapshot .* another writer was faster"):
        promote(main, sides, progress=append)
    seen = catalog.load_table(main.name())
    assert table_schema(seen) == log_schema()
    assert TableSource(seen).num_rows == sum(len(r["items"]) for r in LOG + new)
    with pytest.raises(ValueError, match=r"features for every request required, found \d+ of"):
        promote(main, sides)
    report = promote(main, sides, columns=["count", "vector", "rate"], missing="null")
    assert report.resumed == 0
    found = {
        r: v
        for b in TableSource(main).batches(["request_id", "count"])
        for r, v in zip(*(c.to_pylist() for c in b.columns))
    }
    assert found == {r["request_id"]: r["request_id"] for r in LOG} | {r["request_id"]: None for r in new}
    assert table_schema(main)["rate"].nullable


@pytest.mark.slow
def test_features_of_some_users_are_refused_or_filled(catalog):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.some", main, [COUNT])
    add_request_feature(main, side, constant(1), users=np.array(USERS[:1]))
    with pytest.raises(ValueError, match="features for every request required"):
        promote(main, [side])
    promote(main, [side], missing="null", columns=["count"])
    assert {v for b in TableSource(main).batches(["count"]) for v in b["count"].to_pylist()} == {1, None}
    with pytest.raises(ValueError, match="must be 'error' or 'null'"):
        promote(main, [side], missing="zero")
    with pytest.raises(ValueError, match="found none of the name other"):
        promote(main, [side], columns=["other"])


@pytest.mark.slow
def test_a_promotion_can_be_taken_back(catalog):
    main = main_table(catalog)
    before = checks.content_checksum(TableSource(main))
    tag(main, "before")
    sides = two_features(catalog, main)
    promote(main, sides)
    tag(main, "after")
    rollback_to(main, "before")
    seen = catalog.load_table(main.name())
    assert table_schema(seen) == log_schema()
    assert checks.content_checksum(TableSource(seen)) == before
    assert bucket_join(seen, sides[0]).schema.names[-1] == "vector"
    rollback_to(main, "after")
    assert "vector" in table_schema(main)


@pytest.mark.slow
def test_changed_old_columns_stop_a_promotion(catalog, monkeypatch):
    main = main_table(catalog)
    sides = two_features(catalog, main)
    before = main.current_snapshot()
    real = promoted_units.write_rows

    def careless(files, batches, schema, **options):
        index = schema.names.index("device")
        changed = (b.set_column(index, b.schema.field(index), pa_zeros(b)) for b in batches)
        return real(files, changed, schema, **options)

    monkeypatch.setattr(promoted_units, "write_rows", careless)
    with pytest.raises(RuntimeError, match="the old columns of part 0 unchanged required"):
        promote(main, sides)
    assert main.refresh().current_snapshot() == before


@pytest.mark.slow
def test_a_sequence_that_is_no_column_of_the_history_is_refused(catalog):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.f", main, [SEQUENCE])
    add_request_feature(main, side, constant([1, 2]))
    with pytest.raises(
        ValueError, match=r"sequences of one length required, found \d+ events in history_item_id and 2"
    ):
        promote(main, [side])
    assert "sequence" not in table_schema(catalog.load_table(main.name()))


def pa_zeros(batch):
    return pa.array(np.zeros(batch.num_rows, np.int32))
