"""Damaged logs for fuzzing: the same rows in every format, hostile bytes in them, and how many records a text has."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ("user", "item", "ts", "click", "price", "device", "note", "past")
MAPPING = {
    "user_id": "user",
    "item_id": "item",
    "time": {"column": "ts", "latest": "2026-01-01"},
    "labels": {"click": "click", "cheap": {"column": "price", "at_least": 4, "range": [0, 1e6]}},
    "item_columns": {"price": "float32", "note": "string"},
    "request_columns": {"device": "int32"},
    "history": {"column": "past"},
}
SEPARATORS = {"csv": ",", "tsv": "\t", "dat": "::"}
HOSTILE = [
    *(
        b'"',
        b'""',
        b' "',
        b'"\n',
        b'\n"',
        b"\n",
        b"\r\n",
        b"\r",
        b",",
        b"\t",
        b"::",
        b";",
        b" ",
        b"\\",
        b'\\"',
        b"'",
        b"",
    ),
    *(b"\x00", b"\x1f", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\xe2\x80\xa8"),
    *(b"NaN", b"inf", b"-inf", b"1e400", b"1e39", b"1e5", b"0x10", b"007", b"1.0", b"1.5", b"-0", b"+1", b"1_0"),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"9" * 40, b"2147483648", b"null"),
    *(b"{", b"}", b"[", b"]", b":", b'"a":', b"\\u0000", b"\\ud800", b"[1,[2]]", b'{"a":{}}', b"true", b"e", b"."),
    *(b"\n1,5,1700000000,1,1,1,x,\n", b"PK", b"PAR1", b"user,item,ts", b"2024-01-01", b"2024-02-30T00:00:00Z"),
]


def rows(rng: random.Random, count: int) -> list[dict]:
    notes = ("plain", "", 'say "hi"', "two\nlines", "a, b", "tab\tand::colons", "ünï")
    return [
        {
            "user": rng.randrange(5),
            "item": rng.randrange(50),
            "ts": 1_700_000_000 + rng.randrange(10**6),
            "click": rng.randrange(2),
            "price": rng.randrange(800) / 100,
            "device": rng.randrange(3),
            "note": rng.choice(notes),
            "past": " ".join(str(rng.randrange(50)) for _ in range(rng.randrange(4))),
        }
        for _ in range(count)
    ]


def as_text(log: list[dict], separator: str) -> bytes:
    def quoted(value: object) -> str:
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in (separator, '"', "\n")) else text

    return "".join(separator.join(quoted(row[name]) for name in COLUMNS) + "\n" for row in log).encode()


def as_json(log: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in log).encode()


def as_parquet(log: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(log), sink, row_group_size=7, compression="zstd")
    return sink.getvalue()


def mutate(data: bytes, rng: random.Random, changes: int) -> bytes:
    """The bytes after some replacements, insertions, cuts and repetitions."""
    body = bytearray(data)
    for _ in range(changes):
        place = rng.randrange(len(body) + 1)
        piece = rng.choice(HOSTILE) if rng.random() < 0.8 else rng.randbytes(rng.randrange(5))
        action = rng.random()
        if action < 0.7:
            body[place : place + rng.choice((0, 0, 1, 2, 9))] = piece
        elif action < 0.8:
            body[place:place] = body[place // 2 : place // 2 + rng.randrange(40)]
        elif action < 0.95:
            del body[place : place + rng.randrange(30)]
        else:
            del body[place:]
    return bytes(body)


def compress(data: bytes, suffix: str) -> bytes:
    return {".gz": gzip.compress, ".bz2": bz2.compress, "": bytes}[suffix](data)


def count_records(data: bytes, separator: str) -> int:
    """Records of delimited text, by the definition in plain loops over characters."""
    finished = data.endswith(b"\n")
    lines = data.decode(errors="backslashreplace").removeprefix("\ufeff").split("\n")
    lines = lines[:-1] if finished or not lines[-1] else lines
    count = first = 0
    while first < len(lines):
        last, state = first, state_after(lines[first], separator)
        text = lines[first]
        while state == "open" and last + 1 < len(lines):
            last += 1
            text += "\n" + lines[last]
            state = state_after(text, separator)
        if state == "broken" or (state == "open" and finished):
            last, text = first, lines[first]
        count += text.rstrip("\r\n") != ""
        first = last + 1
    return count


def state_after(text: str, separator: str) -> str:
    """Whether a record is closed or open after this text, or broken."""
    text = text[:-1] if text.endswith("\r") else text
    place = 0
    while True:
        start = place
        while " " not in separator and text.startswith(" ", start):
            start += 1
        if text.startswith('"', start):
            place = start + 1
            while True:
                quote = text.find('"', place)
                if quote < 0:
                    return "open"
                place = quote + 1
                if not text.startswith('"', place):
                    break
                place += 1
            if place == len(text):
                return "closed"
            if not text.startswith(separator, place):
                return "broken"
        else:
            place = text.find(separator, place)
            if place < 0:
                return "closed"
        place += len(separator)


_NUMBERS = (
    0,
    1,
    -1,
    5,
    2**31,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    1_700_000_000,
    1.0,
    1.5,
    1e39,
    float("nan"),
    float("inf"),
    None,
)
_TEXTS = ("1", "01", "1.0", "u1", "", "NaN", "1e5", "1700000000", "a\x1fb", "2024-05-01", '"', "\n", None)
_BYTES = (b"1", b"u1", b"\xff", b"\x00", b"", None)


def strange_array(rng: random.Random, length: int, depth: int = 0) -> pa.Array:
    """An Arrow array of a random type that Parquet can hold."""

    def some(values: tuple) -> list:
        return [rng.choice(values) for _ in range(length)]

    whole = tuple(value for value in _NUMBERS if isinstance(value, int | None))
    makers = [
        lambda: pa.array(some(whole), pa.int64()),
        lambda: pa.array(some((0, 1, 127, None)), rng.choice([pa.int8(), pa.uint8(), pa.int16(), pa.uint64()])),
        lambda: pa.array(some((2**64 - 1, 2**63, 1, None)), pa.uint64()),
        lambda: pa.array(
            [None if v is None else float(v) for v in some(_NUMBERS)], rng.choice([pa.float64(), pa.float32()])
        ),
        lambda: pa.array(some(_TEXTS), rng.choice([pa.string(), pa.large_string(), pa.string_view()])),
        lambda: pa.array(some(_TEXTS)).dictionary_encode(),
        lambda: pa.array(some(_BYTES), rng.choice([pa.binary(), pa.large_binary(), pa.binary_view()])),
        lambda: pa.array(some(_BYTES), pa.binary()).view(pa.string()),  # what a careless writer leaves
        lambda: pa.array(some((b"x" * 16, b"\xff" * 16, None)), pa.binary(16)),
        lambda: pa.array(some((b"x" * 16, b"\xff" * 16, None)), pa.uuid()),
        lambda: pa.array(some((Decimal("1.50"), Decimal("2.00"), None)), pa.decimal128(10, 2)),
        lambda: pa.array(some((Decimal(10) ** 40, Decimal(3), None)), pa.decimal256(50, 2)),
        lambda: pa.array(some((True, False, None))),
        lambda: pa.array(some((0, 19_000, -700_000, 2**31 - 1, None)), pa.int32()).view(pa.date32()),
        lambda: pa.array(some((0, 1_700_000_000_000, 2**62, -(2**62), None)), pa.int64()).view(
            rng.choice(
                [pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.timestamp("us", "+02:00")]
            )
        ),
        lambda: pa.array(some((0, 86_399, None)), pa.int32()).view(pa.time32("s")),
        lambda: pa.array(some((0, 5, None)), pa.int64()).view(pa.duration("us")),
        lambda: pa.nulls(length),
    ]
    if depth < 2:
        lengths = [rng.choice((0, 1, 3)) for _ in range(length)]
        inner = strange_array(rng, sum(lengths), depth + 1) if depth < 2 else None
        offsets = [sum(lengths[:k]) for k in range(length + 1)]
        makers += [
            lambda: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner),
            lambda: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), inner),
            lambda: pa.ListViewArray.from_arrays(
                pa.array(offsets[:-1], pa.int32()), pa.array(lengths, pa.int32()), inner
            ),
            lambda: pa.FixedSizeListArray.from_arrays(strange_array(rng, 2 * length, depth + 1), 2),
            lambda: pa.StructArray.from_arrays([strange_array(rng, length, depth + 1)], ["x"]),
            lambda: pa.array(
                [None if rng.random() < 0.3 else [("k", 1)] for _ in range(length)], pa.map_(pa.string(), pa.int64())
            ),
        ]
    return rng.choice(makers)()
