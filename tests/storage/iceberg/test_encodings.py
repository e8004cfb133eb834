"""What data files are encoded in: by default only what every reader of Iceberg knows, and what one may choose instead."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.audit.pages import chunk_range, read_pages
from reqdedup.dedup.encoding import blobs_from_numpy, lists_from_blobs
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage import (
    Layout,
    TableSource,
    WriteSettings,
    add_request_feature,
    compact,
    create_feature_table,
    create_table,
    write,
)
from reqdedup.storage.iceberg import encodings as form_of_columns
from reqdedup.storage.iceberg.encodings import (
    CHOICES_PROPERTY,
    DELTA,
    THOROUGH_LEVEL,
    choose,
    stored_choices,
    to_json,
)
from reqdedup.storage.iceberg.settings import COMPACT, ENCODINGS_PROPERTY, LARGE_PAGE_BYTES
from tests.storage.feature_tables import RATE, main_table
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import files_of, rows_of

EVERYWHERE = {"PLAIN", "RLE", "RLE_DICTIONARY"}


def encodings(table) -> dict[str, set[str]]:
    """By column; empty columns of small files are left out."""
    found: dict[str, set[str]] = {}
    for path in files_of(table):
        footer = pq.read_metadata(path)
        for group in range(footer.num_row_groups):
            for index in range(footer.num_columns):
                column = footer.row_group(group).column(index)
                found.setdefault(column.path_in_schema, set()).update(column.encodings)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_every_reader_knows_the_encodings_of_every_layout(catalog, layout):
    table = create_table(catalog, "test.t", log_schema(), layout, num_buckets=2)
    write(table, to_batches(make_log(num_users=60, mean_fan_out=40)))
    found = encodings(table)
    assert set().union(*found.values()) <= EVERYWHERE, found


@pytest.mark.slow
@pytest.mark.parametrize("by_position", [False, True])
def test_every_reader_knows_the_encodings_of_feature_tables(catalog, by_position):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.side", main, [RATE], by_position=by_position)
    add_request_feature(main, side, lambda requests: np.arange(requests.num_rows) / 7.0, inputs=[])
    found = encodings(side)
    assert set().union(*found.values()) <= EVERYWHERE, found


@pytest.mark.slow
def test_compact_encodings_are_a_choice_and_hold_the_same_rows(catalog):
    batches = to_batches(make_log(num_users=60, mean_fan_out=40))
    portable, compact = (
        create_table(catalog, f"test.{name}", log_schema(), Layout.BY_REQUEST, num_buckets=2)
        for name in ("portable", "compact")
    )
    with compact.transaction() as transaction:
        transaction.set_properties({ENCODINGS_PROPERTY: COMPACT})
    for table in (portable, compact):
        write(table, batches)
    assert encodings(compact)["item_id"] & {DELTA, "BYTE_STREAM_SPLIT"}
    assert rows_of(TableSource(compact).batches()) == rows_of(TableSource(portable).batches()) == rows_of(batches)


def test_an_unknown_choice_is_refused_by_name(catalog):
    table = create_table(catalog, "test.t", log_schema(), Layout.BY_REQUEST)
    with table.transaction() as transaction:
        transaction.set_properties({ENCODINGS_PROPERTY: "smallest"})
    with pytest.raises(ValueError, match=r"reqdedup.encodings: 'portable' or 'compact' required, found 'smallest'"):
        write(table, to_batches(make_log(num_users=2)))


@pytest.mark.slow
@pytest.mark.parametrize(("share_of_first", "wanted"), [(1 / 8, "high level"), (0.9, "dictionary")])
def test_lists_of_few_values_take_the_smallest_form(share_of_first, wanted):
    """Copies of long lists: many short repetitions hide the long ones from zstd's fast levels."""
    few = Column(name="few", dtype="int32", level=Level.REQUEST, kind=Kind.SEQUENCE)
    many = Column(name="many", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE)
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(5_000, 9_000, 6))])
    shares = [share_of_first, *[(1 - share_of_first) / 7] * 7]
    values = {"few": rng.choice(8, int(offsets[-1]), p=shares), "many": rng.integers(0, 10**6, int(offsets[-1]))}
    columns = {
        column.name: lists_from_blobs(blobs_from_numpy(values[column.name].astype(column.dtype), offsets), column).take(
            pa.array(np.repeat(np.arange(6), 120))
        )
        for column in (few, many)
    }
    keys = [log_schema()[name] for name in ("user_id", "request_id", "item_id", "request_ts")]
    settings = {"compression": "zstd", "compression_level": 6, "use_dictionary": [], "data_page_size": 2**27}
    schema, ours = EngagementSchema((*keys, few, many)), WriteSettings(page_bytes=LARGE_PAGE_BYTES)
    scalars = {column.name: pa.array(np.repeat(np.arange(6), 120)) for column in keys}
    chosen = choose(pa.table(scalars | columns), schema, ours, blobs=False)
    assert chosen["few"] == ("dictionary" if wanted == "dictionary" else f"PLAIN/{THOROUGH_LEVEL}")
    assert chosen["many"] == "PLAIN"
    forms = {
        "low level": {},
        "dictionary": {"use_dictionary": ["few.list.element"]},
        "high level": {"compression_level": THOROUGH_LEVEL},
    }
    sizes = {}
    for name, options in forms.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns).select(["few"]), sink, **(settings | options))
        sizes[name] = sink.tell()
    assert min(sizes, key=lambda name: sizes[name]) == wanted


