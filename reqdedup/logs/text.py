"""Text files as blocks of numbered lines, cut at line feeds and decoded as UTF-8.

What a line means is decided elsewhere: `records` puts together the lines of a quoted field, `json_lines` takes each as
an object. Compressed files (.gz, .bz2, .zst) are read as they are.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from reqdedup.logs.checks import UnreadableFile

BLOCK_BYTES = 16 * 2**20
MAX_LINE_BYTES = 256 * 2**20
_READ_BYTES = 2**18
_START_BYTES = 4096
_BINARY_STARTS = (
    (re.compile(rb"PAR1[\x00-\x08\x0e-\x1f]"), "Parquet"),  # a header of text may begin with PAR1 or PK, too
    (re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)"), "a zip archive"),
    (re.compile(rb"\x1f\x8b|BZh[1-9]1AY&SY|\x28\xb5\x2f\xfd|\xfd7zXZ\x00"), "a file that is compressed twice"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "UTF-16"),
)
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz", ".lz4": "lz4"}
"""Endings of compressed files, which stand after that of their format."""

_COMPRESSED_STARTS = (
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"), "bz2"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "zstd"),
    (re.compile(rb"\xfd7zXZ\x00"), "xz"),
    (re.compile(rb"\x04\x22\x4d\x18"), "lz4"),
)


@dataclass(frozen=True)
class LineBlock:
    """Lines of a file: columns `line` (number, the first is 1), `raw` (without its line feed) and `is_utf8`.

    unfinished: number of the last line if the file ends without a line feed, else 0.
    """

    frame: pl.DataFrame
    num_bytes: int
    unfinished: int


def line_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """Blocks of about `block_bytes`; raises UnreadableFile if the file, or its rest, cannot be read."""
    next_line, error = 1, ""
    carry: list[bytes] = []  # pieces of a line that has not ended: joined once, however long it grows
    carried = 0
    try:
        with _open(path) as stream:
            at_end = False
            while not at_end:
                read, at_end, error = _read_up_to(stream, block_bytes)
                if next_line == 1 and carried < _START_BYTES:
                    read, carry, carried = _check_start(b"".join([*carry, read])), [], 0
                is_last = at_end and not error
                cut = len(read) if is_last else read.rfind(b"\n") + 1
                carry.append(read[:cut] if cut else read)
                carried += len(carry[-1])
                if not cut and not is_last:
                    if carried > MAX_LINE_BYTES:
                        raise UnreadableFile("unreadable", f"a line of more than {MAX_LINE_BYTES:,} bytes", next_line)
                    continue
                body = b"".join(carry)
                carry, carried = [read[cut:]], len(read) - cut
                if body:
                    block, num_lines = _cut_lines(body, next_line, at_end)
                    next_line += num_lines
                    yield block
    except OSError as problem:
        error = one_line(problem)
    if error:
        raise UnreadableFile("unreadable", error, next_line)


def _open(path: Path) -> AbstractContextManager[pa.NativeFile | lzma.LZMAFile]:
    """The bytes of a file, uncompressed."""
    with path.open("rb") as file:
        start = file.read(10)
    kind = next((kind for pattern, kind in _COMPRESSED_STARTS if pattern.match(start)), None)
    return lzma.open(path) if kind == "xz" else pa.input_stream(str(path), compression=kind)


def _read_up_to(stream: pa.NativeFile | lzma.LZMAFile, num_bytes: int) -> tuple[bytes, bool, str]:
    """Bytes, whether the file ends with them, and what is wrong with what follows: what came before it is kept."""
    pieces: list[bytes] = []
    size = 0
    while size < num_bytes:
        try:
            piece = stream.read(min(_READ_BYTES, num_bytes - size))
        except (OSError, EOFError, lzma.LZMAError, pa.ArrowInvalid) as problem:
            return b"".join(pieces), True, one_line(problem)
        if not piece:
            return b"".join(pieces), True, ""
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces), False, ""


def _check_start(data: bytes) -> bytes:
    if data.startswith(b"\xef\xbb\xbf"):
        return data[3:]
    for start, kind in _BINARY_STARTS:
        if start.match(data):
            advice = "convert it with iconv" if kind == "UTF-16" else "name the right format, or unpack it"
            raise UnreadableFile("unreadable", f"UTF-8 text required, found {kind}; {advice}", 1)
    if 10 * data[:_START_BYTES].count(0) > len(data[:_START_BYTES]):
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
    frame = pl.DataFrame([numbers, raw, good]).with_columns(pl.col("raw").str.strip_suffix("\n"))
    last = first_line + len(raw) - 1
    return LineBlock(frame, len(body), last if unfinished else 0), len(raw)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
