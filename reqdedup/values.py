"""Which plain values a column takes, and what they become as a model reads them: said once, for tables and servers.

    column                    takes                                                         null of it
    int32, int64, timestamp   whole numbers in the type's bounds                            -1
    float32, float64          numbers, whole ones too, that are finite in the type          NaN
    bool                      true and false, which are no numbers elsewhere                False
    vector                    lists of `width` such numbers                                 none

`one` is the definition, for one value; `many` is the same for a list, at numpy's speed. `numbers` is for values that
have their type already: a table's. Text is none of a model's: texts become ids when a log is ingested.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from reqdedup.schema import Column, Kind, Level

NULL_INTEGER = -1
"""What a null integer or timestamp becomes; null floats and labels become NaN, null booleans False."""

INT64 = (-(2**63), 2**63 - 1)
TYPES = {
    "bool": np.dtype(np.bool_),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "timestamp": np.dtype(np.int64),
}
"""What a model can read, by the name of the schema's type."""
_BOUNDS = {"int32": (-(2**31), 2**31 - 1), "int64": INT64, "timestamp": INT64}
_LARGEST = {name: float(np.finfo(name).max) for name in ("float32", "float64")}
_PLAIN_KINDS = {"b": "b", "i": "iu", "f": "iuf"}
"""Kinds of numpy types that may become a type of this kind without a change of value (float64 to float32 rounds)."""
_BOOLS = frozenset({bool, np.bool_})
_INTS, _FLOATS = frozenset({int}), frozenset({float})
_NO_NUMBERS = frozenset({str, bytes, dict})


class UnfitError(ValueError):
    """A value that is not what it must be. column: path of it, `request.device` for example; required, found: there."""

    def __init__(self, column: str, required: str, found: str, *, hint: str = "") -> None:
        super().__init__(f"{column}: {required} required, found {found}{hint}")
        self.column, self.required, self.found = column, required, found


def shown(value: Any, *, most: int = 60) -> str:
    """A value of a caller's in an error: its kind and its beginning."""
    text = repr(value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value)
    return text if len(text) <= most else text[:most] + f"... ({len(text)} characters)"


def words(column: Column) -> str:
    """What a column holds, for people."""
    return f"{column.width} numbers ({column.dtype})" if column.width else column.dtype


def check_readable(name: str, dtype: Any) -> None:
    """Raises ValueError for an input of a type that no tensor has."""
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise ValueError(f"input {name}: a dtype of {', '.join(TYPES)} required, found {dtype}")


def type_of(column: Column) -> np.dtype:
    """Type of a column's values as a model reads them."""
    return np.dtype(np.float32) if column.level is Level.LABEL else TYPES[column.dtype]


def null_of(column: Column) -> bool | int | float:
    """What a null of the column becomes."""
    kind = type_of(column).kind
    return False if kind == "b" else NULL_INTEGER if kind == "i" else float("nan")


def numbers(column: Column, values: np.ndarray, is_null: np.ndarray | None = None) -> np.ndarray:
    """The values of a column as a model reads them, any shape; no copy if nothing changes.

    is_null: [N] bool, which of the values are null (what stands there means nothing); None means none.
    """
    values = values.astype(type_of(column), copy=False)
    if is_null is not None:
        values = np.where(is_null, values.dtype.type(null_of(column)), values)
    return values


def integer(given: Any, path: str, least: int = INT64[0], most: int = INT64[1]) -> int:
    """A whole number in bounds. Raises UnfitError."""
    if isinstance(given, (bool, np.bool_)) or not isinstance(given, (int, np.integer)) or not least <= given <= most:
        found = "none" if given is None else shown(given)
        raise UnfitError(path, f"a whole number from {least} to {most}", found)
    return int(given)


def one(given: Any, column: Column, path: str = "") -> Any:
    """One value of a column, as what it is: a bool, an int, a float, or an array [width]. Raises UnfitError."""
    path = path or column.name
    if column.width:
        if type(given) is list and len(given) == column.width and set(map(type, given)) == _FLOATS:
            most = _LARGEST.get(column.dtype, 0.0)
            if -most <= min(given) and max(given) <= most and sum(given) == sum(given):  # NaN is in no order
                return np.array(given, column.dtype)
        return many([given], column, path)[0]
    dtype = column.dtype
    if dtype in _BOUNDS:
        return integer(given, path, *_BOUNDS[dtype])
    given = given.item() if isinstance(given, np.generic) else given
    is_bool = isinstance(given, bool)
    if dtype == "bool" and is_bool:
        return given
    is_number = isinstance(given, (int, float)) and not is_bool
    if dtype in _LARGEST and is_number and abs(given) <= _LARGEST[dtype]:  # NaN is not
        return float(given)
    raise UnfitError(path, f"a finite {dtype}" if dtype in _LARGEST else dtype, shown(given))


