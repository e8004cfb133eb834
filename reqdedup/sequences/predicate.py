"""Conditions on an event's columns: one closed language, three runtimes that agree.

    (col("duration_s") >= 10) & col("surface").is_in([1, 2])
       -> `to_polars`   an expression
       -> `to_duckdb`   SQL
       -> `to_row`      a function of one event as a dict

Two values only: a comparison with null or NaN is false, `!=` and `is_in` too, and `~` of it is true. `is_null` is true
for both. Engines differ here where they are left alone: NaN is the largest number to Polars and DuckDB, so that
`duration_s >= 10` keeps it there and drops it in Python.

Numbers compare exactly: a whole number column takes whole numbers alone, and float32 compares as float64 does.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import polars as pl

Value = int | float | str | bool
Row = Mapping[str, Any]

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_INTEGERS, _FLOATS = ("int32", "int64"), ("float32", "float64")


@dataclass(frozen=True)
class Predicate(ABC):
    """A condition on one event; made by `col`, joined by `&`, `|` and `~`."""

    def __and__(self, other: Predicate) -> Predicate:
        return And((self, other))

    def __or__(self, other: Predicate) -> Predicate:
        return Or((self, other))

    def __invert__(self) -> Predicate:
        return Not(self)

    def __bool__(self) -> bool:
        raise ValueError("predicate: joining by &, | and ~ required, found `and`, `or`, `not` or a chained comparison")

    @abstractmethod
    def columns(self) -> set[str]:
        """Names of the columns that it looks at."""

    @abstractmethod
    def check(self, dtypes: Mapping[str, str]) -> None:
        """Raise ValueError if a column is not among `dtypes`, or cannot be compared with what it is compared with."""

    @abstractmethod
    def to_polars(self, dtypes: Mapping[str, str]) -> pl.Expr:
        """An expression that is true or false in every row."""

    @abstractmethod
    def to_duckdb(self, dtypes: Mapping[str, str]) -> str:
        """SQL that is true or false in every row."""

    @abstractmethod
    def to_row(self) -> Callable[[Row], bool]:
        """A function of one event."""

    @abstractmethod
    def to_json(self) -> list[Any]:
        """What `predicate_from_json` reads."""


@dataclass(frozen=True)
class Compare(Predicate):
    """column <operator> value."""

    column: str
    op: str
    value: Value

    def __post_init__(self) -> None:
        if self.op not in _OPERATORS:
            raise ValueError(f"predicate: an operator of {', '.join(_OPERATORS)} required, found {self.op!r}")
        _check_value(self.column, self.value)

    def columns(self) -> set[str]:
        return {self.column}

    def check(self, dtypes: Mapping[str, str]) -> None:
        _check_fits(self.column, self.value, dtypes)
        if isinstance(self.value, bool) and self.op not in ("==", "!="):
            raise ValueError(f"predicate: == or != required for column {self.column} of bool, found {self.op}")

    def to_polars(self, dtypes: Mapping[str, str]) -> pl.Expr:
        column = _polars_column(self.column, dtypes)
        found = _OPERATORS[self.op](column, _polars_value(self.value, dtypes[self.column])).fill_null(False)
        return found & column.is_not_nan().fill_null(False) if dtypes[self.column] in _FLOATS else found

    def to_duckdb(self, dtypes: Mapping[str, str]) -> str:
        column = _sql_column(self.column, dtypes)
        found = f"{column} {'<>' if self.op == '!=' else self.op} {_sql_value(self.value, dtypes[self.column])}"
        if dtypes[self.column] in _FLOATS:
            found += f" AND NOT isnan({column})"
        return f"coalesce({found}, false)"

    def to_row(self) -> Callable[[Row], bool]:
        name, compare, value = self.column, _OPERATORS[self.op], self.value

        def holds(row: Row) -> bool:
            return not is_missing(row[name]) and bool(compare(row[name], value))

        return holds

    def to_json(self) -> list[Any]:
        return [self.op, self.column, self.value]


@dataclass(frozen=True)
class In(Predicate):
    """column is one of values."""

    column: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        for value in self.values:
            _check_value(self.column, value)

    def columns(self) -> set[str]:
        return {self.column}

    def check(self, dtypes: Mapping[str, str]) -> None:
        for value in self.values:
            _check_fits(self.column, value, dtypes)

    def _either(self) -> Predicate:
        return Or(tuple(Compare(self.column, "==", value) for value in self.values))

    def to_polars(self, dtypes: Mapping[str, str]) -> pl.Expr:
        if dtypes[self.column] in _FLOATS:  # by hash, -0.0 and 0.0 may be two
            return self._either().to_polars(dtypes)
        values = pl.Series(list(self.values), dtype=_POLARS_TYPES[dtypes[self.column]])
        return _polars_column(self.column, dtypes).is_in(values.implode()).fill_null(False)

    def to_duckdb(self, dtypes: Mapping[str, str]) -> str:
        return self._either().to_duckdb(dtypes)

    def to_row(self) -> Callable[[Row], bool]:
        name, values = self.column, self.values

        def holds(row: Row) -> bool:
            return not is_missing(row[name]) and any(row[name] == value for value in values)

        return holds

    def to_json(self) -> list[Any]:
        return ["in", self.column, list(self.values)]


@dataclass(frozen=True)
class IsNull(Predicate):
    """column is null or NaN."""

    column: str

    def columns(self) -> set[str]:
        return {self.column}

    def check(self, dtypes: Mapping[str, str]) -> None:
        _dtype_of(self.column, dtypes)

    def to_polars(self, dtypes: Mapping[str, str]) -> pl.Expr:
        column = pl.col(self.column)
        return (
            column.is_null() | column.is_nan().fill_null(False) if dtypes[self.column] in _FLOATS else column.is_null()
        )

    def to_duckdb(self, dtypes: Mapping[str, str]) -> str:
        column = _sql_column(self.column, dtypes)
        is_nan = f" OR coalesce(isnan({column}), false)" if dtypes[self.column] in _FLOATS else ""
        return f"({column} IS NULL{is_nan})"

    def to_row(self) -> Callable[[Row], bool]:
        name = self.column
        return lambda row: is_missing(row[name])

    def to_json(self) -> list[Any]:
        return ["is_null", self.column]


@dataclass(frozen=True)
class And(Predicate):
    """All of the parts; true if there are none."""

    parts: tuple[Predicate, ...]

    def columns(self) -> set[str]:
        return set().union(*(part.columns() for part in self.parts))

    def check(self, dtypes: Mapping[str, str]) -> None:
        for part in self.parts:
            part.check(dtypes)

    def to_polars(self, dtypes: Mapping[str, str]) -> pl.Expr:
        return reduce(operator.and_, (part.to_polars(dtypes) for part in self.parts), pl.lit(True))

    def to_duckdb(self, dtypes: Mapping[str, str]) -> str:
        return "(" + (" AND ".join(part.to_duckdb(dtypes) for part in self.parts) or "true") + ")"

    def to_row(self) -> Callable[[Row], bool]:
        parts = [part.to_row() for part in self.parts]
        return lambda row: all(part(row) for part in parts)

    def to_json(self) -> list[Any]:
        return ["and", *(part.to_json() for part in self.parts)]


@dataclass(frozen=True)
class Or(And):
    """One of the parts at least; false if there are none."""

    def to_polars(self, dtypes: Mapping[str, str]) -> pl.Expr:
        return reduce(operator.or_, (part.to_polars(dtypes) for part in self.parts), pl.lit(False))

    def to_duckdb(self, dtypes: Mapping[str, str]) -> str:
        return "(" + (" OR ".join(part.to_duckdb(dtypes) for part in self.parts) or "false") + ")"

    def to_row(self) -> Callable[[Row], bool]:
        parts = [part.to_row() for part in self.parts]
        return lambda row: any(part(row) for part in parts)

    def to_json(self) -> list[Any]:
        return ["or", *(part.to_json() for part in self.parts)]


@dataclass(frozen=True)
class Not(Predicate):
    """Not the part; true if that compares with null or NaN."""

    part: Predicate

    def columns(self) -> set[str]:
        return self.part.columns()

    def check(self, dtypes: Mapping[str, str]) -> None:
        self.part.check(dtypes)

    def to_polars(self, dtypes: Mapping[str, str]) -> pl.Expr:
        return ~self.part.to_polars(dtypes)

    def to_duckdb(self, dtypes: Mapping[str, str]) -> str:
        return f"(NOT {self.part.to_duckdb(dtypes)})"

    def to_row(self) -> Callable[[Row], bool]:
        part = self.part.to_row()
        return lambda row: not part(row)

    def to_json(self) -> list[Any]:
        return ["not", self.part.to_json()]


class col:  # noqa: N801, reads as in Polars
    """A column of an event, to be compared: `col("duration_s") >= 10`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, value: Value) -> Predicate:  # type: ignore[override]
        return Compare(self.name, "==", value)

    def __ne__(self, value: Value) -> Predicate:  # type: ignore[override]
        return Compare(self.name, "!=", value)

    def __lt__(self, value: Value) -> Predicate:
        return Compare(self.name, "<", value)

    def __le__(self, value: Value) -> Predicate:
        return Compare(self.name, "<=", value)

    def __gt__(self, value: Value) -> Predicate:
        return Compare(self.name, ">", value)

    def __ge__(self, value: Value) -> Predicate:
        return Compare(self.name, ">=", value)

    __hash__ = None  # type: ignore[assignment]

    def is_in(self, values: Iterable[Value]) -> Predicate:
        return In(self.name, tuple(values))

    def is_null(self) -> Predicate:
        return IsNull(self.name)


