"""Parquet files as blocks of mapped columns: Arrow arrays of any type as values, as lists of texts, or as unfit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reqdedup.logs.blocks import (
    ID_NAMES,
    Block,
    lists_of_texts,
    nothing_unfit,
    resolve_columns,
    unknown_labels,
    with_unfit,
)
from reqdedup.logs.checks import Rejects, UnreadableFile
from reqdedup.logs.mapping import LogMapping
from reqdedup.logs.text import one_line
from reqdedup.logs.values import read_string_id, split_text

_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)
_CALENDAR_DAYS = (-719_162, 2_932_896)
"""1 January of the year 1 and 31 December 9999 in days since 1970."""

_Values = tuple[pl.Series, pl.Series]
"""Values, and for those that do not fit why, null for the others."""


def parquet_blocks(path: Path, mapping: LogMapping, rejects: Rejects, file: int) -> Iterator[Block]:
    """Blocks of a file's rows; a row group that cannot be read is rejected.

    Raises UnreadableFile if that is so of the whole file.
    """
    try:
        parquet = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UnreadableFile("unreadable", f"a Parquet file required, found: {one_line(error)}") from None
    with parquet:
        columns = resolve_columns(mapping, parquet.schema_arrow.names)
        wanted = sorted(set(columns.values()))
        first = 1
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            size = metadata.total_byte_size / max(1, metadata.num_rows)
            row = first
            try:
                for batch in parquet.iter_batches(row_groups=[group], columns=wanted):
                    frame = _frame(batch, columns, mapping, row)
                    row += frame.height
                    yield Block(frame, round(size * frame.height))
            except (OSError, pa.ArrowException) as error:
                lost = f"rows {row:,} to {first + metadata.num_rows - 1:,} cannot be read: {one_line(error)}"
                rejects.add("unreadable", lost, file, row)
            first += metadata.num_rows


def _frame(batch: pa.RecordBatch, columns: Mapping[str, str], mapping: LogMapping, row: int) -> pl.DataFrame:
    values, unfit = {}, {}
    for name, column in columns.items():
        array = batch.column(column)
        if name in mapping.list_separators:
            values[name], unfit[name] = _lists(array, name, mapping.list_separators[name])
        else:
            values[name], unfit[name] = _scalars(array, is_id=name in ID_NAMES)
    lines = pl.Series("line", np.arange(row, row + batch.num_rows), dtype=pl.Int64)
    raw = nothing_unfit(batch.num_rows).alias("raw")
    frame = pl.DataFrame([lines, raw, *(series.alias(name) for name, series in values.items())])
    return with_unfit(frame, unfit)


def _scalars(array: pa.Array, *, is_id: bool = False) -> _Values:
    """One value per row. Only types that polars takes as they are go there; a decimal is its digits."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _scalars(array.dictionary_decode(), is_id=is_id)
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return _uuids(array.storage)
        is_bool = kind.extension_name == "arrow.bool8"
        return _scalars(array.storage.cast(pa.bool_()) if is_bool else array.storage, is_id=is_id)
    if pa.types.is_run_end_encoded(kind):
        return _scalars(pc.run_end_decode(array), is_id=is_id)
    if any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return _texts(array)
    if any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)):
        return _texts(array)
    if pa.types.is_fixed_size_binary(kind):
        return _texts(array.cast(pa.binary()))
    if pa.types.is_decimal(kind):
        return _decimals(array, is_id=is_id)
    if pa.types.is_float16(kind):
        array = array.cast(pa.float32())
    elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return _moments(array)
    elif pa.types.is_time(kind) or pa.types.is_null(kind):
        array = array.cast(pa.string())
    elif not (pa.types.is_primitive(kind) and not pa.types.is_duration(kind) and not pa.types.is_interval(kind)):
        return _none_fits(array)
    return _fitting(pl.Series(array))


def _fitting(values: pl.Series) -> _Values:
    return values, nothing_unfit(len(values))


def _none_fits(array: pa.Array) -> _Values:
    kind = str(array.type).partition("<")[0]
    present = pl.Series(array.is_valid())
    return nothing_unfit(len(array)), pl.select(pl.when(present).then(pl.lit(f"is a {kind}"))).to_series()


