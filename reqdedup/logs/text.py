"""Text files as blocks of numbered lines, and lines as fields: CSV, TSV, any separator.

Lines are cut at line feeds and fields at separators, vectorised; a line that holds a quote goes through the csv module
by itself. So a stray quote costs its own line and not the rest of the file. The price: a quoted field cannot hold a
line feed. Compressed files (.gz, .bz2, .zst) are read as they are.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from reqdedup.logs.checks import UnreadableFile

BLOCK_BYTES = 16 * 2**20
MAX_LINE_BYTES = 256 * 2**20
_BINARY_STARTS = {
    b"PAR1": "Parquet",
    b"PK": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True)
class LineBlock:
    """Lines of a file: columns `line` (number, the first is 1) and `raw` (null where it is not UTF-8), blanks left out.

    unfinished: number of the last line where the file ends without a line feed, else 0.
    """

    frame: pl.DataFrame
    num_bytes: int
    unfinished: int


def line_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """Blocks of about `block_bytes`; raises UnreadableFile where the file, or its rest, cannot be read."""
    next_line = 1
    carry = b""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            while True:
                read = stream.read(block_bytes)
                at_end = not read
                data = carry + read
                if next_line == 1 and not at_end:
                    data = _check_start(data)
                cut = len(data) if at_end else data.rfind(b"\n") + 1
                if not at_end and cut == 0 and len(data) > MAX_LINE_BYTES:
                    raise UnreadableFile("unreadable", f"a line of more than {MAX_LINE_BYTES:,} bytes", next_line)
                body, carry = data[:cut], data[cut:]
                if body:
                    block, num_lines = _cut_lines(body, next_line, at_end)
                    next_line += num_lines
                    yield block
                if at_end:
                    return
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise UnreadableFile("unreadable", _one_line(error), next_line) from None


def _check_start(data: bytes) -> bytes:
    if data.startswith(b"\xef\xbb\xbf"):
        return data[3:]
    for start, kind in _BINARY_STARTS.items():
        if data.startswith(start):
            advice = "convert it with iconv" if kind == "UTF-16" else "name the right format"
            raise UnreadableFile("unreadable", f"UTF-8 text required, found {kind}; {advice}", 1)
    if b"\0" in data[:4096]:
        raise UnreadableFile("unreadable", "UTF-8 text required, found binary data", 1)
    return data


def _cut_lines(body: bytes, first_line: int, at_end: bool) -> tuple[LineBlock, int]:
    unfinished = at_end and not body.endswith(b"\n")
    try:
        body.decode()
    except UnicodeDecodeError:
        lines = body.split(b"\n") if unfinished else body[:-1].split(b"\n")
        raw = pl.Series("raw", [_decoded(line) for line in lines], dtype=pl.String)
    else:
        ends = np.flatnonzero(np.frombuffer(body, np.uint8) == 10) + 1
        offsets = np.concatenate([[0], ends, [len(body)] if unfinished else []]).astype(np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(body)]
        lines_array = pa.StringArray.from_buffers(len(offsets) - 1, buffers[1], buffers[2])
        raw = pl.Series("raw", lines_array, dtype=pl.String)
    numbers = pl.Series("line", np.arange(first_line, first_line + len(raw)), dtype=pl.Int64)
    frame = pl.DataFrame([numbers, raw]).with_columns(pl.col("raw").str.strip_chars_end("\r\n"))
    frame = frame.filter(pl.col("raw").is_null() | (pl.col("raw") != ""))
    last = first_line + len(raw) - 1
    return LineBlock(frame, len(body), last if unfinished else 0), len(raw)


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def split_fields(line: str, separator: str) -> list[str]:
    """Fields of one line; quotes count where the separator is one character other than tab."""
    if _knows_quotes(separator) and '"' in line:
        return next(csv.reader([line], delimiter=separator, strict=True))
    return line.split(separator)


def split_lines(frame: pl.DataFrame, separator: str, num_fields: int) -> pl.DataFrame:
    """Lines as columns field_0 .. field_{num_fields - 1} and `num_fields_found` (0: unbalanced quotes).

    frame: columns line, raw, without nulls. Rows with another number of fields keep what fits.
    """
    fields = [f"field_{k}" for k in range(num_fields)]
    parts = frame.with_columns(pl.col("raw").str.splitn(separator, num_fields + 1).alias("_parts")).unnest("_parts")
    counted = parts.with_columns(
        (pl.col("raw").str.count_matches(separator, literal=True) + 1).cast(pl.Int64).alias("num_fields_found")
    ).drop(f"field_{num_fields}")
    if not _knows_quotes(separator):
        return counted
    quoted = pl.col("raw").str.contains('"', literal=True)
    if not counted.select(quoted.any()).item():
        return counted
    slow = [_quoted_fields(line, separator, num_fields) for line in counted.filter(quoted)["raw"]]
    schema = dict.fromkeys(fields, pl.String) | {"num_fields_found": pl.Int64}
    repaired = counted.filter(quoted).select("line", "raw").hstack(pl.DataFrame(slow, schema=schema, orient="row"))
    return pl.concat([counted.filter(~quoted), repaired.select(counted.columns)]).sort("line")


def _quoted_fields(line: str, separator: str, num_fields: int) -> list[str | int | None]:
    try:
        found = split_fields(line, separator)
    except csv.Error:
        return [*[None] * num_fields, 0]
    kept: list[str | int | None] = [*found[:num_fields], *[None] * (num_fields - len(found))]
    return [*kept, len(found)]


def _knows_quotes(separator: str) -> bool:
    return len(separator) == 1 and separator != "\t"


def guess_separator(first_line: str, suffix: str) -> str:
    """:: where the first line has one, else the separator that it holds most often; tab where it holds none."""
    if "::" in first_line:
        return "::"
    if suffix == ".tsv":
        return "\t"
    counts = {separator: first_line.count(separator) for separator in ("\t", ",", ";", "|")}
    best = max(counts, key=lambda separator: counts[separator])
    return best if counts[best] else ("," if suffix == ".csv" else "\t")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