def hashes(table) -> dict[int, str]:
    """By bucket the bytes of its file."""
    tasks = table.scan().plan_files()
    return {
        t.file.partition[0]: sha256(Path(t.file.file_path.removeprefix("file://")).read_bytes()).hexdigest()
        for t in tasks
    }


@pytest.mark.slow
def test_the_bytes_of_a_bucket_do_not_depend_on_which_bucket_came_first(catalog):
    """Written at once in any order of arrival, or in two appends that a compaction puts together."""
    log = make_log(num_users=40, mean_fan_out=30)
    at_once, reversed_, appended = (
        create_table(catalog, f"test.{name}", log_schema(), Layout.BY_REQUEST, num_buckets=4)
        for name in ("a", "b", "c")
    )
    write(at_once, to_batches(log))
    write(reversed_, to_batches(log[::-1], size=3))
    with appended.transaction() as transaction:
        transaction.set_properties({CHOICES_PROPERTY: at_once.refresh().properties[CHOICES_PROPERTY]})
    for part in (log[50:], log[:50]):
        write(appended, to_batches(part), mode="append")
    compact(appended)
    assert hashes(at_once) == hashes(reversed_) == hashes(appended.refresh())
    compact(at_once, force=True)
    assert hashes(at_once) == hashes(reversed_)


@pytest.mark.slow
def test_what_was_chosen_is_kept_by_appends_and_chosen_anew_by_a_replacement(catalog):
    table = create_table(catalog, "test.t", log_schema(), Layout.BY_REQUEST, num_buckets=2)
    write(table, to_batches(make_log(num_users=60, mean_fan_out=40)))
    chosen = stored_choices(table.refresh().properties)
    assert set(chosen) == set(log_schema().names)
    other = chosen | {"item_id": "dictionary/none"}
    with table.transaction() as transaction:
        transaction.set_properties({CHOICES_PROPERTY: to_json(other)})
    write(table, to_batches(make_log(num_users=60, mean_fan_out=40, seed=1)), mode="append")
    assert stored_choices(table.refresh().properties) == other
    write(table, to_batches(make_log(num_users=60, mean_fan_out=40)))
    assert stored_choices(table.refresh().properties) == chosen


def test_choices_of_a_newer_format_are_refused_by_name_and_the_present_one_is_literal(catalog):
    assert to_json({"item_id": "PLAIN", "few": "PLAIN/16"}) == (
        '{"format":1,"columns":{"item_id":"PLAIN","few":"PLAIN/16"}}'
    )
    table = create_table(catalog, "test.t", log_schema(), Layout.BY_REQUEST)
    with table.transaction() as transaction:
        transaction.set_properties({CHOICES_PROPERTY: '{"format":2,"columns":{}}'})
    with pytest.raises(ValueError, match=r"reqdedup\.columns: format 1 or older required, found 2"):
        write(table, to_batches(make_log(num_users=2)))