def _texts(array: pa.Array) -> _Values:
    """Text of strings and of binary values that are UTF-8; nobody has checked a string of a Parquet file before."""
    binary = array.cast(pa.large_binary())
    try:
        texts = binary.cast(pa.large_string())
        return _fitting(pl.Series(texts, dtype=pl.String))
    except pa.ArrowInvalid:
        values = [_decoded(value) for value in binary.to_pylist()]
    texts = pl.Series(values, dtype=pl.String)
    bad = pl.Series(binary.is_valid()) & texts.is_null()
    return texts, pl.select(pl.when(bad).then(pl.lit("is not UTF-8"))).to_series()


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _moments(array: pa.Array) -> _Values:
    """Dates and times of four-digit years, beyond which the arithmetic of calendars overflows; zones as UTC."""
    kind = array.type
    if pa.types.is_date(kind):
        array, ticks, per_day = array.cast(pa.date32()), array.cast(pa.date32()).view(pa.int32()), 1
    else:
        array = array.cast(pa.timestamp(kind.unit, kind.tz and "UTC"))
        ticks, per_day = array.view(pa.int64()), 86_400 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    first, last = (min(max(day * per_day, -(2**63)), 2**63 - 1) for day in _CALENDAR_DAYS)
    fits = pl.DataFrame([pl.Series("fits", ticks).cast(pl.Int64).is_between(first, last)])
    near = pc.if_else(fits["fits"].to_arrow(), array, pa.scalar(None, array.type))
    beyond = pl.when(~pl.col("fits")).then(pl.lit("is beyond the years 1 to 9999"))
    return pl.Series(near), fits.select(beyond).to_series()


def _decimals(array: pa.Array, *, is_id: bool) -> _Values:
    digits = pl.Series(array.cast(pa.string()), dtype=pl.String).str.replace(r"^(-?[0-9]+)\.0+$", "${1}")
    if not is_id:
        return _fitting(digits)
    frame = digits.alias("digits").to_frame().with_columns(whole=pl.col("digits").str.contains(r"^-?[0-9]+$"))
    values = frame.select(pl.when("whole").then("digits")).to_series()
    return values, frame.select(pl.when(~pl.col("whole")).then(pl.lit("is not a whole number"))).to_series()


def _uuids(storage: pa.Array) -> _Values:
    digits = pl.Series(storage.cast(pa.binary()), dtype=pl.Binary).bin.encode("hex").alias("digits")
    cuts = list(itertools.pairwise((0, 8, 12, 16, 20, 32)))
    pieces = [pl.col("digits").str.slice(start, end - start) for start, end in cuts]
    return _fitting(digits.to_frame().select(pl.concat_str(pieces, separator="-")).to_series())


def _lists(array: pa.Array, name: str, separator: str) -> _Values:
    """One list of texts per row: a list's elements, or the pieces of separated text. Elements of an id read as ids."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _lists(array.dictionary_decode(), name, separator)
    is_list = isinstance(kind, _LISTS)
    # flatten() and not cast(): of a list view the latter makes a wrong list without a word (upstream GH-50994)
    elements, unfit = _scalars(array.flatten() if is_list else array, is_id=name in ID_NAMES)
    element = pl.col("element")
    texts = read_string_id(element, elements.dtype) if name in ID_NAMES else element.cast(pl.String)
    no_id = pl.when(texts.is_null() & element.is_not_null()).then(pl.lit("holds what is no id"))
    frame = pl.DataFrame([elements.alias("element"), unfit.alias("unfit")])
    frame = frame.with_columns(texts.alias("text"), pl.coalesce("unfit", no_id).alias("unfit"))
    if not is_list:
        pieces = frame.select(split_text(pl.col("text"), separator)).to_series()
        return unknown_labels(name, pieces, frame["text"].is_not_null()), frame["unfit"]
    length_R = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    lists, unfit = lists_of_texts(frame["text"], frame["unfit"], length_R)
    return unknown_labels(name, lists, pl.Series(array.is_valid())), unfit
