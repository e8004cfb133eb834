"""Values of a body, taken by the rules of `reqdedup.values` or refused with their path."""

from __future__ import annotations

from typing import Any

import numpy as np

from reqdedup import values
from reqdedup.schema import REQUEST_TS, Column
from reqdedup.sequences.store import now_us
from reqdedup.serving.limits import EARLIEST_US, latest_us
from reqdedup.serving.requests import RequestError
from reqdedup.values import UnfitError, shown


def integer(given: Any, path: str, least: int, most: int) -> int:
    """A whole number in bounds; a bool is none."""
    try:
        return values.integer(given, path, least, most)
    except UnfitError as error:
        raise RequestError.of(error) from None


def value(given: Any, column: Column, path: str) -> Any:
    """One value of a request-level column: a plain value, or an array [width].

    A moment of the request that is in seconds or milliseconds lies in 1970, or one in nanoseconds far from now: no
    event would be recent by then, and a feature that counts these 0, so it is refused.
    """
    if given is None and column.nullable:
        return None
    try:
        found = values.one(given, column, path)
    except UnfitError as error:
        raise RequestError.of(error) from None
    if column.name == REQUEST_TS and not EARLIEST_US <= found <= latest_us(now_us()):
        moment = "microseconds since 1970 (UTC), not before 1971 and at most a day from now,"
        raise RequestError(path, moment, shown(found), hint="; seconds times 1000000, milliseconds times 1000")
    return found


def array(given: Any, column: Column, path: str) -> np.ndarray:
    """A list or an array as an array of the column's type; nulls as the loader has them, if the column may be null."""
    default = values.null_of(column) if column.nullable else None
    try:
        return values.many(given, column, path, default=default, takes_nan=column.nullable)
    except UnfitError as error:
        raise RequestError.of(error) from None
