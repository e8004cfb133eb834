"""JSON Lines as frames of mapped columns: every line is an object, a key that it lacks is null."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import polars as pl

from reqdedup.logs.blocks import ID_NAMES, Block, lists_of_texts, unknown_labels, with_unfit
from reqdedup.logs.checks import ENCODING, Check, Rejects
from reqdedup.logs.mapping import LogMapping
from reqdedup.logs.records import without_blanks
from reqdedup.logs.text import line_blocks
from reqdedup.logs.values import split_text

_DIGITS = r"^(0|-?[1-9][0-9]*)$"
_DIGITS_AND_ZERO = r"^(0|-?[1-9][0-9]{0,14})\.0$"


def json_blocks(path: Path, mapping: LogMapping, rejects: Rejects, file: int, block_bytes: int) -> Iterator[Block]:
    """Blocks of a file's rows; lines that are no JSON objects, or have a mapped key twice, are rejected."""
    keys = sorted({key for keys in mapping.sources().values() for key in keys})
    kind = "CASE WHEN json_valid(raw) THEN json_type(raw) END"
    names = ", ".join(_quoted(key) for key in keys)
    mapped = f"CASE WHEN {kind} = 'OBJECT' THEN list_filter(json_keys(raw), lambda key: key IN ({names})) END"
    connection = duckdb.connect()
    try:
        for block in line_blocks(path, block_bytes):
            frame = without_blanks(block.frame).with_columns(pl.lit(file, pl.UInt32).alias("file"))
            found = _sql(connection, frame, f"SELECT {kind} AS kind, {mapped} AS keys FROM lines")
            unfinished = (pl.col("line") == block.unfinished) & pl.lit(found["kind"]).is_null()
            twice = pl.lit(found["keys"].list.n_unique() < found["keys"].list.len())
            array = pl.when(pl.col("raw").str.starts_with("[")).then(pl.lit(", not an array of them: one a line"))
            good = rejects.split(
                frame,
                [
                    ENCODING,
                    Check("truncated", unfinished, pl.lit("a whole JSON object required")),
                    Check(
                        "json",
                        pl.lit(found["kind"]).ne_missing("OBJECT"),
                        pl.format("a JSON object required{}", array.otherwise(pl.lit(""))),
                    ),
                    Check("json", twice, pl.lit("every key once required")),
                ],
            )
            if not good.is_empty():
                yield Block(_read_values(connection, good, keys, mapping), block.num_bytes)
    finally:
        connection.close()


def _read_values(
    connection: duckdb.DuckDBPyConnection, good: pl.DataFrame, keys: Sequence[str], mapping: LogMapping
) -> pl.DataFrame:
    """Columns line and raw, and the mapped ones: of several keys for one, the first that is not null on a line."""
    sources, separators = mapping.sources(), mapping.list_separators
    paths = ", ".join(_quoted(_pointer(key)) for key in keys)
    columns = [f"json_type(raw, [{paths}]) AS kinds", f"json_extract_string(raw, [{paths}]) AS texts"]
    with_elements = {key for name, names in sources.items() if name in separators for key in names}
    for number in sorted(keys.index(key) for key in with_elements):
        array = f"json_extract(raw, {_quoted(_pointer(keys[number]))})"
        columns.append(f"json_type({array}, '$[*]') AS kinds_{number}")
        columns.append(f"json_extract_string({array}, '$[*]') AS texts_{number}")
    found = _sql(connection, good, f"SELECT {', '.join(columns)} FROM lines")
    columns_of: list[pl.Expr] = []
    for name, names in sources.items():
        numbers = [keys.index(key) for key in names]
        kinds = [pl.col("kinds").list.get(number).replace("NULL", None) for number in numbers]
        kind, text = pl.coalesce(kinds), pl.coalesce(pl.col("texts").list.get(number) for number in numbers)
        value, unfit = _fitting(kind, text, is_id=name in ID_NAMES)
        columns_of += [value.alias(name), unfit.alias(f"unfit {name}")]
        if name in separators:
            columns_of.append((kind == "ARRAY").fill_null(False).alias(f"array {name}"))
            for of in ("kinds", "texts"):
                of_keys = [pl.when(kind.is_not_null()).then(f"{of}_{number}") for kind, number in zip(kinds, numbers)]
                columns_of.append(pl.when(kind == "ARRAY").then(pl.coalesce(of_keys)).alias(f"{of} {name}"))
    read = found.select(columns_of)
    values = {name: read[name] for name in sources}
    unfits = {name: read[f"unfit {name}"] for name in sources}
    for name in separators.keys() & sources.keys():
        values[name], unfits[name] = _lists(read, name, separators[name])
    return with_unfit(good.select("line", "raw").hstack([values[name].alias(name) for name in sources]), unfits)


def _fitting(kind: pl.Expr, text: pl.Expr, *, is_id: bool) -> tuple[pl.Expr, pl.Expr]:
    """Texts of values that fit, and what is wrong with the others."""
    nested = pl.when(kind.is_in(["OBJECT", "ARRAY"])).then(pl.format("is an {}", kind.str.to_lowercase()))
    if not is_id:
        return pl.when(nested.is_null()).then(text), nested
    whole = text.str.contains(_DIGITS) | text.str.contains(_DIGITS_AND_ZERO)
    fraction = pl.when((kind == "DOUBLE") & ~whole).then(pl.lit("is not a whole number"))
    unfit = pl.coalesce(nested, pl.when(kind == "BOOLEAN").then(pl.lit("is a boolean")), fraction)
    digits = pl.when(kind == "DOUBLE").then(text.str.strip_suffix(".0")).otherwise(text)
    return pl.when(unfit.is_null()).then(digits), unfit


def _lists(read: pl.DataFrame, name: str, separator: str) -> tuple[pl.Series, pl.Series]:
    """Lists of texts, the elements of an array or the pieces of a text, and what does not fit."""
    elements = read.select(
        pl.col(f"kinds {name}", f"texts {name}").list.explode(keep_nulls=False, empty_as_null=False).name.keep()
    )
    text, reason = _fitting(pl.col(f"kinds {name}"), pl.col(f"texts {name}"), is_id=name in ID_NAMES)
    elements = elements.select(text=text, unfit=reason)
    length_R = read[f"kinds {name}"].list.len().fill_null(0).to_numpy()
    of_arrays, unfit = lists_of_texts(elements["text"], elements["unfit"], length_R)
    pieces = read.select(split_text(pl.col(name), separator)).to_series()
    is_array = read[f"array {name}"]
    lists = unknown_labels(name, of_arrays.zip_with(is_array, pieces), is_array | read[name].is_not_null())
    return lists, unfit.zip_with(is_array, read[f"unfit {name}"])


def _pointer(key: str) -> str:
    """JSON pointer to a key: unlike a path it takes every key, `*` and an empty one included."""
    return "/" + key.replace("~", "~0").replace("/", "~1")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _sql(connection: duckdb.DuckDBPyConnection, lines: pl.DataFrame, query: str) -> pl.DataFrame:
    connection.register("lines", lines.select("raw").to_arrow())
    frame = pl.from_arrow(connection.sql(query).to_arrow_table())
    assert isinstance(frame, pl.DataFrame)
    return frame
