"""One value, or a list of them, as what a column of the signature is; what does not fit is refused with its place."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from reqdedup.models.transforms import null_of
from reqdedup.schema import Column, Kind, Level
from reqdedup.serving.limits import BadRequestError, shown

INT64 = (-(2**63), 2**63 - 1)
_BOUNDS = {"int32": (-(2**31), 2**31 - 1), "int64": INT64, "timestamp": INT64}


def integer(given: Any, path: str, least: int, most: int) -> int:
    """A whole number in bounds; a bool is none."""
    if isinstance(given, (bool, np.bool_)) or not isinstance(given, (int, np.integer)) or not least <= given <= most:
        raise BadRequestError(
            path, f"a whole number from {least} to {most}", shown(given) if given is not None else "none"
        )
    return int(given)


def value(given: Any, column: Column, path: str) -> Any:
    """One value of a request-level column: a plain value, or an array [width]."""
    if column.width:
        vector = array(given, column, path)
        return vector
    if given is None and column.nullable:
        return None
    dtype = column.dtype
    if dtype in _BOUNDS:
        return integer(given, path, *_BOUNDS[dtype])
    if dtype == "bool":
        fits = isinstance(given, (bool, np.bool_))
    elif dtype == "string":
        fits = isinstance(given, str)
    else:
        fits = isinstance(given, (int, float, np.number)) and not isinstance(given, bool) and _is_finite(given, dtype)
    if not fits:
        required = f"a finite {dtype}" if dtype.startswith("float") else dtype
        raise BadRequestError(path, required, shown(given))
    return float(given) if dtype.startswith("float") else given


def _is_finite(given: Any, dtype: str) -> bool:
    return math.isfinite(given) and abs(given) <= float(np.finfo(dtype).max)


def array(given: Any, column: Column, path: str) -> np.ndarray:
    """A list or an array of one kind as an array of the column's dtype; [width] if the column is a vector."""
    dtype = column.dtype
    if isinstance(given, np.ndarray):
        values = given
    elif isinstance(given, list):
        if not given:
            values = np.empty(0, _numpy(dtype))
        else:
            try:
                values = np.array(_without_nulls(given, column))
                if values.dtype.kind in "iuf" and bool in map(type, given):  # numpy takes true among numbers as 1
                    values = np.array(given, object)
            except (ValueError, OverflowError):  # lists of different lengths
                raise BadRequestError(path, f"a list of {words(column)}", shown(given)) from None
    else:
        raise BadRequestError(path, f"a list of {words(column)}", shown(given))
    if values.ndim != 1 or (column.width and len(values) != column.width):
        raise BadRequestError(path, f"a list of {words(column)}", f"values of shape {list(values.shape)}")
    kind = values.dtype.kind
    if dtype in _BOUNDS:
        least, most = _BOUNDS[dtype]
        if kind == "i" and (dtype != "int32" or not len(values) or (values.min() >= least and values.max() <= most)):
            return values.astype(_numpy(dtype), copy=False)
        if kind == "u" and (not len(values) or values.max() <= most):
            return values.astype(_numpy(dtype))
    elif (dtype == "bool" and kind == "b") or (dtype == "string" and kind == "U"):
        return values
    elif dtype.startswith("float") and kind in "fiu":
        with np.errstate(over="ignore"):
            cast = values.astype(dtype, copy=False)
        if np.isfinite(cast).all() or (column.nullable and not np.isinf(cast).any()):
            return cast
    raise BadRequestError(path, f"a list of {words(column)}", _odd_one(values, given, column))


def _without_nulls(given: list[Any], column: Column) -> list[Any]:
    """Nulls as the loader has them, if the column may be null."""
    if not column.nullable or None not in given:
        return given
    null = null_of(column)
    return [null if one is None else one for one in given]


def words(column: Column) -> str:
    """What a column holds, for people."""
    return f"{column.width} numbers ({column.dtype})" if column.width else column.dtype


def _odd_one(values: np.ndarray, given: Any, column: Column) -> str:
    """The first value that does not fit, for the error."""
    one = replace(column, kind=Kind.SCALAR, level=Level.ITEM, width=0)
    for place, found in enumerate(given):
        try:
            value(found, one, "")
        except BadRequestError:
            return f"{shown(found)} at place {place}"
    return f"values of type {values.dtype}"


def _numpy(dtype: str) -> np.dtype[Any]:
    return np.dtype({"timestamp": "int64", "string": "U1"}.get(dtype, dtype))