def is_missing(value: Any) -> bool:
    """Whether a value is null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def predicate_from_json(found: Any) -> Predicate:
    """The inverse of `Predicate.to_json`. Raises ValueError for anything else."""
    match found:
        case ["and", *parts]:
            return And(tuple(map(predicate_from_json, parts)))
        case ["or", *parts]:
            return Or(tuple(map(predicate_from_json, parts)))
        case ["not", part]:
            return Not(predicate_from_json(part))
        case ["is_null", str(column)]:
            return IsNull(column)
        case ["in", str(column), [*values]]:
            return In(column, tuple(values))
        case [str(op), str(column), value] if op in _OPERATORS:
            return Compare(column, op, value)
    raise ValueError(f"predicate: [operator, column, value] or [and|or|not, part, ...] required, found {found!r}")


_POLARS_TYPES: dict[str, Any] = {
    **dict.fromkeys(_INTEGERS, pl.Int64),
    **dict.fromkeys(_FLOATS, pl.Float64),
    "string": pl.String,
    "bool": pl.Boolean,
}


def _polars_column(name: str, dtypes: Mapping[str, str]) -> pl.Expr:
    dtype = dtypes[name]
    return pl.col(name).cast(_POLARS_TYPES[dtype]) if dtype in ("int32", "float32") else pl.col(name)


def _polars_value(value: Value, dtype: str) -> pl.Expr:
    return pl.lit(value, dtype=_POLARS_TYPES[dtype])


def _sql_column(name: str, dtypes: Mapping[str, str]) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    return f"{quoted}::DOUBLE" if dtypes[name] in _FLOATS else quoted


def _sql_value(value: Value, dtype: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if dtype in _FLOATS:
        return f"'{float(value)!r}'::DOUBLE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return f"{value}::BIGINT" if value > -(2**63) else "(-9223372036854775807::BIGINT - 1)"


def _check_value(column: str, value: Any) -> None:
    if not isinstance(value, int | float | str) or is_missing(value):
        raise ValueError(
            f"predicate: a number, text or bool to compare column {column} with required, found {value!r}; ask "
            "is_null() for null and NaN"
        )
    if isinstance(value, str) and ("\0" in value or not _is_utf8(value)):
        raise ValueError(f"predicate: UTF-8 text without a zero character required for {column}, found {value!r}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"predicate: a whole number of 64 bits required for column {column}, found {value}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_fits(column: str, value: Value, dtypes: Mapping[str, str]) -> None:
    dtype = _dtype_of(column, dtypes)
    if dtype in _FLOATS:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and float(value) == value
    elif dtype in _INTEGERS:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, str if dtype == "string" else bool)
    if not fits:
        raise ValueError(f"predicate: a value of {dtype} required for column {column}, found {value!r}")


def _dtype_of(column: str, dtypes: Mapping[str, str]) -> str:
    if dtypes.get(column) not in _POLARS_TYPES:
        known: Sequence[str] = sorted(name for name, dtype in dtypes.items() if dtype in _POLARS_TYPES)
        raise ValueError(f"predicate: a column of the events ({', '.join(known)}) required, found {column!r}")
    return dtypes[column]
