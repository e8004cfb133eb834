"""What data files are encoded in: by default only what every reader of Iceberg knows, and what one may choose instead."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.dedup.encoding import blobs_from_numpy, lists_from_blobs
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage import Layout, TableSource, add_request_feature, create_feature_table, create_table, write
from reqdedup.storage.iceberg.encodings import COMPACT, DELTA, ENCODINGS_PROPERTY, FEW_VALUES_LEVEL, list_settings
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


@pytest.mark.parametrize("layout", list(Layout))
def test_every_reader_knows_the_encodings_of_every_layout(catalog, layout):
    table = create_table(catalog, "test.t", log_schema(), layout, num_buckets=2)
    write(table, to_batches(make_log(num_users=60, mean_fan_out=40)))
    found = encodings(table)
    assert set().union(*found.values()) <= EVERYWHERE, found


@pytest.mark.parametrize("by_position", [False, True])
def test_every_reader_knows_the_encodings_of_feature_tables(catalog, by_position):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.side", main, [RATE], by_position=by_position)
    add_request_feature(main, side, lambda requests: np.arange(requests.num_rows) / 7.0, inputs=[])
    found = encodings(side)
    assert set().union(*found.values()) <= EVERYWHERE, found


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
    assert DELTA in encodings(compact)["item_id"]
    assert rows_of(TableSource(compact).batches()) == rows_of(TableSource(portable).batches()) == rows_of(batches)


def test_an_unknown_choice_is_refused_by_name(catalog):
    table = create_table(catalog, "test.t", log_schema(), Layout.BY_REQUEST)
    with table.transaction() as transaction:
        transaction.set_properties({ENCODINGS_PROPERTY: "smallest"})
    with pytest.raises(ValueError, match=r"reqdedup.encodings: 'portable' or 'compact' required, found 'smallest'"):
        write(table, to_batches(make_log(num_users=2)))


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
    chosen = list_settings(pa.table(columns), EngagementSchema((*keys, few, many)), settings)
    assert chosen["use_dictionary"] == (["few.list.element"] if wanted == "dictionary" else [])
    assert chosen["compression_level"].pop("few.list.element") == (FEW_VALUES_LEVEL if wanted == "high level" else 6)
    assert set(chosen["compression_level"].values()) == {6}
    forms = {
        "low level": {},
        "dictionary": {"use_dictionary": ["few.list.element"]},
        "high level": {"compression_level": FEW_VALUES_LEVEL},
    }
    sizes = {}
    for name, options in forms.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns).select(["few"]), sink, **(settings | options))
        sizes[name] = sink.tell()
    assert min(sizes, key=lambda name: sizes[name]) == wanted
