"""Each check holds on what the writer made, and fails on a file that breaks exactly its promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.storage import FileSource, Layout, TableSource, create_table, table_health, write
from reqdedup.storage.measure import checks
from tests.storage.small_log import DAY_US, START_US, log_schema, make_log, make_request, to_batch, to_batches
from tests.storage.tables import files_of, new_table


@pytest.fixture
def table(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log()))
    return table


def rewrite(path: str, change) -> None:
    """Replace a data file's rows behind the table's back."""
    rows = pq.ParquetFile(path).read()
    pq.write_table(change(rows).cast(rows.schema), path, store_schema=False)


@pytest.mark.slow
def test_all_layouts_of_a_log_have_one_checksum(catalog):
    sums = set()
    for layout in Layout:
        table = new_table(catalog, layout)
        write(table, to_batches(make_log()))
        sums.add(checks.content_checksum(TableSource(table)))
    assert len(sums) == 1
    assert str(sums.pop()).endswith(f"over {sum(b.num_rows for b in to_batches(make_log())):,} rows")


class Batches:
    """A source of batches that are in memory."""

    schema = log_schema()

    def __init__(self, *batches: pa.RecordBatch) -> None:
        self._batches = batches

    def batches(self, columns=None, users=None):
        yield from self._batches


def test_the_checksum_of_these_rows_is_this_one_on_any_machine():
    """Who has noted a checksum compares with it: a change is one of the changelog (docs/decisions/0123)."""
    batch = pa.record_batch(
        {
            "id": pa.array([1, -(2**63)], pa.int64()),
            "label": pa.array([None, 1], pa.int32()),
            "price": pa.array([float("nan"), 0.5], pa.float32()),
            "key": pa.array(["ключ", None]),
            "blob": pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int32()), pa.array([b"", b"12345678"])),
        }
    )
    assert checks.content_checksum(Batches(batch)) == checks.ContentChecksum(2, 0x47FDB763BAD9FEA1)


def test_the_checksum_does_not_depend_on_order_or_batches():
    batch = to_batch(make_log(num_users=5))
    order = np.random.default_rng(0).permutation(batch.num_rows)
    whole = checks.content_checksum(Batches(batch))
    assert checks.content_checksum(Batches(batch.take(pa.array(order)))) == whole
    assert checks.content_checksum(Batches(batch.slice(0, 3), batch.slice(3))) == whole
    columns = sorted(batch.schema.names)
    assert checks.content_checksum(Batches(batch.select(columns))) == whole


@pytest.mark.parametrize("name", [column.name for column in log_schema().columns])
@pytest.mark.parametrize("row", [0, 7])
def test_the_checksum_sees_one_changed_value_in_any_column(name, row):
    batch = to_batch(make_log(num_users=5))
    column = batch.column(name)
    values = column.to_pylist()
    donor = next(other for other in range(batch.num_rows) if values[other] != values[row])
    rows = np.arange(batch.num_rows)
    rows[row] = donor  # this one column takes another row's value
    index = batch.schema.get_field_index(name)
    other = batch.set_column(index, batch.schema.field(index), column.take(pa.array(rows)))
    assert checks.content_checksum(Batches(other)) != checks.content_checksum(Batches(batch))


def test_the_checksum_sees_a_row_twice_a_row_less_and_two_values_swapped():
    batch = to_batch(make_log(num_users=5))
    rows = np.arange(batch.num_rows)
    sums = {
        checks.content_checksum(Batches(batch.take(pa.array(r)))).checksum
        for r in (rows, rows[1:], np.append(rows, rows[0]))
    }
    items = batch.column("item_id").to_numpy().copy()
    items[[0, 1]] = items[[1, 0]]
    swapped = batch.set_column(2, batch.schema.field(2), pa.array(items))
    sums.add(checks.content_checksum(Batches(swapped)).checksum)
    assert len(sums) == 4


def test_checks_hold_on_what_the_writer_made(table):
    num_rows = TableSource(table).num_rows
    for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right, checks.no_future_events):
        found = check(table)
        assert found.ok, found.detail
        assert found.checked == num_rows


def test_shuffled_requests_are_not_whole(catalog):
    table = new_table(catalog, Layout.SHUFFLED)
    write(table, to_batches(make_log()))
    found = checks.requests_whole(table)
    assert not found.ok
    assert "in two places" in found.detail
    assert not checks.sort_order_true(table).ok
    assert not checks.buckets_right(table).ok


@pytest.mark.slow
def test_a_request_in_two_files_is_found(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    log = make_log(num_users=10)
    write(table, to_batches(log))
    write(table, [to_batch([{**log[0], "items": log[0]["items"] + 1}])], mode="append")
    found = checks.requests_whole(table)
    assert not found.ok
    assert f"request {log[0]['request_id']} of user {log[0]['user_id']} lies in " in found.detail


def test_a_broken_order_is_found(table):
    path = files_of(table)[0]
    rewrite(path, lambda rows: pa.concat_tables([rows.slice(5), rows.slice(0, 5)]))
    found = checks.sort_order_true(table)
    assert not found.ok
    assert Path(path).name in found.detail


def test_a_row_in_the_wrong_bucket_is_found(table):
    first, second = files_of(table)[:2]
    foreign = pq.ParquetFile(second).read().slice(0, 1)
    rewrite(first, lambda rows: pa.concat_tables([foreign, rows]))
    found = checks.buckets_right(table)
    assert not found.ok
    assert f"user {foreign.column('user_id')[0].as_py()} is of bucket" in found.detail


@pytest.mark.slow
def test_an_event_at_the_time_of_its_request_is_found(catalog):
    rng = np.random.default_rng(0)
    for offset_ms, ok in ((-1, True), (0, False)):
        table = create_table(catalog, f"test.at{ok}", log_schema(), Layout.BY_REQUEST)
        events = np.array([[1, 1, START_US // 1000 - 10], [2, 1, START_US // 1000 + offset_ms]])
        request = make_request(rng, 1, 0, fan_out=2, events=events, day=0)
        other = make_request(rng, 2, 0, fan_out=2, events=events[:0], day=0)
        write(table, [to_batch([other, request])])
        assert checks.no_future_events(table).ok is ok
    assert START_US % 1000 == 0
    assert START_US + DAY_US < 2**62


def test_checks_of_an_empty_table_hold(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right, checks.no_future_events):
        assert check(table).ok
    assert checks.content_checksum(TableSource(table)) == checks.ContentChecksum(0, 0)
    assert checks.content_checksum(FileSource([], log_schema())) == checks.ContentChecksum(0, 0)


@pytest.mark.slow
def test_requests_that_reuse_ids_with_other_values_are_found(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    whole = to_batch(make_log(num_users=5))
    halves = [whole.take(pa.array(range(start, whole.num_rows, 2))) for start in (0, 1)]
    for half in halves:
        write(table, [half], mode="append")
    assert checks.requests_agree(table) == checks.CheckResult(
        True, whole.num_rows, f"{whole.num_rows:,} rows, one value per request in 8 columns"
    )
    other = pa.array([99] * len(halves[0]), pa.int32())
    write(table, [halves[0].set_column(halves[0].schema.get_field_index("device"), "device", other)], mode="append")
    found = checks.requests_agree(table)
    assert not found.ok
    assert "column device: one value per request required" in found.detail
    health = table_health(table, check_requests=True)
    assert health.requests_agree == found
    assert health.advice[0].startswith(f"requests: {found.detail}")
    assert table_health(table).requests_agree is None
    with pytest.raises(ValueError, match="bucket"):
        table_health(new_table(catalog, Layout.ARRIVAL), check_requests=True)
