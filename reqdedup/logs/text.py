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
_READ_BYTES = 2**18
_BINARY_STARTS = {
    b"PAR1": "Parquet",
    b"PK": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True)
class LineBlock:
    """Lines of a file: columns `line` (number, the first is 1), `raw` and `is_utf8`, blanks left out.

    unfinished: number of the last line where the file ends without a line feed, else 0.
    """

    frame: pl.DataFrame
    num_bytes: int
    unfinished: int


def line_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """Blocks of about `block_bytes`; raises UnreadableFile where the file, or its rest, cannot be read."""
    next_line, carry, error = 1, b"", ""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            at_end = False
            while not at_end:
                read, at_end, error = _read_up_to(stream, block_bytes)
                data = carry + read
                if next_line == 1:
                    data = _check_start(data)
                cut = len(data) if at_end and not error else data.rfind(b"\n") + 1
                if cut == 0 and len(data) > MAX_LINE_BYTES:
                    raise UnreadableFile("unreadable", f"a line of more than {MAX_LINE_BYTES:,} bytes", next_line)
                body, carry = data[:cut], data[cut:]
                if body:
                    block, num_lines = _cut_lines(body, next_line, at_end)
                    next_line += num_lines
                    yield block
    except OSError as problem:
        error = _one_line(problem)
    if error:
        raise UnreadableFile("unreadable", error, next_line)


def _read_up_to(stream: pa.NativeFile, num_bytes: int) -> tuple[bytes, bool, str]:
    """Bytes, whether the file ends with them, and what is wrong with what follows: what came before it is kept."""
    pieces: list[bytes] = []
    size = 0
    while size < num_bytes:
        try:
            piece = stream.read(min(_READ_BYTES, num_bytes - size))
        except (OSError, pa.ArrowInvalid) as problem:
            return b"".join(pieces), True, _one_line(problem)
        if not piece:
            return b"".join(pieces), True, ""
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces), False, ""


def _check_start(data: bytes) -> bytes:
    if data.startswith(b"\xef\xbb\xbf"):
        return data[3:]
    for start, kind in _BINARY_STARTS.items():
        if data.startswith(start):
            advice = "convert it with iconv" if kind == "UTF-16" else "name the right format"
            raise UnreadableFile("unreadable", f"UTF-8 text required, found {kind}; {advice}", 1)
    if 10 * data[:4096].count(0) > len(data[:4096]):
        raise UnreadableFile("unreadable", "UTF-8 text required, found binary data", 1)
    return data


def _cut_lines(body: bytes, first_line: int, at_end: bool) -> tuple[LineBlock, int]:
    unfinished = at_end and not body.endswith(b"\n")
    try:
        body.decode()
    except UnicodeDecodeError:
        lines = body.split(b"\n") if unfinished else body[:-1].split(b"\n")
        good = pl.Series("is_utf8", [_is_utf8(line) for line in lines], dtype=pl.Boolean)
        raw = pl.Series("raw", [line.decode(errors="backslashreplace") for line in lines], dtype=pl.String)
    else:
        ends = np.flatnonzero(np.frombuffer(body, np.uint8) == 10) + 1
        offsets = np.concatenate([[0], ends, [len(body)] if unfinished else []]).astype(np.int32)
        lines_array = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(body))
        raw = pl.Series("raw", lines_array, dtype=pl.String)
        good = pl.repeat(True, len(raw), eager=True).alias("is_utf8")
    numbers = pl.Series("line", np.arange(first_line, first_line + len(raw)), dtype=pl.Int64)
    frame = pl.DataFrame([numbers, raw, good]).with_columns(pl.col("raw").str.strip_chars_end("\r\n"))
    frame = frame.filter(pl.col("raw") != "")
    last = first_line + len(raw) - 1
    return LineBlock(frame, len(body), last if unfinished else 0), len(raw)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


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
    repaired = counted.filter(quoted).drop(schema).hstack(pl.DataFrame(slow, schema=schema, orient="row"))
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
