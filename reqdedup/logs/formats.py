"""Files of a log as blocks of mapped columns: which files, of which kind, and those of delimited text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.logs.blocks import Block, resolve_columns
from reqdedup.logs.checks import ENCODING, Check, LogError, Rejects, UnreadableFile
from reqdedup.logs.json_lines import json_blocks
from reqdedup.logs.mapping import LogMapping
from reqdedup.logs.parquet import parquet_blocks
from reqdedup.logs.records import header_fields, join_quoted, sniff_separator, split_records
from reqdedup.logs.text import BLOCK_BYTES, COMPRESSED, line_blocks
from reqdedup.logs.values import split_text

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
_NO_LOG = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|citation|(md5|sha\d*|check)[._-]?sums?|md5|sha\d+)\b.*\.(txt|json)$",
    re.IGNORECASE,
)
"""Names of what lies beside a log, though it has an ending that a log may have."""

_SNIFFED_BYTES = 2**16
_SNIFFED_LINES = 50
UNCLEAR_ESCAPE = (
    'a record that is the same with \\" as an escaped quote and as the end of a field required; '
    "say which it is in the mapping, escape = '\\' or escape = ''"
)


def find_files(path: Path, mapping: LogMapping) -> tuple[list[Path], list[Path]]:
    """The files of a log in order of their names, and those of the folder that are none.

    The file itself, or those of a folder that fit the mapping's `files`. Without these, those with an ending of a
    format that are not hidden, in no hidden folder, and not named as what comes with data sets: README, LICENSE,
    checksums. Raises LogError if there is none.
    """
    if path.is_file():
        return [path], []
    if not path.exists():
        raise LogError(f"{path}: a file or folder with a log required, found nothing there; check the path")
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    shown = [file for file in inside if not _is_hidden(file.relative_to(path))]
    for pattern in mapping.files:
        chosen = [file for file in shown if fnmatch(file.name, pattern) or fnmatch(_plain(file).name, pattern)]
        if chosen:
            return chosen, []
    if not mapping.files:
        chosen = [file for file in shown if _is_log(_plain(file))]
        if chosen:
            return chosen, [file for file in inside if file not in set(chosen)]
    wanted = ", ".join(mapping.files) or ", ".join(f"*{suffix}" for suffix in _FORMAT_OF_SUFFIX)
    found = ", ".join(file.name for file in inside[:5]) or "no file at all"
    raise LogError(
        f"{path}: files like {wanted} required, found {found}; name the file, or `files` in the mapping"
        + ("" if mapping.files or not inside else ". Hidden files, README, licences and checksums are no log")
    )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in path.parts)


def _is_log(path: Path) -> bool:
    return path.suffix.lower() in _FORMAT_OF_SUFFIX and not _NO_LOG.match(path.name)


def read_size(path: Path, mapping: LogMapping) -> int:
    """Bytes of a file's rows once decompressed, roughly; 0 if it cannot be read."""
    if not _is_utf8(str(path)):
        return 0
    try:
        if format_of(path, mapping) == "parquet":
            metadata = pq.read_metadata(path)
            return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        return path.stat().st_size * (5 if path.suffix.lower() in COMPRESSED else 1)
    except (OSError, pa.ArrowInvalid):
        return 0


def read_blocks(
    path: Path, mapping: LogMapping, rejects: Rejects, file: int, *, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Blocks of a file's rows; rows that cannot be split are rejected.

    Raises UnreadableFile if the file or the rest of it cannot be read.
    """
    if not _is_utf8(str(path)):
        raise UnreadableFile("unreadable", "a file name of UTF-8 required; rename the file")
    kind = format_of(path, mapping)
    if kind == "parquet":
        yield from parquet_blocks(path, mapping, rejects, file)
    elif kind == "jsonl":
        yield from json_blocks(path, mapping, rejects, file, block_bytes)
    else:
        yield from _text_blocks(path, mapping, rejects, file, block_bytes)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def format_of(path: Path, mapping: LogMapping) -> str:
    """csv, tsv, jsonl or parquet: what the mapping says, else the file's ending, else csv."""
    return mapping.format or _FORMAT_OF_SUFFIX.get(_plain(path).suffix.lower(), "csv")


def _text_blocks(path: Path, mapping: LogMapping, rejects: Rejects, file: int, block_bytes: int) -> Iterator[Block]:
    lines = line_blocks(path, block_bytes)
    separator = _separator(path, mapping)
    names: list[str] = []
    fields: dict[str, str] = {}
    for block in join_quoted(lines, separator, mapping.escape, quotes=mapping.quotes):
        frame = block.frame.with_columns(pl.lit(file, pl.UInt32).alias("file"))
        if frame.is_empty():
            continue
        if not names:
            names, has_header = _header(frame["raw"][0], separator, mapping)
            fields = {name: f"field_{names.index(column)}" for name, column in resolve_columns(mapping, names).items()}
            frame = frame.slice(int(has_header))
        split = split_records(
            rejects.split(frame, [ENCODING]), separator, len(names), mapping.escape, quotes=mapping.quotes
        )
        found = pl.col("num_fields_found")
        balanced = pl.format(f"{len(names)} fields required, found {{}}", found)
        counted = (
            pl.when(found > 0)
            .then(balanced)
            .when(found == 0)
            .then(pl.lit("balanced quotes required"))
            .otherwise(pl.lit(UNCLEAR_ESCAPE))
        )
        good = rejects.split(
            split,
            [
                Check("truncated", (pl.col("line") == block.unfinished) & found.is_between(0, len(names) - 1), counted),
                Check("fields", found != len(names), counted),
            ],
        )
        columns = []
        for name, field in fields.items():
            separated = mapping.list_separators.get(name)
            columns.append(_field(field, separated, mapping.missing_texts, name=name).alias(name))
        yield Block(good.select("line", "raw", *columns), block.num_bytes)


def _field(field: str, separator: str | None, missing: list[str], *, name: str) -> pl.Expr:
    """A field as it stands or as the pieces of its text, null where it means missing."""
    if separator is None:
        return pl.when(~pl.col(field).is_in(missing)).then(pl.col(field))
    pieces = split_text(pl.col(field), separator)
    if name == "history":
        return pieces
    if name.startswith("label "):
        pieces = pl.when(~pl.col(field).is_in(missing)).then(pieces)
    return pieces.list.eval(pl.when(~pl.element().is_in(missing)).then(pl.element()))


def _separator(path: Path, mapping: LogMapping) -> str:
    """The separator that the mapping names, or that the first lines show."""
    if mapping.separator or mapping.format == "tsv":
        return mapping.separator or "\t"
    wanted = {column for columns in mapping.sources().values() for column in columns} if mapping.header else set()
    lines: list[str] = []
    try:
        for block in line_blocks(path, _SNIFFED_BYTES):
            lines += [line for line in block.frame["raw"].str.strip_chars_end("\r") if line]
            if lines:
                break
    except UnreadableFile:
        pass  # what came before it is there; the reading itself says it again
    suffix = _plain(path).suffix.lower()
    return (
        sniff_separator(lines[:_SNIFFED_LINES], suffix, wanted=wanted, num_columns=len(mapping.columns))
        if lines
        else ","
    )


def _header(first: str, separator: str, mapping: LogMapping) -> tuple[list[str], bool]:
    """Names of the fields, and whether the first record is a header."""
    fields = header_fields(first, separator, mapping.escape)
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
