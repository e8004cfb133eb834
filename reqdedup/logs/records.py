"""Lines of delimited text as records (RFC 4180), records as fields, and which separator a file has.

A quoted field may hold separators, doubled quotes and line feeds. A quote opens a field only at its start (spaces
before it do not count); elsewhere it is a character like others. A line that opens a quoted field which nothing closes,
or which something else than a separator follows, is broken: it is rejected alone, and the next line starts a new
record, so that a stray quote costs its own line. But if the file ends without a line feed, it was cut inside that
field, and all of the rest is one record (decision 15). Lines without a quote are cut and split vectorised; the others
cost a few microseconds each.

escape: "\\\\" if `\\"` within a quoted field is a quote and `\\\\` a backslash, "" if backslashes are characters like
others, None if nobody has said: then a record that would mean something else with an escape is ambiguous.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl

from reqdedup.logs.checks import UnreadableFile
from reqdedup.logs.text import LineBlock

MAX_RECORD_BYTES = 16 * 2**20
"""Bytes after which a quoted field that is still open counts as one that nothing closes."""

SEPARATORS = (",", "\t", ";", "|", "::")
_ESCAPED = re.compile(r'["\\](["\\])')
_TYPED_HEADER = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True)
class _Grammar:
    """outside, inside: match a line as far as it is well formed, from the start of a field or from within a quoted one.

    Both set the group `closed` if the line ends the record, and `open` if it ends within a quoted field.
    field: one field and what ends it.  spaced: spaces before a quoted field, which the csv module cannot take apart
        from those before an unquoted one.
    whole: the same as `outside` with `closed`, for polars; None for a separator of several characters or an escape.
    """

    outside: re.Pattern[str]
    inside: re.Pattern[str]
    field: re.Pattern[str]
    spaced: re.Pattern[str]
    whole: str | None


@cache
def _grammar(separator: str, escape: str | None = None) -> _Grammar:
    ends = re.escape(separator)
    # Groups are repeated greedily, not possessively: Python before 3.11.5 does not go back over what an unfinished
    # repetition has read (gh-106052). Each has one way to read a text, so that giving back changes nothing.
    content = r'(?:[^"\\]++|""|\\(?:["\\]|(?!["\\])))*' if escape else r'(?:[^"]++|"")*'
    spaces = "" if " " in separator else " *+"
    unquoted = f"[^{ends}]*+" if len(separator) == 1 else f"(?:(?!{ends}).)*"
    plain = rf'(?!{spaces}"){unquoted}'
    field = rf'(?:{spaces}"{content}"|{plain})'
    rest = rf'(?:{field}{ends})*(?:(?P<closed>{field}\r?\Z)|(?P<open>{spaces}"{content}\Z))?'
    rest_of_open = rest.replace("<closed>", "<closed_later>").replace("<open>", "<open_later>")
    inside = rf'{content}(?:(?P<open>\Z)|"(?:(?P<closed>\r?\Z)|{ends}{rest_of_open}))'
    one = rf'(?:{spaces}"(?P<quoted>{content})"|(?P<plain>{plain}))(?P<end>{ends}|\Z)'
    simple = rf'{spaces[:2]}(?:"(?:[^"]|"")*"|[^" {ends}][^{ends}]*|)'
    whole = rf"^{simple}(?:{ends}{simple})*\r?$" if len(separator) == 1 and not escape else None
    spaced = rf'(?:\A|{ends}) +"' if spaces else r"(?!)"
    outside, within, one_field = (re.compile(pattern, re.DOTALL) for pattern in (rest, inside, one))
    return _Grammar(outside, within, one_field, re.compile(spaced), whole)


def _state(pattern: re.Pattern[str], line: str) -> str:
    """How a line ends: closed, open or broken."""
    match = pattern.match(line)
    for name, text in match.groupdict().items() if match else ():
        if text is not None:
            return name.removesuffix("_later")
    return "broken"


def join_quoted(
    blocks: Iterator[LineBlock], separator: str, escape: str | None = None, *, quotes: bool = True
) -> Iterator[LineBlock]:
    """Blocks of records: the lines of one quoted field are one row, with the number of the first of them.

    quotes: whether a quote opens a field at all; else every line is a record.
    """
    if not quotes:
        for block in blocks:
            yield LineBlock(without_blanks(block.frame), block.num_bytes, block.unfinished)
        return
    held: pl.DataFrame | None = None
    held_bytes, unfinished = 0, 0
    error: UnreadableFile | None = None
    try:
        for block in blocks:
            frame = block.frame if held is None else pl.concat([held, block.frame])
            num_bytes, unfinished = held_bytes + block.num_bytes, block.unfinished
            joined, first_held = _join_lines(frame, _grammar(separator, escape))
            held = frame.slice(first_held) if first_held < frame.height else None
            held_bytes = 0 if held is None else int(held["raw"].str.len_bytes().sum()) + held.height
            yield LineBlock(_as_records(frame.slice(0, first_held), joined), num_bytes - held_bytes, unfinished)
    except UnreadableFile as problem:
        error = problem
    if held is not None:
        if unfinished or error is not None:
            record = _as_records(held, [(0, held.height - 1)])
            yield LineBlock(record, held_bytes, int(held["line"][0]))
        else:
            joined, _ = _join_lines(held, _grammar(separator, escape), at_end=True)
            yield LineBlock(_as_records(held, joined), held_bytes, 0)
    if error is not None:
        raise error


def _join_lines(frame: pl.DataFrame, grammar: _Grammar, *, at_end: bool = False) -> tuple[list[tuple[int, int]], int]:
    """Rows of lines that are one record, as (first, last), and the row from which on lines wait for what follows."""
    joined = list[tuple[int, int]]()
    has_quote = frame["raw"].str.contains('"', literal=True)
    if not has_quote.any() or (grammar.whole and frame["raw"].str.contains(grammar.whole).all()):
        return joined, frame.height
    quoted = np.flatnonzero(has_quote.to_numpy()).tolist()
    texts = frame["raw"].gather(quoted).to_list()
    ends = frame["raw"].str.len_bytes().to_numpy().cumsum(dtype=np.int64)
    number = 0  # of the lines with quotes: the next one to look at
    reached = 0  # of these: a field that opens before it stays open up to it
    while number < len(quoted):
        first = number
        number += 1
        if _state(grammar.outside, texts[first]) != "open":
            continue
        state, reached = "open", max(reached, number)
        while (
            state == "open"
            and reached < len(quoted)
            and ends[quoted[reached]] - ends[quoted[first]] <= MAX_RECORD_BYTES
        ):
            state = _state(grammar.inside, texts[reached])
            reached += state == "open"
        if state == "closed":
            joined.append((quoted[first], quoted[reached]))
            number = reached + 1
        elif state == "open" and not at_end and ends[-1] - ends[quoted[first]] <= MAX_RECORD_BYTES:
            return joined, quoted[first]
    return joined, frame.height


def _as_records(frame: pl.DataFrame, joined: Sequence[tuple[int, int]]) -> pl.DataFrame:
    """The frame with each of these ranges of lines as one row, and without blank ones."""
    if joined:
        raw, is_utf8 = frame["raw"], frame["is_utf8"]
        firsts = [first for first, _ in joined]
        starts_record = np.ones(frame.height, bool)
        for first, last in joined:
            starts_record[first + 1 : last + 1] = False
        texts = ["\n".join(raw[first : last + 1].to_list()) for first, last in joined]
        good = [bool(is_utf8[first : last + 1].all()) for first, last in joined]
        columns = [frame["line"], raw.scatter(firsts, texts), is_utf8.scatter(firsts, good)]
        frame = pl.DataFrame(columns).filter(pl.Series(starts_record))
    return without_blanks(frame)


def without_blanks(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame without carriage returns at the end of `raw`, and without the rows that are empty then."""
    return frame.with_columns(pl.col("raw").str.strip_chars_end("\r\n")).filter(pl.col("raw") != "")


