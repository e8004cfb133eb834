"""Encodings, codecs and levels of a table's columns if values decide: first rows are tried, the smallest form is taken.

They are chosen once for a table, from the first rows in its order, and kept in its property `reqdedup.columns`: so the
bytes of a bucket depend on its rows alone and not on who came first, and a wide table is tried once and not per file.
By the property `reqdedup.encodings` it is `portable`, the default: PLAIN and dictionaries, which every reader of
Iceberg knows. `compact`: also DELTA_BINARY_PACKED and BYTE_STREAM_SPLIT, which the vectorised reader of Iceberg's Java
library refuses in all but its newest releases (apache/iceberg#7162). docs/decisions/0012 has the bytes, 0020 the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reqdedup.dedup.parts import blob_bytes
from reqdedup.schema import ITEM_ID, KEYS, REQUEST_ID, USER_ID, Column, EngagementSchema, Level, type_tree
from reqdedup.storage.iceberg.settings import COMPACT, WriteSettings
from reqdedup.storage.iceberg.stored_types import leaves

CHOICES_PROPERTY = "reqdedup.columns"
"""JSON: `format`, and by column its encoding, with "/none" or "/level" if it is compressed otherwise than the table."""

CHOICES_FORMAT = 1

DICTIONARY = "dictionary"

SAMPLE_BYTES = 32 * 2**20
"""Uncompressed bytes of a list column that are tried."""

SAMPLE_ROWS = 16_384
"""Rows of a scalar column that are tried, at most."""

KEY_SAMPLE_ROWS = 262_144
"""Of keys: a dictionary of `item_id` pays only after many rows, and which level finds more in hashed ids of users
depends on how long a page is."""

BLOB_SAMPLE_BYTES = 2 * 2**20
"""Of the distinct values of a sequence column that are tried."""

CLEARLY = 0.99
"""Of what zstd's lowest level takes: if a quarter of the sample is smaller than that at the table's, it decides. A
longer one would help the higher level more, which looks further back."""

FAST_LEVELS = (1, 3)
"""zstd's levels that are tried beside the table's. At level 1 it looks for long matches alone. Ids of popular items
repeat often and shortly: what a higher level finds of them costs more than their bytes do (docs/decisions/0050)."""

ENOUGH_ROWS = 1_024
"""Of a row group by which to choose for the whole table."""

WORTH_COMPRESSING = 1 / 8
"""Of a scalar column's bytes that the codec must save; below it they are stored as they are, and
read three times faster."""

DELTA, SPLIT = "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"

FEW_VALUES = 4096
"""Distinct elements of a list column, at most, that are few."""

THOROUGH_LEVEL = 16
"""zstd's level for plain lists in which it finds much that lower ones miss: the first of its optimal parsers, which
find long repetitions behind many short ones. It takes half as much CPU again as level 6 does with a dictionary of
elements, and five times as much as level 6 of short lists of popular items."""

WORTH_THOROUGH = 1 / 8
"""Of the bytes of a list column of many distinct elements that this level must save."""

PAGES_BY_BYTES: dict[str, Any] = (
    {"max_rows_per_page": 2**31 - 1} if "max_rows_per_page" in signature(pq.ParquetWriter.__init__).parameters else {}
)
"""For `pq.ParquetWriter`: it ends pages at 20,000 rows besides, each with a header and a table of zstd's own."""

Choices = dict[str, str]
"""By column: its encoding ("dictionary" or one of Parquet's), then "/none" or "/<level>" if the
table's codec or level is not taken."""


def to_json(choices: Choices) -> str:
    """The property's value."""
    return json.dumps({"format": CHOICES_FORMAT, "columns": choices}, separators=(",", ":"))


def stored_choices(properties: Mapping[str, str]) -> Choices:
    """What was chosen for a table; nothing if it has no such property. Raises ValueError for a newer format."""
    found = json.loads(properties.get(CHOICES_PROPERTY, '{"format": 1, "columns": {}}'))
    if found["format"] > CHOICES_FORMAT:
        raise ValueError(
            f"table property {CHOICES_PROPERTY}: format {CHOICES_FORMAT} or older required, found {found['format']}; "
            "update reqdedup"
        )
    return dict(found["columns"])