@pytest.mark.slow
def test_settings_are_what_the_files_have(catalog):
    settings = WriteSettings(row_group_rows=100, page_bytes=4096, codec="gzip", level=3)
    table = create_table(catalog, "test.t", log_schema(), Layout.BY_REQUEST, num_buckets=1, settings=settings)
    assert WriteSettings.of(table.properties, Layout.BY_REQUEST, log_schema()) == settings
    write(table, to_batches(make_log(num_users=40, mean_fan_out=30)))
    footer = pq.read_metadata(files_of(table)[0])
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    assert max(group.num_rows for group in groups) <= 100
    assert {group.column(i).compression for group in groups for i in range(group.num_columns)} <= {
        "GZIP",
        "UNCOMPRESSED",
    }
    for wrong, message in (({"codec": "lzo"}, "one of zstd"), ({"file_bytes": 0}, "a positive file_bytes")):
        with pytest.raises(ValueError, match=message):
            WriteSettings(**wrong)
    with table.transaction() as transaction:
        transaction.set_properties({"write.parquet.row-group-limit": "many"})
    with pytest.raises(ValueError, match=r"row-group-limit: a whole number required, found 'many'"):
        write(table, to_batches(make_log(num_users=2)))


@pytest.mark.slow
def test_short_lists_of_popular_items_take_the_thorough_level_of_zstd_alone():
    """Popular items come again soon, so that fast levels find those and miss the list itself."""
    column = Column(name="items", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE)
    keys = [log_schema()[name] for name in ("user_id", "request_id", "item_id", "request_ts")]
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 60, 400))])
    items = (rng.zipf(1.3, int(offsets[-1])) % 30_000).astype(np.int64)
    rows = lists_from_blobs(blobs_from_numpy(items, offsets), column).take(pa.array(np.repeat(np.arange(400), 40)))
    scalars = {key.name: pa.array(np.repeat(np.arange(400), 40)) for key in keys}
    table, schema = pa.table(scalars | {"items": rows}), EngagementSchema((*keys, column))
    forms = {"zstd": f"PLAIN/{THOROUGH_LEVEL}", "gzip": "PLAIN"}
    for codec, form in forms.items():
        assert (
            choose(table, schema, WriteSettings(page_bytes=LARGE_PAGE_BYTES, codec=codec), blobs=False)["items"] == form
        )


def test_a_quarter_of_a_trial_decides_as_all_of_it_does(monkeypatch):
    """Of values that repeat far back, those of popular items, and those that no level makes smaller."""
    rng = np.random.default_rng(0)
    far = np.tile(rng.integers(0, 2**40, 2**16), 5)
    popular, noise = (rng.zipf(1.3, 2**18) % 30_000).astype(np.int64), rng.integers(0, 2**63, 2**18)
    for values, wanted in ((far, "dictionary"), (popular, "dictionary/1"), (noise, "dictionary")):
        blobs = blobs_from_numpy(values, np.append(np.arange(0, len(values), 50), len(values)))
        rows = pa.chunked_array([pa.DictionaryArray.from_arrays(np.arange(len(blobs), dtype=np.int32), blobs)])
        with monkeypatch.context() as patch:
            found = form_of_columns._blob_form(rows, WriteSettings())
            patch.setattr(form_of_columns, "CLEARLY", 0)
            assert form_of_columns._blob_form(rows, WriteSettings()) == found == wanted


@pytest.mark.slow
def test_pages_end_by_their_bytes_and_not_by_a_count_of_rows(catalog):
    table = create_table(catalog, "test.t", log_schema(), Layout.BY_REQUEST, num_buckets=1)
    write(table, to_batches(make_log(num_users=60, mean_fan_out=200), size=50))
    (path,) = files_of(table)
    footer = pq.read_metadata(path)
    assert footer.num_rows > 20_000
    for name in ("user_id", "history_item_id"):
        chunk = footer.row_group(0).column(footer.schema.to_arrow_schema().get_field_index(name))
        with Path(path).open("rb") as file:
            pages = [page for page in read_pages(file, *chunk_range(chunk)) if not page.is_dictionary]
        assert [page.num_values for page in pages] == [footer.row_group(0).num_rows]
