"""Expressions that read one value: ids, times, numbers, labels, features, lists. One rule for text, JSON and Parquet.

A value is taken exactly as it is meant, or not at all: null in, null out, and null for what does not fit; the caller
tells the two apart by looking at the input. What fits:

- an integer id: `7`, `-7` or `7.0`; not `07` or `+7`, which would become one with another id
- a string id: text as it stands, spaces too, or a whole number as its digits
- a whole number: one of any spelling (`3.0`, `1e3`, `007`, true), within its type
- a float: the nearest one; infinite only if it says so, NaN counts as missing
- a bool: true, false, or a number that is 0 or 1
"""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from reqdedup.logs.mapping import TIME_UNITS_US, CandidateRule, FeatureRule, LabelRule, TimeRule

LIST_MARK = "\x1f"
"""Between the items of a packed history, which no item may hold."""

INTEGER_ID = r"^(0|-?[1-9][0-9]{0,18})(\.0)?$"
FAR_FUTURE_US = 253_402_300_799 * 1_000_000
"""The end of the year 9999: what lies beyond it is absurd and printed as this."""

EXACT_BELOW = 2**53
_EXACT_CHARACTERS = 16  # 15 digits and a point: a fraction is never rounded away
_ISO_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d",
)


def parse_time(value: pl.Expr, dtype: pl.DataType, rule: TimeRule) -> pl.Expr:
    """Microseconds since 1970, UTC, int64; null if the time cannot be read. Of an order, a step is a second."""
    if rule.is_order:
        return _scaled(read_whole(value, dtype), "s")
    if dtype == pl.Date:
        dtype, value = pl.Datetime("us"), value.cast(pl.Datetime("us"))
    if isinstance(dtype, pl.Datetime):
        return _utc_us(value, aware=dtype.time_zone is not None, zone=rule.zone)
    if rule.formats and dtype.is_numeric():
        dtype, value = pl.String(), value.cast(pl.String)  # 20240501 is what its pattern says, in every kind of file
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
    """Raise ValueError if the zone or a pattern is none, before any row is read."""
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


def read_integer_id(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """An id of a log of integer ids, int64."""
    if dtype == pl.String:
        digits = value.str.strip_suffix(".0")
        number = digits.cast(pl.Int64, strict=False)
        return pl.when(number.cast(pl.String) == digits).then(number)
    if dtype.is_integer():
        return value.cast(pl.Int64, strict=False)
    return _whole_float(value) if dtype.is_float() else pl.lit(None, pl.Int64)


def read_string_id(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """An id of a log of string ids, as text."""
    if dtype == pl.String:
        return value
    if dtype.is_float():
        return _whole_float(value).cast(pl.String)
    return value.cast(pl.String) if dtype.is_integer() or dtype.is_temporal() else pl.lit(None, pl.String)


def read_whole(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A whole number, int64."""
    if dtype == pl.String:
        short = pl.when(value.str.len_bytes() <= _EXACT_CHARACTERS).then(value).cast(pl.Float64, strict=False)
        return pl.coalesce(value.cast(pl.Int64, strict=False), _whole_float(short), _truth(value).cast(pl.Int64))
    if dtype.is_float():
        return _whole_float(value)
    return value.cast(pl.Int64, strict=False) if dtype.is_integer() or dtype == pl.Boolean else pl.lit(None, pl.Int64)


def read_float(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A number, float64."""
    if dtype == pl.String:
        number = value.cast(pl.Float64, strict=False)
        says_so = pl.any_horizontal(value.str.ends_with(letter) for letter in "fFyY")  # inf, infinity; not 1e400
        return pl.coalesce(pl.when(~number.is_infinite() | says_so).then(number), _truth(value).cast(pl.Float64))
    fits = dtype.is_numeric() or dtype == pl.Boolean
    return value.cast(pl.Float64, strict=False) if fits else pl.lit(None, pl.Float64)


def read_label(number: pl.Expr, rule: LabelRule) -> pl.Expr:
    """A label of a number within its range, in its type: the number, or whether it is at least `at_least`."""
    within = pl.when(number.is_between(rule.lowest, rule.highest))
    if rule.at_least is not None:
        return within.then(number >= rule.at_least).cast(pl.Int32)
    return within.then(_whole_float(number)).cast(pl.Int64 if rule.dtype == "int64" else pl.Int32, strict=False)


def read_feature(value: pl.Expr, dtype: pl.DataType, rule: FeatureRule) -> pl.Expr:
    """A value of a mapped column, in its type."""
    if rule.dtype == "string":
        texts = dtype == pl.String or dtype.is_numeric() or dtype.is_temporal() or dtype == pl.Boolean
        return value.cast(pl.String) if texts else pl.lit(None, pl.String)
    if rule.dtype == "bool":
        whole = read_whole(value, dtype)
        return pl.when(whole.is_between(0, 1)).then(whole == 1)
    if rule.dtype in ("int32", "int64"):
        return read_whole(value, dtype).cast(pl.Int32 if rule.dtype == "int32" else pl.Int64, strict=False)
    number = read_float(value, dtype)
    if rule.dtype == "float64":
        return number
    narrow = number.cast(pl.Float32)
    return pl.when(narrow.is_finite() | ~number.is_finite()).then(narrow)


def _whole_float(value: pl.Expr) -> pl.Expr:
    exact = (value == value.floor()) & (value.abs() < EXACT_BELOW)
    return pl.when(exact).then(value).cast(pl.Int64, strict=False)


def _truth(text: pl.Expr) -> pl.Expr:
    return (
        pl.when(text.is_in(["true", "True", "TRUE"]))
        .then(True)
        .when(text.is_in(["false", "False", "FALSE"]))
        .then(False)
    )


def split_text(value: pl.Expr, separator: str) -> pl.Expr:
    """Lists of the pieces of separated text, without spaces around them; null and blank text give empty lists."""
    text = value.str.strip_chars()
    pieces = pl.when(text != "").then(text).str.split(separator).list.eval(pl.element().str.strip_chars())
    return pieces.fill_null(pl.lit([], dtype=pl.List(pl.String)))


def candidate_item(name: str, rule: CandidateRule) -> pl.Expr:
    """The item of a candidate like `N35729-0`: what stands before the last separator of its label."""
    if not rule.label:
        return pl.col(name)
    pieces = pl.col(name).str.split(rule.label_separator)
    before = pieces.list.slice(0, pieces.list.len() - 1).list.join(rule.label_separator).str.strip_chars()
    return pl.when(pl.col(name).str.contains(rule.label_separator, literal=True)).then(before).otherwise(pl.col(name))


def candidate_label(name: str, separator: str) -> pl.Expr:
    """The label of a candidate like `N35729-0`, null if it has none."""
    has_one = pl.col(name).str.contains(separator, literal=True)
    return pl.when(has_one).then(pl.col(name).str.split(separator).list.last())