def choose(rows: pa.Table, schema: EngagementSchema, settings: WriteSettings, *, blobs: bool) -> Choices:
    """The smallest form of each column of these first rows. blobs: sequences are blobs, else plain lists."""
    forms, chunks = _scalar_forms(rows, schema, settings)
    own = _portable(schema) | forms
    if not blobs:
        return own | _list_choices(rows, schema, settings)
    if ITEM_ID in schema.names:
        others = [column for column in schema.columns if column.name in own and column.name not in chunks]
        own = _with_codecs(own, chunks | _chunks(rows, others, settings, own))
    return own | {column.name: _blob_form(rows.column(column.name), settings) for column in schema.blobs}


def writer_options(
    choices: Choices, schema: EngagementSchema, settings: WriteSettings, *, blobs: bool
) -> dict[str, Any]:
    """Keyword arguments of `pq.ParquetWriter` that follow from the choices; columns without one are not tried."""
    default = _portable(schema)
    dictionary: list[str] = []
    encodings, codecs, levels = {}, {}, {}
    for column in schema.columns:
        fallback = DICTIONARY if column.is_blob and blobs else default.get(column.name, "PLAIN")
        encoding, _, other = choices.get(column.name, fallback).partition("/")
        if column.is_stored:
            for path, kind in leaves(column.name, type_tree(column.dtype)):
                dictionary += [path] if not kind.startswith("float") else []
                codecs[path] = settings.parquet_codec
                if settings.level_of() is not None:
                    levels[path] = settings.level
            continue
        leaf = f"{column.name}.list.element" if column.is_blob and not blobs else column.name
        if encoding == DICTIONARY:
            dictionary.append(leaf)
        elif default.get(column.name) == DICTIONARY or encoding == SPLIT:
            encodings[leaf] = encoding
        codecs[leaf] = "none" if other == "none" else settings.parquet_codec
        if codecs[leaf] != "none" and settings.level_of() is not None:
            levels[leaf] = int(other) if other else settings.level
    return {
        "use_dictionary": dictionary,
        "column_encoding": encodings or None,
        "compression": codecs,
        "compression_level": levels or None,
    }


def bytes_in(
    rows: pa.Table, schema: EngagementSchema, settings: WriteSettings, choices: Choices, *, blobs: bool
) -> int:
    """Bytes of these rows as one row group in these forms."""
    limit = 2**31 - 1 if blobs else settings.page_bytes
    options = writer_options(choices, schema, settings, blobs=blobs)
    options |= PAGES_BY_BYTES if blobs else {}
    return _written(rows, dictionary_pagesize_limit=limit, data_page_size=settings.page_bytes, **options).size


def _portable(schema: EngagementSchema) -> Choices:
    """Scalars in dictionaries, but for floats of the item: in a dictionary they take 1.4 times their bytes.

    What is only stored is not tried: its leaves have dictionaries, but for floats.
    """
    return {
        column.name: "PLAIN" if column.level is Level.ITEM and column.dtype.startswith("float") else DICTIONARY
        for column in schema.columns
        if not column.is_blob and not column.is_stored
    }


