"""Encodings, codecs and levels of our data files where values decide: the first rows are tried, the smallest form is taken.

A table's property `reqdedup.encodings` says what may be tried. `portable`, the default: PLAIN and dictionaries, which every
reader of Iceberg knows. `compact`: also DELTA_BINARY_PACKED and BYTE_STREAM_SPLIT, which the vectorised reader of Iceberg's
Java library refuses in all but its newest releases (apache/iceberg#7162). docs/decisions/0012 has the bytes.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reqdedup.schema import ITEM_ID, KEYS, Column, EngagementSchema, Level

ENCODINGS_PROPERTY = "reqdedup.encodings"
PORTABLE, COMPACT = "portable", "compact"

SAMPLE_BYTES = 32 * 2**20
"""Uncompressed bytes of a list column that are tried."""

SAMPLE_ROWS = 16_384
"""Rows of a scalar column that are tried; with a sixteenth of them what was found serves for later files."""

WORTH_COMPRESSING = 1 / 8
"""Of a scalar column's bytes that the codec must save; below it they are stored as they are, and read three times faster."""

DELTA = "DELTA_BINARY_PACKED"

FEW_VALUES = 4096
"""Distinct elements of a list column, at most, that are few."""

FEW_VALUES_LEVEL = 16
"""zstd's level for plain lists of few distinct values: the first of its optimal parsers, which find long repetitions behind
many short ones. It takes half as much CPU again as level 6 does with a dictionary of elements."""


def may_be_compact(properties: dict[str, str]) -> bool:
    """Whether the table takes the encodings that some readers refuse. Raises ValueError for an unknown choice."""
    found = properties.get(ENCODINGS_PROPERTY, PORTABLE)
    if found not in (PORTABLE, COMPACT):
        raise ValueError(f"table property {ENCODINGS_PROPERTY}: {PORTABLE!r} or {COMPACT!r} required, found {found!r}")
    return found == COMPACT


def row_encodings(
    rows: pa.Table, schema: EngagementSchema, settings: dict[str, Any], *, compact: bool
) -> dict[str, str]:
    """Encodings of the scalars of a row that come out smaller without a dictionary, tried on the first rows, by name.

    Ids that hardly repeat lose a third of their bytes, and three quarters of the CPU of reading them: their dictionary
    is as long as the column. Inside a request items rise, so that deltas are also shorter than the ids. Where a row is a
    request (features), its keys and scalars are tried too; floats that do not repeat take 1.4 times their bytes in a
    dictionary.
    """
    chosen: dict[str, str] = {}
    row_is_request = ITEM_ID not in schema.names
    for column in schema.columns:
        is_of_row = column.name == ITEM_ID or column.level in (Level.ITEM, Level.LABEL)
        if row_is_request:
            is_of_row = column.level is Level.REQUEST or column.name in KEYS
        elif column.dtype.startswith("float"):
            continue
        if not is_of_row or column.is_blob:
            continue
        sample = rows.select([column.name]).slice(0, SAMPLE_ROWS)
        sizes = {}
        for encoding in (None, *_other_encodings(column, compact=compact)):
            options: dict[str, Any] = {"use_dictionary": encoding is None}
            options["column_encoding"] = {column.name: encoding} if encoding is not None else None
            sizes[encoding] = len(_written(sample, settings | options))
        best = min(sizes, key=lambda encoding: sizes[encoding])
        if best is not None:
            chosen[column.name] = best
    return chosen


def scalar_codecs(rows: pa.Table, schema: EngagementSchema, settings: dict[str, Any]) -> dict[str, Any]:
    """Codec and level by column: none for scalars in which the codec finds next to nothing, tried on the first rows.

    Dictionary indices are bit-packed and their runs are runs already. Such columns are small beside sequences, and opening
    a compressed page of them costs more than reading it.
    """
    codecs = dict.fromkeys(schema.names, settings["compression"])
    for column in schema.columns:
        if not column.is_blob:
            written = _written(rows.select([column.name]).slice(0, SAMPLE_ROWS), settings)
            chunk = pq.read_metadata(pa.BufferReader(written)).row_group(0).column(0)
            saved = chunk.total_uncompressed_size - chunk.total_compressed_size
            if saved < WORTH_COMPRESSING * chunk.total_uncompressed_size:
                codecs[column.name] = "none"
    level = settings["compression_level"]
    return {
        "compression": codecs,
        "compression_level": {name: level for name, codec in codecs.items() if codec != "none"},
    }


def list_settings(rows: pa.Table, schema: EngagementSchema, settings: dict[str, Any]) -> dict[str, Any]:
    """`use_dictionary` and `compression_level` for plain lists in large pages, tried on the first rows.

    Many distinct elements (items, times) want neither: their dictionary is long, and bit-packed indices hide the repetition
    of whole lists from the codec. Few distinct ones (actions) want one of both: their plain bytes hold so many short
    repetitions that zstd's fast levels miss the long ones, by two orders of magnitude. A dictionary removes the short ones,
    but the copies of a list begin at eight different bits of a byte; a level that looks further needs half its bytes, and
    is tried whichever of the first two is smaller: on a few requests that is chance.
    """
    dictionaries = list(settings["use_dictionary"])
    names = [f"{column.name}.list.element" if column.is_blob else column.name for column in schema.columns]
    levels = dict.fromkeys(names, settings["compression_level"])
    for column in schema.blobs:
        leaf = f"{column.name}.list.element"
        row_bytes = max(rows.column(column.name).nbytes // max(len(rows), 1), 1)
        sample = rows.select([column.name]).slice(0, max(SAMPLE_BYTES // row_bytes, 1))
        plain, with_dictionary = (len(_written(sample, settings | {"use_dictionary": use})) for use in (False, True))
        if with_dictionary >= plain and len(pc.unique(sample[column.name].combine_chunks().flatten())) > FEW_VALUES:
            continue
        thorough = {"use_dictionary": False, "compression_level": FEW_VALUES_LEVEL}
        if len(_written(sample, settings | thorough)) < min(with_dictionary, plain):
            levels[leaf] = max(levels[leaf], FEW_VALUES_LEVEL)
        elif with_dictionary < plain:
            dictionaries.append(leaf)
    return {"use_dictionary": dictionaries, "compression_level": levels}


def _other_encodings(column: Column, *, compact: bool) -> tuple[str, ...]:
    """What a scalar may be written in beside a dictionary."""
    if not compact:
        return ("PLAIN",)
    if column.dtype in ("int32", "int64", "timestamp"):
        return (DELTA,)
    return ("PLAIN", "BYTE_STREAM_SPLIT") if column.dtype.startswith("float") else ("PLAIN",)


def _written(sample: pa.Table, settings: dict[str, Any]) -> pa.Buffer:
    """The sample as a Parquet file of one row group."""
    sink = pa.BufferOutputStream()
    pq.write_table(sample, sink, row_group_size=max(len(sample), 1), **(settings | {"write_statistics": False}))
    return sink.getvalue()
