"""Values of a body, taken by the rules of `reqdedup.values` or refused with their path."""

from __future__ import annotations

from typing import Any

import numpy as np

from reqdedup import values
from reqdedup.schema import Column
from reqdedup.serving.requests import RequestError
from reqdedup.values import UnfitError


def integer(given: Any, path: str, least: int, most: int) -> int:
    """A whole number in bounds; a bool is none."""
    try:
        return values.integer(given, path, least, most)
    except UnfitError as error:
        raise RequestError.of(error) from None


def value(given: Any, column: Column, path: str) -> Any:
    """One value of a request-level column: a plain value, or an array [width]."""
    if given is None and column.nullable:
        return None
    try:
        return values.one(given, column, path)
    except UnfitError as error:
        raise RequestError.of(error) from None


def array(given: Any, column: Column, path: str) -> np.ndarray:
    """A list or an array as an array of the column's type; nulls as the loader has them, if the column may be null."""
    default = values.null_of(column) if column.nullable else None
    try:
        return values.many(given, column, path, default=default, takes_nan=column.nullable)
    except UnfitError as error:
        raise RequestError.of(error) from None
