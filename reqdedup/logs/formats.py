"""Files of a log as frames with the mapped columns under internal names, and the line that each row stands on.

Text, JSON Lines and Parquet give the same frame: one column per name of `LogMapping.sources()`, plus `line` and `raw`
(the text of the row, null for Parquet). Values of text are strings; a list is a string that starts with LIST_MARK and
holds its elements between LIST_MARKs, so that lists and separated text go the same way from here on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.logs.checks import Check, LogError, Rejects, UnreadableFile
from reqdedup.logs.mapping import LogMapping
from reqdedup.logs.text import BLOCK_BYTES, guess_separator, line_blocks, split_fields, split_lines

LIST_MARK = "\x1f"
_FORMAT_OF_SUFFIX = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".dat": "csv",
    ".data": "csv",
    ".txt": "csv",
    ".inter": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSED = (".gz", ".bz2", ".zst")
_TYPED_HEADER = ("token", "token_seq", "float", "float_seq")

_ENCODING = Check("encoding", ~pl.col("is_utf8"), pl.lit("UTF-8 required; convert the file with iconv"))


@dataclass(frozen=True)
class Block:
    """Some rows of one file and the bytes that they were read from."""

    frame: pl.DataFrame
    num_bytes: int


def find_files(path: Path, mapping: LogMapping) -> list[Path]:
    """The files of a log in order of their names: the file itself, or those of a folder that fit the mapping."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise LogError(f"{path}: a file or folder with a log required, found nothing there; check the path")
    inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith((".", "_")))
    for pattern in mapping.files:
        chosen = [file for file in inside if fnmatch(file.name, pattern) or fnmatch(_plain(file).name, pattern)]
        if chosen:
            return chosen
    if not mapping.files:
        chosen = [file for file in inside if _plain(file).suffix.lower() in _FORMAT_OF_SUFFIX]
        if chosen:
            return chosen
    wanted = ", ".join(mapping.files) or ", ".join(f"*{suffix}" for suffix in _FORMAT_OF_SUFFIX)
    found = ", ".join(file.name for file in inside[:5]) or "no file at all"
    raise LogError(f"{path}: files like {wanted} required, found {found}; name the file, or `files` in the mapping")


def read_size(path: Path, mapping: LogMapping) -> int:
    """Bytes of a file's rows once decompressed, roughly; 0 where it cannot be read."""
    try:
        if _format(path, mapping) == "parquet":
            metadata = pq.read_metadata(path)
            return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        return path.stat().st_size * (5 if path.suffix.lower() in _COMPRESSED else 1)
    except (OSError, pa.ArrowInvalid):
        return 0