def _blob_form(values: pa.ChunkedArray, settings: WriteSettings) -> str:
    """A dictionary at the table's level, or at zstd's lowest if these values come out smaller with it."""
    level = settings.level_of()
    first = next((chunk.dictionary for chunk in values.chunks if len(chunk)), None)
    if first is None or settings.codec != "zstd" or level is None or level <= FAST_LEVELS[0]:
        return DICTIONARY
    ends, own, fast = np.cumsum(blob_bytes(first)), 0, 0
    for sample_bytes in (BLOB_SAMPLE_BYTES // 4, BLOB_SAMPLE_BYTES):
        sample = pa.table({"values": first.slice(0, int(np.searchsorted(ends, sample_bytes)) + 1)})
        own, fast = (
            _written(
                sample, use_dictionary=False, compression="zstd", compression_level=one, data_page_size=2**31 - 1
            ).size
            for one in (level, FAST_LEVELS[0])
        )
        if own < CLEARLY * fast or len(sample) == len(first):
            break
    return f"{DICTIONARY}/{FAST_LEVELS[0]}" if fast < own else DICTIONARY


def _scalar_forms(
    rows: pa.Table, schema: EngagementSchema, settings: WriteSettings
) -> tuple[Choices, dict[str, pq.ColumnChunkMetaData]]:
    """Forms of the scalars that come out smaller than in a dictionary at the table's level; what Parquet made of each
    that was tried in the smallest.

    Copies of a plain value cost zstd about as much as one run of dictionary indices, and no dictionary besides: keys
    and times of requests take half the bytes. Ids that hardly repeat lose a third of theirs, and three quarters of the
    CPU of reading them, with their dictionary. Inside a request items rise, so that deltas are shorter than the ids.
    Floats of the item are plain and not tried.
    """
    row_is_request = ITEM_ID not in schema.names
    tried = [
        column
        for column in schema.columns
        if not column.is_blob
        and not column.is_stored
        and (row_is_request or column.level in (Level.KEY, Level.REQUEST) or not column.dtype.startswith("float"))
    ]
    best = _chunks(rows, tried, settings, dict.fromkeys((column.name for column in tried), DICTIONARY))
    others = {column.name: _others(column, settings, row_is_request=row_is_request) for column in tried}
    chosen = {}
    for number in range(max(map(len, others.values()), default=0)):
        forms = {name: found[number] for name, found in others.items() if len(found) > number}
        for name, chunk in _chunks(rows, [column for column in tried if column.name in forms], settings, forms).items():
            if chunk.total_compressed_size < best[name].total_compressed_size:
                best[name], chosen[name] = chunk, forms[name]
    return chosen, best


def _others(column: Column, settings: WriteSettings, *, row_is_request: bool) -> tuple[str, ...]:
    """What a scalar may be written in beside a dictionary: plain, at a level that finds the copies of a request's
    value, or at one that looks for no short matches among values of rows."""
    is_repeated = not row_is_request and (column.name in (USER_ID, REQUEST_ID) or column.level is Level.REQUEST)
    level, levels = settings.level_of(), FAST_LEVELS if is_repeated and column.name in KEYS else FAST_LEVELS[:1]
    if is_repeated and column.name not in KEYS:
        levels = FAST_LEVELS[1:]
    fast = [f"PLAIN/{one}" for one in levels if settings.codec == "zstd" and level is not None and one < level]
    found = fast or ["PLAIN"]
    if settings.encodings == COMPACT and column.dtype in ("int32", "int64", "timestamp"):
        found += [DELTA, SPLIT]
    elif settings.encodings == COMPACT and column.dtype.startswith("float"):
        found.append(SPLIT)
    return tuple(found)


def _with_codecs(choices: Choices, chunks: Mapping[str, pq.ColumnChunkMetaData]) -> Choices:
    """The choices, with no codec for scalars in which it finds next to nothing.

    Dictionary indices are bit-packed and their runs are runs already. Such columns are small beside sequences, and
    opening a compressed page of them costs more than reading it.
    """
    chosen = dict(choices)
    for name, chunk in chunks.items():
        saved = chunk.total_uncompressed_size - chunk.total_compressed_size
        if saved < WORTH_COMPRESSING * chunk.total_uncompressed_size:
            chosen[name] = f"{chosen[name].partition('/')[0]}/none"
    return chosen


def _list_choices(rows: pa.Table, schema: EngagementSchema, settings: WriteSettings) -> Choices:
    """Dictionaries and levels for plain lists in large pages.

    Many distinct elements (items, times) want neither: their dictionary is long, and bit-packed indices hide the
    repetition of whole lists from the codec. Few distinct ones (actions) want one of both: their plain bytes hold so
    many short repetitions that zstd's fast levels miss the long ones, by two orders of magnitude. A dictionary removes
    the short ones, but the copies of a list begin at eight different bits of a byte; a level that looks further needs
    half its bytes, and is tried whichever of the first two is smaller: on a few requests that is chance. Short lists of
    popular items are like that too (docs/decisions/0096): there it must be worth its CPU.
    """
    chosen = {}
    for column in schema.blobs:
        row_bytes = max(rows.column(column.name).nbytes // max(len(rows), 1), 1)
        sample = rows.select([column.name]).slice(0, max(SAMPLE_BYTES // row_bytes, 1))
        thorough = f"PLAIN/{max(settings.level, THOROUGH_LEVEL)}"
        fast = [f"/{FAST_LEVELS[0]}"] if settings.codec == "zstd" and settings.level > FAST_LEVELS[0] else []
        plain, split = ([encoding, *(encoding + level for level in fast)] for encoding in ("PLAIN", SPLIT))
        tried = [*plain, DICTIONARY, *(split if settings.encodings == COMPACT else [])]
        sizes = {form: _list_bytes(sample, column, settings, form) for form in tried}
        chosen[column.name] = min(sizes, key=lambda form: sizes[form])
        if chosen[column.name] in split or settings.codec != "zstd":
            continue
        best = sizes[chosen[column.name]]
        is_few = chosen[column.name] == DICTIONARY or len(pc.unique(_elements(sample, column))) <= FEW_VALUES
        if _list_bytes(sample, column, settings, thorough) < best * (1 if is_few else 1 - WORTH_THOROUGH):
            chosen[column.name] = thorough
    return chosen


def _elements(sample: pa.Table, column: Column) -> pa.Array:
    return sample[column.name].combine_chunks().flatten()


def _list_bytes(sample: pa.Table, column: Column, settings: WriteSettings, form: str) -> int:
    encoding, _, level = form.partition("/")
    return len(
        _written(
            sample,
            use_dictionary=encoding == DICTIONARY,
            column_encoding={f"{column.name}.list.element": SPLIT} if encoding == SPLIT else None,
            compression=settings.parquet_codec,
            compression_level=settings.level_of(int(level or 0)),
            data_page_size=settings.page_bytes,
            dictionary_pagesize_limit=settings.page_bytes,
        )
    )


def _chunks(
    rows: pa.Table, columns: list[Column], settings: WriteSettings, forms: Choices
) -> dict[str, pq.ColumnChunkMetaData]:
    """By column what Parquet makes of its first rows in this form: all columns in one file."""
    if not columns or not len(rows):
        return {}
    found: dict[str, pq.ColumnChunkMetaData] = {}
    keys = [column.name for column in columns if column.name in KEYS]
    for names, num_rows in (
        (keys, KEY_SAMPLE_ROWS),
        ([column.name for column in columns if column.name not in KEYS], SAMPLE_ROWS),
    ):
        if not names:
            continue
        split = {name: forms[name].partition("/") for name in names}
        encodings = {name: encoding for name, (encoding, _, _) in split.items() if encoding != DICTIONARY}
        levels = {name: int(level or settings.level) for name, (_, _, level) in split.items()}
        written = _written(
            rows.select(names).slice(0, num_rows),
            use_dictionary=[name for name in names if name not in encodings],
            column_encoding=encodings or None,
            compression=settings.parquet_codec,
            compression_level=levels if settings.level_of() is not None else None,
            dictionary_pagesize_limit=2**31 - 1,
            **PAGES_BY_BYTES,
        )
        group = pq.read_metadata(pa.BufferReader(written)).row_group(0)
        found |= {name: group.column(index) for index, name in enumerate(names)}
    return found


def _written(sample: pa.Table, **options: Any) -> pa.Buffer:
    """The sample as a Parquet file of one row group."""
    sink = pa.BufferOutputStream()
    common = {"write_statistics": False, "store_schema": False, "write_page_checksum": True}
    pq.write_table(sample, sink, row_group_size=max(len(sample), 1), **common, **options)
    return sink.getvalue()
