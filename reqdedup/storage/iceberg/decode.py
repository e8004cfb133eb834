"""One-line decoders of a blob, for every engine that may read the tables: numpy, pyarrow, Polars, DuckDB.

A blob is one sequence or vector as little-endian numbers of a fixed width, oldest element first, without a header:
its length in bytes over the width is its number of elements. The lines below are written into the table property
`reqdedup.decode` and, for numpy, into each column's doc, so that a table explains itself.
"""

from __future__ import annotations

from reqdedup.schema import NUMBER_WIDTH_BYTES, Column

_NUMPY = {"int32": "<i4", "int64": "<i8", "float32": "<f4", "float64": "<f8"}
_POLARS = {"int32": "pl.Int32", "int64": "pl.Int64", "float32": "pl.Float32", "float64": "pl.Float64"}
_DUCKDB = {"int32": "INTEGER", "int64": "BIGINT", "float32": "FLOAT", "float64": "DOUBLE"}


def decoders(column: Column) -> dict[str, str]:
    """One line per engine that turns the column's blobs into numbers.

    numpy: an expression of `blob` (bytes).  pyarrow: of `array` (a binary or dictionary-encoded array), a list array.
    polars: an expression for `select`.  duckdb: a SQL expression; linear in the length, about 1 us per element.
    Raises ValueError for a column that holds no blobs.
    """
    if not column.is_blob:
        raise ValueError(f"column {column.name}: a sequence or vector required, found a {column.kind.value}")
    name, dtype, width = column.name, column.dtype, NUMBER_WIDTH_BYTES[column.dtype]
    numpy = f"np.frombuffer(blob, '{_NUMPY[dtype]}')"
    reversed_bytes = " || ".join(f"e[{2 * byte - 1}:{2 * byte}]" for byte in range(width, 0, -1))
    return {
        "numpy": numpy,
        "pyarrow": f"pa.array([np.frombuffer(blob, '{_NUMPY[dtype]}') for blob in array.to_pylist()], "
        f"pa.list_(pa.{dtype}()))",
        "polars": f"pl.col('{name}').map_elements(lambda blob: np.frombuffer(blob, '{_NUMPY[dtype]}'), "
        f"return_dtype=pl.List({_POLARS[dtype]}))",
        "duckdb": f"[unhex({reversed_bytes})::BIT::{_DUCKDB[dtype]} "
        f"for e in regexp_extract_all(hex(\"{name}\"), '.{{{2 * width}}}')]",
    }


def blob_doc(column: Column) -> str:
    """The column doc of a blob column: what it means, and how it decodes."""
    form = f"{column.width} little-endian {column.dtype}" if column.width else f"little-endian {column.dtype}s"
    decode = f"{form}; decode: {decoders(column)['numpy']}"
    return f"{column.doc} ({decode})" if column.doc else decode
