"""Expressions that read one value: times, integers, labels, features, lists. Null in, null out; unreadable gives null too.

The caller tells the two apart by looking at the input.
"""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from reqdedup.logs.formats import LIST_MARK
from reqdedup.logs.mapping import TIME_UNITS_US, CandidateRule, FeatureRule, LabelRule, TimeRule

_ISO_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d",
)
_POLARS_TYPES = {
    "bool": pl.Boolean,
    "int32": pl.Int32,
    "int64": pl.Int64,
    "float32": pl.Float32,
    "float64": pl.Float64,
    "string": pl.String,
}
_MAX_EXACT_FLOAT = 2**53
FAR_FUTURE_US = 253_402_300_799 * 1_000_000
"""The end of the year 9999: what lies beyond it is absurd and printed as this."""


def parse_time(value: pl.Expr, dtype: pl.DataType, rule: TimeRule) -> pl.Expr:
    """Microseconds since 1970, UTC, int64; null where the time cannot be read."""
    if dtype == pl.Date:
        dtype, value = pl.Datetime("us"), value.cast(pl.Datetime("us"))
    if isinstance(dtype, pl.Datetime):
        return _utc_us(value, aware=dtype.time_zone is not None, zone=rule.zone)
    if dtype.is_integer():
        return _scaled(value.cast(pl.Int64, strict=False), rule.unit)
    if dtype.is_float():
        return _scaled_float(value.cast(pl.Float64), rule.unit)
    if dtype != pl.String:
        return pl.lit(None, pl.Int64)
    tries = []
    if not rule.formats:
        tries.append(_scaled(value.cast(pl.Int64, strict=False), rule.unit))
        tries.append(_scaled_float(value.cast(pl.Float64, strict=False), rule.unit))
    for pattern in rule.formats or _ISO_FORMATS:
        aware = "%z" in pattern or "%#z" in pattern or "%:z" in pattern or "%+" in pattern
        parsed = value.str.to_datetime(pattern, time_unit="us", strict=False)
        tries.append(_utc_us(parsed, aware=aware, zone=rule.zone))
    return pl.coalesce(tries)


def check_time_rule(rule: TimeRule) -> None:
    """Raise ValueError where the zone or a pattern is none, before any row is read."""
    sample = pl.Series([datetime(2001, 2, 3, tzinfo=UTC)])
    try:
        sample.dt.convert_time_zone(rule.zone)
    except pl.exceptions.PolarsError:
        raise ValueError(f"mapping: [time] zone: an IANA time zone required, found {rule.zone!r}") from None
    for pattern in rule.formats:
        try:
            written = sample.dt.to_string(pattern.replace("%#z", "%z"))
            years = written.str.to_datetime(pattern, strict=False).dt.year()
        except pl.exceptions.PolarsError:
            years = pl.Series([None])
        if years[0] != 2001:
            raise ValueError(f"mapping: [time] format: strptime patterns with a date required, found {pattern!r}")


def _utc_us(value: pl.Expr, *, aware: bool, zone: str) -> pl.Expr:
    if not aware:
        value = value.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return value.dt.convert_time_zone("UTC").dt.timestamp("us")


def _scaled(value: pl.Expr, unit: str) -> pl.Expr:
    if unit == "ns":
        return value // 1000
    factor = TIME_UNITS_US[unit]
    limit = FAR_FUTURE_US // factor
    far = pl.when(value > 0).then(FAR_FUTURE_US).otherwise(0)
    scaled = pl.when(value.is_between(-limit, limit)).then(value * factor).otherwise(far)
    return pl.when(value.is_not_null()).then(scaled)


def _scaled_float(value: pl.Expr, unit: str) -> pl.Expr:
    scaled = value / 1000 if unit == "ns" else value * TIME_UNITS_US[unit]
    within = scaled.clip(-float(FAR_FUTURE_US), float(FAR_FUTURE_US))
    return pl.when(scaled.is_not_nan()).then(within.round()).cast(pl.Int64)


def read_integer(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_float():
        exact = (value == value.floor()) & (value.abs() <= _MAX_EXACT_FLOAT)
        return pl.when(exact).then(value).cast(pl.Int64, strict=False)
    return value.cast(pl.Int64, strict=False)


def read_number(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.String:
        value = value.str.to_lowercase().replace({"true": "1", "false": "0"})
    return value.cast(pl.Float64, strict=False)


def read_label(number: pl.Expr, rule: LabelRule) -> pl.Expr:
    if rule.at_least is not None:
        number = (number >= rule.at_least).cast(pl.Float64)
    return number.cast(pl.Int32, strict=False)


def read_feature(name: str, schema: pl.Schema, rule: FeatureRule) -> pl.Expr:
    value = pl.col(name)
    if rule.dtype == "bool" and schema[name] == pl.String:
        value = read_number(value, schema[name])
    elif rule.dtype in ("int32", "int64") and schema[name] == pl.String:
        number = value.cast(pl.Float64, strict=False)  # 3.0 is an integer; 64-bit integers are read directly
        whole = pl.when(number == number.floor()).then(number).cast(pl.Int64, strict=False)
        value = pl.coalesce(value.cast(pl.Int64, strict=False), whole)
    return value.cast(_POLARS_TYPES[rule.dtype], strict=False).alias(rule.name)


def split_elements(name: str, separator: str, dtype: pl.DataType) -> pl.Expr:
    """Lists of strings, from marked lists or separated text; null and blank text give empty lists."""
    value = pl.col(name).cast(pl.String) if dtype != pl.String else pl.col(name)
    marked = value.str.starts_with(LIST_MARK)
    inside = value.str.strip_prefix(LIST_MARK)
    of_list = pl.when(inside != "").then(inside).str.split(LIST_MARK)
    of_text = pl.when(value.str.strip_chars() != "").then(value.str.strip_chars()).str.split(separator)
    empty = pl.lit([], dtype=pl.List(pl.String))
    return pl.when(marked).then(of_list).otherwise(of_text).fill_null(empty)


def packed_events(name: str) -> pl.Expr:
    """A history in its one form as a list; empty text is no event."""
    return (
        pl.when(pl.col(name) != "")
        .then(pl.col(name))
        .str.split(LIST_MARK)
        .fill_null(pl.lit([], dtype=pl.List(pl.String)))
    )


def candidate_item(name: str, rule: CandidateRule) -> pl.Expr:
    if not rule.label:
        return pl.col(name)
    separator = rule.label_separator
    last = pl.col(name).str.split(separator).list.slice(0, pl.col(name).str.split(separator).list.len() - 1)
    return (
        pl.when(pl.col(name).str.contains(separator, literal=True))
        .then(last.list.join(separator))
        .otherwise(pl.col(name))
    )


def candidate_label(name: str, separator: str) -> pl.Expr:
    has_one = pl.col(name).str.contains(separator, literal=True)
    return pl.when(has_one).then(pl.col(name).str.split(separator).list.last())