def read_blocks(
    path: Path, mapping: LogMapping, rejects: Rejects, file: int, *, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Blocks of a file's rows; lines that cannot be split are rejected. Raises UnreadableFile for the file or its rest."""
    kind = _format(path, mapping)
    if kind == "parquet":
        yield from _parquet_blocks(path, mapping, rejects, file)
    elif kind == "jsonl":
        yield from _json_blocks(path, mapping, rejects, file, block_bytes)
    else:
        yield from _text_blocks(path, mapping, rejects, file, block_bytes)


def _plain(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path


def _format(path: Path, mapping: LogMapping) -> str:
    return mapping.format or _FORMAT_OF_SUFFIX.get(_plain(path).suffix.lower(), "csv")


def _resolve(mapping: LogMapping, available: Sequence[str]) -> dict[str, str]:
    """Internal name -> column of this file; raises UnreadableFile naming what is missing."""
    found, missing = {}, []
    for name, candidates in mapping.sources().items():
        column = next((column for column in candidates if column in available), None)
        if column is None:
            missing.append(" or ".join(candidates))
        else:
            found[name] = column
    if missing:
        raise UnreadableFile(
            "missing_columns",
            f"columns {', '.join(missing)} required, found {', '.join(available) or 'none'}; "
            "change the mapping, or name the fields with `columns` where the file has no header",
            1,
        )
    return found


def _text_blocks(path: Path, mapping: LogMapping, rejects: Rejects, file: int, block_bytes: int) -> Iterator[Block]:
    separator = ""
    names: list[str] = []
    columns: dict[str, str] = {}
    for block in line_blocks(path, block_bytes):
        frame = rejects.split(
            block.frame.with_columns(pl.lit(file, pl.UInt32).alias("file")),
            [_ENCODING],
        )
        if not columns:
            if frame.is_empty():
                continue
            first = frame["raw"][0]
            separator = (
                mapping.separator
                or ("\t" if mapping.format == "tsv" else None)
                or guess_separator(first, _plain(path).suffix.lower())
            )
            names, has_header = _header(first, separator, mapping)
            columns = _resolve(mapping, names)
            if has_header:
                frame = frame.slice(1)
        split = split_lines(frame, separator, len(names))
        found = pl.col("num_fields_found")
        short = (pl.col("line") == block.unfinished) & (found < len(names)) & (found > 0)
        counted = pl.format(f"{len(names)} fields required, found {{}}", found)
        good = rejects.split(
            split,
            [
                Check("truncated", short, counted),
                Check("fields", found == 0, pl.lit("balanced quotes required")),
                Check("fields", found != len(names), counted),
            ],
        )
        fields = {name: f"field_{names.index(column)}" for name, column in columns.items()}
        selected = [pl.col(field).alias(name) for name, field in fields.items()]
        yield Block(good.select("line", "raw", *selected), block.num_bytes)


def _header(first: str, separator: str, mapping: LogMapping) -> tuple[list[str], bool]:
    """Names of the fields, and whether the first line is a header."""
    try:
        fields = [field.strip() for field in split_fields(first, separator)]
    except csv.Error:
        fields = []
    typed = [field.rpartition(":") for field in fields]
    if fields and all(kind in _TYPED_HEADER and name for name, _, kind in typed):
        fields = [name for name, _, _ in typed]
    wanted = {column for columns in mapping.sources().values() for column in columns}
    if mapping.header is True or (mapping.header == "auto" and wanted & set(fields)):
        return fields, True
    if not mapping.columns:
        raise UnreadableFile(
            "missing_columns",
            f"a header with {', '.join(sorted(wanted))} required, found {first[:100]!r}; "
            "name the fields with `columns` in the mapping",
            1,
        )
    return list(mapping.columns), False


def _json_blocks(path: Path, mapping: LogMapping, rejects: Rejects, file: int, block_bytes: int) -> Iterator[Block]:
    columns: dict[str, str] = {}
    connection = duckdb.connect()
    try:
        for block in line_blocks(path, block_bytes):
            frame = block.frame.with_columns(pl.lit(file, pl.UInt32).alias("file"))
            connection.register("lines", frame.select("raw").to_arrow())
            kind = "CASE WHEN json_valid(raw) THEN json_type(raw) END AS kind"
            kinds = _sql(connection, f"SELECT {kind} FROM lines")["kind"]
            is_object = pl.lit(kinds == "OBJECT").fill_null(False)
            unfinished = (pl.col("line") == block.unfinished) & pl.lit(kinds).is_null()
            good = rejects.split(
                frame,
                [
                    _ENCODING,
                    Check("truncated", unfinished, pl.lit("a whole JSON object required")),
                    Check("json", ~is_object, pl.lit("a JSON object required")),
                ],
            )
            if good.is_empty():
                continue
            connection.register("lines", good.select("raw").to_arrow())
            if not columns:
                keys = _sql(connection, "SELECT DISTINCT unnest(json_keys(raw)) AS key FROM lines")["key"]
                columns = _resolve(mapping, sorted(keys))
            selected = ", ".join(f'{_json_value(column)} AS "{name}"' for name, column in columns.items())
            values = _sql(connection, f"SELECT {selected} FROM lines")
            yield Block(good.select("line", "raw").hstack(values), block.num_bytes)
    finally:
        connection.close()


def _json_value(column: str) -> str:
    quoted = column.replace("\\", "\\\\").replace('"', '\\"').replace("'", "''")
    key = f"'$.\"{quoted}\"'"
    elements = f"list_transform(json_extract_string(raw, '$.\"{quoted}\"[*]'), lambda element: coalesce(element, ''))"
    return (
        f"CASE json_type(raw, {key}) WHEN 'ARRAY' THEN chr(31) || array_to_string({elements}, chr(31)) "
        f"ELSE json_extract_string(raw, {key}) END"
    )


def _sql(connection: duckdb.DuckDBPyConnection, query: str) -> pl.DataFrame:
    frame = pl.from_arrow(connection.sql(query).to_arrow_table())
    assert isinstance(frame, pl.DataFrame)
    return frame


def _parquet_blocks(path: Path, mapping: LogMapping, rejects: Rejects, file: int) -> Iterator[Block]:
    try:
        parquet = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UnreadableFile("unreadable", f"a Parquet file required, found: {_one_line(error)}") from None
    with parquet:
        columns = _resolve(mapping, parquet.schema_arrow.names)
        wanted = sorted(set(columns.values()))
        first = 1
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            size = metadata.total_byte_size / max(1, metadata.num_rows)
            row = first
            try:
                for batch in parquet.iter_batches(row_groups=[group], columns=wanted):
                    frame = pl.from_arrow(batch)
                    assert isinstance(frame, pl.DataFrame)
                    values = [_parquet_value(column, frame.schema).alias(name) for name, column in columns.items()]
                    lines = pl.int_range(row, row + frame.height, dtype=pl.Int64, eager=True).alias("line")
                    row += frame.height
                    raw = pl.lit(None, pl.String).alias("raw")
                    yield Block(frame.select(lines, raw, *values), round(size * frame.height))
            except (OSError, pa.ArrowException) as error:
                lost = f"rows {row:,} to {first + metadata.num_rows - 1:,} cannot be read: {_one_line(error)}"
                rejects.add("unreadable", lost, file, row)
            first += metadata.num_rows


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _parquet_value(column: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    dtype, value = schema[column], pl.col(column)
    if isinstance(dtype, pl.List | pl.Array):
        texts = value.list if isinstance(dtype, pl.List) else value.arr.to_list().list
        return pl.lit(LIST_MARK) + texts.eval(pl.element().cast(pl.String).fill_null("")).list.join(LIST_MARK)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return value.cast(pl.String)
    if dtype == pl.Binary:
        return value.cast(pl.String, strict=False)
    return value