def split_record(text: str, separator: str, escape: str | None = None) -> list[str] | None:
    """Fields of one record, quotes removed; None if it is broken."""
    if '"' not in text:
        return text.split(separator)
    grammar = _grammar(separator, escape)
    if len(separator) == 1 and not escape and not grammar.spaced.search(text):
        try:
            return next(csv.reader([text], delimiter=separator, strict=True))
        except (csv.Error, StopIteration):
            pass  # broken, or more than the csv module takes: a field of 128 KiB, a carriage return
    pattern, fields, position = grammar.field, [], 0
    while match := pattern.match(text, position):
        quoted = match["quoted"]
        if quoted is None:
            fields.append(match["plain"])
        else:
            fields.append(_ESCAPED.sub(r"\1", quoted) if escape else quoted.replace('""', '"'))
        if not match["end"]:
            return fields
        position = match.end()
    return None


def split_records(
    frame: pl.DataFrame, separator: str, num_fields: int, escape: str | None = None, *, quotes: bool = True
) -> pl.DataFrame:
    """Records as columns field_0 .. field_{num_fields - 1} and `num_fields_found` (0: a broken one, -1: ambiguous).

    frame: columns line, raw, without nulls. Rows with another number of fields keep what fits.
    """
    fields = [f"field_{k}" for k in range(num_fields)]
    parts = frame.with_columns(pl.col("raw").str.splitn(separator, num_fields + 1).alias("_parts")).unnest("_parts")
    counted = parts.with_columns(
        (pl.col("raw").str.count_matches(separator, literal=True) + 1).cast(pl.Int64).alias("num_fields_found")
    ).drop(f"field_{num_fields}")
    quoted = pl.col("raw").str.contains('"', literal=True)
    if not quotes or not counted.select(quoted.any()).item():
        return counted
    rows: list[list[str | int | None]] = []
    texts = counted.filter(quoted)["raw"].to_list()
    for text, found in zip(texts, _split_quoted(texts, separator, escape)):
        unclear = escape is None and '\\"' in text and split_record(text, separator, "\\") != (found or None)
        count = -1 if unclear else len(found)
        rows.append([*found[:num_fields], *[None] * (num_fields - len(found)), count])
    schema = dict.fromkeys(fields, pl.String) | {"num_fields_found": pl.Int64}
    repaired = counted.filter(quoted).drop(schema).hstack(pl.DataFrame(rows, schema=schema, orient="row"))
    return pl.concat([counted.filter(~quoted), repaired.select(counted.columns)]).sort("line")