def many(
    given: Any,
    column: Column,
    path: str = "",
    *,
    default: bool | int | float | None = None,
    takes_nan: bool = False,
) -> np.ndarray:
    """A list or an array of a column's values as a model reads them: [N], of vectors [N, width].

    default: in place of a None, which is refused without one.  takes_nan: whether NaN is a value, as in tables.
    The array may be written to. Raises UnfitError with the first value that does not fit and its place.
    """
    path = path or column.name
    wanted, is_vector = type_of(column), column.kind is Kind.VECTOR
    if type(given) is list and wanted.kind == "i" and not is_vector and set(map(type, given)) == _INTS:
        with suppress(OverflowError):  # one of them is too large
            return np.array(given, wanted)
    if isinstance(given, np.ndarray) or getattr(given, "ndim", None):
        values = np.asarray(given)
        if values.dtype == wanted and values.ndim == 1 and wanted.kind != "f" and not is_vector:
            return _writable(values)  # nothing to look at
    elif isinstance(given, (list, tuple, range)):
        kinds = set(map(type, given))
        if default is not None and type(None) in kinds:
            given = [default if value is None else value for value in given]
            kinds = kinds - {type(None)} | {type(default)}
        values = _array(given, kinds, column, path, takes_nan=takes_nan)
    else:
        raise UnfitError(path, f"a list of {words(column)}", shown(given))
    if not len(values) and values.ndim == 1:
        return np.empty((0, column.width) if is_vector else 0, wanted)
    if is_vector and values.shape[1:] != (column.width,):
        raise _unfit(given, column, path, takes_nan=takes_nan)
    if not is_vector and values.ndim != 1:
        raise UnfitError(path, f"a list of {words(column)}", f"values of shape {list(values.shape)}")
    fits = values.dtype.kind in _PLAIN_KINDS[wanted.kind]
    if fits and wanted.kind == "i" and values.dtype != wanted:
        least, most = _BOUNDS[column.dtype]
        fits = bool(values.min() >= least and values.max() <= most)
    if fits and wanted.kind != "f":
        return _writable(numbers(column, values))
    if fits:
        with np.errstate(over="ignore"):
            result = numbers(column, values)
        if np.isfinite(result).all() or (takes_nan and not np.isinf(result).any()):
            return _writable(result)
    raise _unfit(given, column, path, takes_nan=takes_nan)


def _array(given: Any, kinds: set[type], column: Column, path: str, *, takes_nan: bool) -> np.ndarray:
    """numpy's reading of a list of values of these kinds. It would take true for 1 among numbers, and make texts of
    everything beside one text, as many of its length."""
    if column.kind is Kind.VECTOR:
        wrong = kinds & _NO_NUMBERS
        kinds = {kind for vector in given if isinstance(vector, (list, tuple)) for kind in map(type, vector)}
    else:
        wrong = set()
    wrong |= kinds & (_NO_NUMBERS | {list, tuple})
    if wrong or (kinds & _BOOLS and (column.dtype != "bool" or kinds - _BOOLS)):
        raise _unfit(given, column, path, takes_nan=takes_nan)
    try:
        values = np.array(given)
        if values.dtype == object and column.dtype in _LARGEST and type(None) not in kinds:
            return np.array(given, np.float64)  # whole numbers beyond 64 bits
        return values
    except (ValueError, TypeError, OverflowError):  # of different lengths, too
        raise _unfit(given, column, path, takes_nan=takes_nan) from None


def _unfit(given: Any, column: Column, path: str, *, takes_nan: bool) -> UnfitError:
    """The error, with the first value that does not fit."""
    if column.kind is Kind.VECTOR:
        element = replace(column, kind=Kind.SCALAR, width=0)
        for vector in given:
            if not isinstance(vector, (list, tuple, np.ndarray)) or len(vector) != column.width:
                return UnfitError(path, words(column), shown(vector))
            if (odd := _odd_one(vector, element, takes_nan=False)) is not None:
                return UnfitError(path, words(column), odd)
    elif (odd := _odd_one(given, replace(column, kind=Kind.SCALAR, level=Level.ITEM), takes_nan=takes_nan)) is not None:
        return UnfitError(path, f"a list of {words(column)}", odd)
    return UnfitError(path, f"a list of {words(column)}", "others")


def _odd_one(given: Any, column: Column, *, takes_nan: bool) -> str | None:
    """The first value that does not fit, and its place."""
    for place, value in enumerate(given):
        if takes_nan and column.dtype in _LARGEST and isinstance(value, (float, np.floating)) and value != value:
            continue
        try:
            one(value, column)
        except UnfitError:
            return f"{shown(value)} at place {place}"
    return None


def _writable(values: np.ndarray) -> np.ndarray:
    return values if values.flags.writeable else values.copy()
