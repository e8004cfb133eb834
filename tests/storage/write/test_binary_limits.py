"""Arrow's binary and string arrays end at 2^31 bytes: what would pass a lowered limit is cut and comes back whole.

The true limit takes gigabytes; here `MAX_BINARY_BYTES` and the limits of the writer are lowered. Nothing may wrap, fail
or lose rows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.dedup import encoding
from reqdedup.dedup.encoding import BLOB_TYPE, blobs_from_numpy, expand_to_lists, numpy_from_blobs, take_blobs
from reqdedup.schema import Column, EngagementSchema, Level
from reqdedup.storage import (
    FileSource,
    Layout,
    TableSource,
    create_table,
    user_overlap,
    write,
)
from reqdedup.storage.foreign import source as convert_source
from reqdedup.storage.iceberg import settings as write_settings
from reqdedup.storage.write import writer
from reqdedup.storage.write.spill import Spill
from reqdedup.training import RequestLoader
from tests.storage.small_log import log_schema, make_log, make_request, to_batch, to_batches

LOG = make_log(num_users=12)
BATCH = to_batch(LOG)
TEXT = EngagementSchema(
    (
        *(Column(name=name, dtype="int64", level=Level.KEY) for name in ("user_id", "request_id", "item_id")),
        Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
        Column(name="query", dtype="string", level=Level.REQUEST, nullable=True),
        Column(name="title", dtype="string", level=Level.ITEM, nullable=True),
    )
)


def plain(batches) -> list[str]:
    return sorted(repr(row) for batch in batches for row in batch.to_pylist())


def text_batch(num_requests: int, *, rows: int = 4, query: str = "q", title: str = "t") -> pa.RecordBatch:
    """Requests of `rows` rows with a text of their own, and one on each row."""
    request = np.repeat(np.arange(num_requests), rows)
    item = np.tile(np.arange(rows), num_requests)
    arrays = [pa.array(request // 3), pa.array(request), pa.array(item)]
    arrays.append(pa.array(request * 10**6, pa.timestamp("us", "UTC")))
    arrays.append(pa.array([None if r % 5 == 0 else f"{query}{r}" for r in request.tolist()]))
    arrays.append(pa.array([None if i == 1 else f"{title}{r}-{i}" for r, i in zip(request.tolist(), item.tolist())]))
    return pa.RecordBatch.from_arrays(arrays, names=list(TEXT.names))


@pytest.mark.parametrize("layout", list(Layout))
def test_text_is_cut_between_row_groups_in_every_layout(catalog, monkeypatch, layout):
    monkeypatch.setattr(write_settings, "ROW_GROUP_BYTES", 2_000)
    monkeypatch.setattr(encoding, "MAX_BINARY_BYTES", 2_000)
    monkeypatch.setattr(writer, "PIECE_BYTES", 4_000)
    batch = text_batch(60, query="q" * 50, title="t" * 20)
    table = create_table(catalog, "lake.t", TEXT, layout, num_buckets=1)
    write(table, [batch.slice(start, 50) for start in range(0, batch.num_rows, 50)])
    assert plain(TableSource(table).batches()) == plain([batch])
    for path in TableSource(table).paths:
        file = pq.ParquetFile(path.removeprefix("file://"))
        for index in range(file.num_row_groups):
            for chunk in file.read_row_group(index, columns=["query", "title"]).columns:
                assert sum(len(text or "") for text in chunk.to_pylist()) <= 2_000 or layout is Layout.SHUFFLED


def test_one_request_whose_text_no_array_can_hold_is_named(catalog, monkeypatch):
    monkeypatch.setattr(encoding, "MAX_BINARY_BYTES", 2_000)
    monkeypatch.setattr(write_settings, "ROW_GROUP_BYTES", 2_000)
    table = create_table(catalog, "lake.t", TEXT, Layout.BY_REQUEST, num_buckets=1)
    batch = text_batch(3, rows=100, query="q" * 50)
    with pytest.raises(
        ValueError, match=r"column query: at most 2,000 bytes on the rows of one request .* 1 of user 0"
    ):
        write(table, [batch])
    assert table.refresh().current_snapshot() is None


def test_the_spill_counts_with_64_bits(catalog):
    with Spill(TEXT, lambda users, request_ts: users * 0) as spill:
        spill.add(text_batch(3))
        spill.finish()
        assert spill.rows(0).schema.field("title").type == pa.large_string()
        assert spill.requests(0)[0].schema.field("query").type == pa.large_string()
    with Spill(log_schema(), lambda users, request_ts: users * 0) as spill:
        spill.add(BATCH)
        spill.finish()
        assert spill.requests(0)[0].schema.field("history_ts").type == pa.large_binary()


@pytest.mark.parametrize("layout", [Layout.SORTED, Layout.SORTED_LARGE_PAGES])
def test_distinct_sequences_of_a_row_group_of_lists_stay_below_the_limit(catalog, monkeypatch, layout):
    monkeypatch.setattr(encoding, "MAX_BINARY_BYTES", 3_000)
    table = create_table(catalog, "lake.t", log_schema(), layout, num_buckets=1)
    write(table, to_batches(LOG))
    assert plain(TableSource(table).batches()) == plain([BATCH])
    sizes = [batch.column("history_item_id").dictionary.nbytes for batch in TableSource(table).batches()]
    assert len(sizes) > 2
    assert max(sizes) < 3_000 + 64 * 8, "or one request's"


PLAIN_PAGES = {"dictionary_pagesize_limit": 200, "data_page_size": 64, "write_batch_size": 4, "store_schema": False}


@pytest.mark.parametrize("form", ["blobs", "lists", "text"])
def test_a_row_group_of_another_writer_is_read_in_parts(tmp_path, monkeypatch, form):
    rows, schema = BATCH, log_schema()
    if form == "text":
        rows, schema = text_batch(60, query="q" * 50), TEXT
    path = str(tmp_path / "file.parquet")
    written = expand_to_lists(rows, schema) if form == "lists" else rows
    pq.write_table(pa.Table.from_batches([written]), path, **PLAIN_PAGES)
    source = FileSource([path], schema)
    whole = list(source.batches())
    assert len(whole) == 1, "one batch per row group where it fits"
    monkeypatch.setattr(encoding, "MAX_BINARY_BYTES", 3_000)
    source = FileSource([path], schema)
    parts = list(source.batches())
    assert plain(parts) == plain(whole)
    assert len(parts) > 3
    for batch in parts:
        array = batch.column("query" if form == "text" else "history_item_id")
        assert form == "text" or array.type == BLOB_TYPE
        assert (array if form == "text" else array.dictionary).nbytes <= 3_000 or batch.num_rows == 1
    with pytest.raises(ValueError, match=r"at most 3,000 bytes a column in row group 0 required.*compact"):
        source.read_row_group(source.row_groups()[0])


def test_laying_out_a_shared_blob_changes_to_64_bit_offsets(monkeypatch):
    blobs = pa.array([b"12345678", b"", b"abcdefgh" * 3])
    positions = np.array([2, 2, 0, 1])
    for limit, kind in ((56, pa.binary()), (55, pa.large_binary())):
        monkeypatch.setattr(encoding, "MAX_BINARY_BYTES", limit)
        taken = take_blobs(blobs, positions)
        assert taken.type == kind
        assert taken.to_pylist() == [blobs[p].as_py() for p in positions.tolist()]
        values, offsets = numpy_from_blobs(taken, "int64")
        assert (values.tobytes(), offsets.tolist()) == (b"".join(taken.to_pylist()), [0, 3, 6, 7, 7])


def test_blobs_beyond_the_limit_are_refused_where_they_are_made(monkeypatch):
    monkeypatch.setattr(encoding, "MAX_BINARY_BYTES", 79)
    assert len(blobs_from_numpy(np.arange(9), np.array([0, 4, 9]))) == 2
    with pytest.raises(ValueError, match="at most 79 bytes, found 80; make smaller batches"):
        blobs_from_numpy(np.arange(10), np.array([0, 4, 10]))


def test_loader_and_overlap_lay_out_a_history_that_many_requests_share(catalog, monkeypatch):
    rng = np.random.default_rng(0)
    events = rng.integers(1, 2**40, size=(64, 3))
    log = [make_request(rng, 7, request, fan_out=3, events=events, day=0) for request in range(40)]
    table = create_table(catalog, "lake.t", log_schema(), Layout.BY_REQUEST, num_buckets=1)
    write(table, [to_batch(log)])

    def tensors() -> list[dict]:
        loader = RequestLoader(TableSource(table), requests_per_batch=30, chunk_rows=2, prefetch_batches=0)
        return [{k: v.tolist() for k, v in batch.tensors().items()} for batch in loader]

    expected, overlap = tensors(), user_overlap(table)
    assert len(expected[0]["history/item_id"]) == 30 * 64
    monkeypatch.setattr(encoding, "MAX_BINARY_BYTES", 5_000)
    assert repr(tensors()) == repr(expected)  # NaN equals itself in text only
    assert user_overlap(table) == overlap


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.SORTED, Layout.BY_REQUEST])
def test_a_conversion_cuts_pieces_where_long_lists_lie_together(catalog, monkeypatch, layout):
    table = create_table(catalog, "lake.t", log_schema(), layout, num_buckets=1)
    write(table, to_batches(LOG))
    monkeypatch.setattr(convert_source, "MAX_PIECE_BYTES", 3_000)
    pieces = list(convert_source.RowSource(table).pieces(["history_ts"]))
    assert max(len(piece.arrays["history_ts"].flatten()) for piece in pieces) <= 3_000 // 8
    mapping = ColumnMapping(user="user_id", request="request_id", item="item_id", time="request_ts", labels=["click"])
    convert_table(table, catalog, "lake.converted", mapping, layout=Layout.BY_REQUEST)
    assert plain(TableSource(catalog.load_table("lake.converted")).batches()) == plain([BATCH])