def _split_quoted(texts: list[str], separator: str, escape: str | None) -> list[list[str]]:
    """Fields of each record, none of a broken one."""
    if len(separator) == 1 and not escape and not any(map(_grammar(separator).spaced.search, texts)):
        with suppress(csv.Error):
            rows = list(csv.reader(texts, delimiter=separator, strict=True))
            if len(rows) == len(texts):  # else a broken one took the next one's text for its own
                return rows
    return [split_record(text, separator, escape) or [] for text in texts]


def header_fields(text: str, separator: str, escape: str | None = None) -> list[str]:
    """Names of the fields in a header, without the types of `user_id:token`; empty if it is broken."""
    fields = [field.strip() for field in split_record(text, separator, escape) or []]
    typed = [field.rpartition(":") for field in fields]
    if fields and all(kind in _TYPED_HEADER and name for name, _, kind in typed):
        return [name for name, _, _ in typed]
    return fields


def sniff_separator(lines: Sequence[str], suffix: str, *, wanted: set[str], num_columns: int) -> str:
    """The separator of a file, by the structure that it gives to the first lines.

    wanted: names that a header may have: the separator that finds most of them in the first line is it. If none finds
    one, there is no header: then the one that splits most lines into `num_columns` fields, else the most frequent one.
    Ties: tab for .tsv and .tab, then in the order of SEPARATORS.
    """
    order = sorted(SEPARATORS, key=lambda separator: separator != "\t") if suffix in (".tsv", ".tab") else SEPARATORS
    scores = (
        {
            separator: len(wanted & set(header_fields(_first_record(lines, separator), separator)))
            for separator in order
        },
        {separator: sum(_num_fields(line, separator) == num_columns > 1 for line in lines) for separator in order},
        {separator: lines[0].count(separator) for separator in order},
    )
    for score in scores:
        best = max(score, key=lambda separator: score[separator])
        if score[best]:
            return best
    return "," if suffix == ".csv" else "\t"


def _first_record(lines: Sequence[str], separator: str) -> str:
    """The first line, with those that its quoted fields go on in."""
    for count in range(1, len(lines) + 1):
        record = "\n".join(lines[:count])
        if split_record(record, separator) is not None:
            return record
    return lines[0]


def _num_fields(line: str, separator: str) -> int:
    return len(split_record(line, separator) or [])
