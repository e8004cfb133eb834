"""An error about a request in the source's own words: the original keys, the values, and the files
and rows that hold them.

The writer knows requests by their ids and has no files. So the source is read again up to the row that shows it, only
once something is wrong.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import numpy as np

from reqdedup.convert.mapping import TargetColumn
from reqdedup.convert.rows import Converter
from reqdedup.dedup.parts import RequestValuesError
from reqdedup.schema import REQUEST_ID, REQUEST_TS, USER_ID

MAX_VALUE_LENGTH = 60


def in_source(error: RequestValuesError, converter: Converter) -> ValueError:
    """The error with what the source has; itself where the rows are not found again."""
    by_name = {target.column.name: target for target in converter.columns}
    targets = [by_name[name] for name in error.columns]
    name = targets[0].sources[0]
    first: tuple[Any, str] | None = None
    for values, place, who in _rows_of(error, converter, targets, by_name):
        if len(targets) == 2:
            one, other = (len(value or ()) for value in values)
            if one != other:
                return ValueError(
                    f"{who}: sequences of one length required, found {one} events in {name} and {other} in "
                    f"{targets[1].sources[0]} ({place}); put it right in the source, or exclude one (--exclude {name})"
                )
            continue
        first = first or (values[0], place)
        if repr(values[0]) != repr(first[0]):
            return ValueError(
                f"column {name}: one value per request required, found {_short(first[0])} ({first[1]}) and "
                f"{_short(values[0])} ({place}) in {who}; {_advice(targets[0])}"
            )
    return error


def _rows_of(
    error: RequestValuesError, converter: Converter, targets: list[TargetColumn], by_name: dict[str, TargetColumn]
) -> Iterator[tuple[list[Any], str, str]]:
    """Values of the columns, file and row, and original keys, of every row of the request."""
    keys = [by_name[USER_ID], by_name[REQUEST_ID]]
    names = list(dict.fromkeys(name for target in [*targets, *keys] for name in target.sources))
    for piece in converter.source.pieces(names):
        user, request = (converter.values(piece, target).to_numpy(zero_copy_only=False) for target in keys)
        for row in np.flatnonzero((user == error.user_id) & (request == error.request_id)).tolist():
            original = [
                ", ".join(_short(piece.arrays[name][row].as_py()) for name in target.sources) for target in keys
            ]
            yield (
                [piece.arrays[target.sources[0]][row].as_py() for target in targets],
                f"{piece.path} at row {piece.rows[row] + 1}",
                f"request {original[1]} of user {original[0]}",
            )


def _advice(target: TargetColumn) -> str:
    name = target.sources[0]
    if target.column.name == REQUEST_TS:
        return "name a time that all rows of a request share, or more columns that tell requests apart (--request)"
    if target.column.is_blob:
        return f"put it right in the source, or exclude it (--exclude {name}); is --request what tells requests apart?"
    return f"make it item-level (--level {name}=item), or name more columns that tell requests apart (--request)"


def _short(value: object) -> str:
    text = str(value) if isinstance(value, datetime.date | datetime.time) else repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else text[:MAX_VALUE_LENGTH] + "..."
