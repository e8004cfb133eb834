"""The tables that enrichments look up, as the builder joins them: plain columns, vectors as bytes of a fixed width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import polars as pl
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError

from reqdedup.sequences.definition import Enrichment

_WIDER = {
    pl.Int8: pl.Int32,
    pl.Int16: pl.Int32,
    pl.UInt8: pl.Int32,
    pl.UInt16: pl.Int32,
    pl.UInt32: pl.Int64,
    pl.Categorical: pl.String,
}
_DTYPES = {
    pl.Int32: "int32",
    pl.Int64: "int64",
    pl.Float32: "float32",
    pl.Float64: "float64",
    pl.String: "string",
    pl.Boolean: "bool",
}


def load_lookups(catalog: Catalog, enrichments: Iterable[Enrichment]) -> dict[str, pl.DataFrame]:
    """Table name -> the columns that enrichments need of it, as the table is now.

    Raises ValueError if there is no such table, or none of its columns.
    """
    wanted: dict[str, set[str]] = {}
    for one in enrichments:
        wanted.setdefault(one.table, set()).update((one.on, *one.columns, *([one.as_of] if one.as_of else [])))
    found = {}
    for name, columns in wanted.items():
        try:
            table = catalog.load_table(name)
        except NoSuchTableError:
            raise ValueError(
                f"enrichment: table {name} required, found none; write it into the catalog first, as docs/sequences.md "
                "does"
            ) from None
        missing = columns - set(table.schema().column_names)
        if missing:
            raise ValueError(
                f"enrichment: columns {', '.join(sorted(missing))} of {name} required, found "
                f"{', '.join(table.schema().column_names)}; give the key one name in the events and in the table"
            )
        frame = pl.from_arrow(table.scan(selected_fields=tuple(sorted(columns))).to_arrow())
        assert isinstance(frame, pl.DataFrame)
        found[name] = prepared(frame)
    return found


def prepared(frame: pl.DataFrame) -> pl.DataFrame:
    """A table's columns as the timeline stores them: lists of numbers as little-endian bytes."""
    made = []
    for series in frame.get_columns():
        if isinstance(series.dtype, pl.List | pl.Array):
            made.append(_bytes(series))
        else:
            made.append(series.cast(_WIDER[series.dtype.base_type()]) if series.dtype.base_type() in _WIDER else series)
    return pl.DataFrame(made)


def lookup_dtypes(enrichments: Iterable[Enrichment], tables: Mapping[str, pl.DataFrame]) -> dict[str, str]:
    """Dtypes of the enrichments' columns in the timeline. Raises ValueError for a column that it cannot hold."""
    return {name: _dtype(one, tables[one.table][name]) for one in enrichments for name in one.columns}


def _dtype(one: Enrichment, values: pl.Series) -> str:
    if values.dtype == pl.Binary:
        widths = values.drop_nulls().bin.size().unique().to_list()
        if len(widths) == 1 and widths[0]:
            return f"fixed[{widths[0]}]"
        raise ValueError(
            f"enrichment {one.name}: vectors of one width required in {one.table}.{values.name}, found widths "
            f"{sorted(widths)[:5]}"
        )
    if values.dtype not in _DTYPES:
        raise ValueError(
            f"enrichment {one.name}: numbers, text, bool or vectors required in {one.table}.{values.name}, found "
            f"{values.dtype}"
        )
    return _DTYPES[values.dtype.base_type()]


def _bytes(series: pl.Series) -> pl.Series:
    values = [None if row is None else row.to_numpy().astype(row.to_numpy().dtype.newbyteorder("<")) for row in series]
    return pl.Series(series.name, [None if row is None else row.tobytes() for row in values], dtype=pl.Binary)
