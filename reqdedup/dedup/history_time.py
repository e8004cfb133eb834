"""Times of history events as milliseconds, and whether they are in the unit that was said of them.

A unit that is wrong is off by a factor of 1000 or more, and no other error shows: events then lie decades before every
request, or after it. The newest event of a request lies near the request, so a factor of ten is told apart from truth.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UNIT_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
"""Decimal digits of a unit after the second."""

PLAUSIBLE_TIMES = np.array(["1990-01-01", "2100-01-01"], "datetime64[us]")
"""Of a log. Times outside say that their unit is another one: seconds read as milliseconds are in January 1970."""

MIN_REQUEST_MS = 10**11
"""March 1973; times before are no dates but counted from some start, and their ratios say nothing."""

MAX_DIGITS_OFF = 1.0

MIN_STEPS, IN_ORDER = 32, 0.99
"""Of neighbours in lists: so many, and of them so large a part in one order, before they count as times."""

SECONDS_DIGITS = 8.5
"""log10 of the seconds from 1970 to 1980."""


def newest_events(time_ms: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Largest time of each list, [N] int64; 0 for an empty one.

    time_ms: [T] int64.  offsets: [N + 1] int64.
    """
    newest = np.zeros(len(offsets) - 1, np.int64)
    has_events = np.diff(offsets) > 0
    if has_events.any():
        newest[has_events] = np.maximum.reduceat(time_ms[: offsets[-1]], offsets[:-1][has_events])
    return newest


def digits_off(newest_ms: np.ndarray, request_ms: np.ndarray) -> float | None:
    """Median of log10(newest event / request), [N] int64 both; None if no pair has two real times."""
    known = (newest_ms > 0) & (request_ms > MIN_REQUEST_MS)
    if not known.any():
        return None
    return float(np.median(np.log10(newest_ms[known] / request_ms[known])))


def check_history_times(newest_ms: np.ndarray, request_ms: np.ndarray, *, what: str, unit: str, todo: str) -> bool:
    """Whether there were times to judge by. Raises ValueError if history events are implausibly far from requests.

    newest_ms, request_ms: of each request, [N] int64.  what: the column, for the error.  unit: in which the values were
    read.  todo: what to do, with {unit} for the unit that they seem to be in.
    """
    off = digits_off(newest_ms, request_ms)
    if off is None:
        return False
    if abs(off) <= MAX_DIGITS_OFF:
        return True
    seems = next((name for name, digits in UNIT_DIGITS.items() if digits == UNIT_DIGITS[unit] + round(off)), None)
    found = (
        f"ones that seem to be in {seems}" if seems else f"ones that are 10^{off:.1f} times as large as the requests'"
    )
    known = (newest_ms > 0) & (request_ms > MIN_REQUEST_MS)
    newest, request = (int(np.median(values[known])) for values in (newest_ms, request_ms))
    raise ValueError(
        f"{what}: times of events in {unit} since 1970 required, found {found} (in the median the newest event of a "
        f"request is read as {newest:,} ms, the request as {request:,} ms); {todo.format(unit=seems or 'UNIT')}"
    )


def milliseconds(times: pa.Array, unit: str) -> pa.Array:
    """Times as int64 milliseconds since 1970; whole numbers of a finer unit are rounded down.

    times: timestamps, dates, or numbers of `unit`.
    """
    if pa.types.is_date(times.type):
        times = times.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(times.type):
        times, unit = times.cast(pa.int64()), times.type.unit
    digits = UNIT_DIGITS["ms"] - UNIT_DIGITS[unit]
    if pa.types.is_floating(times.type):
        return pc.round(pc.multiply(times.cast(pa.float64()), 10.0**digits)).cast(pa.int64())
    times = times.cast(pa.int64())
    if digits >= 0:
        return pc.multiply_checked(times, 10**digits)
    whole = np.floor_divide(pc.fill_null(times, 0).to_numpy(zero_copy_only=False), 10**-digits)
    return pa.array(whole, mask=times.is_null().to_numpy(zero_copy_only=False))


def unit_of_times(low: int, high: int) -> str | None:
    """The unit in which whole numbers from `low` to `high` are times of a log; None if they are in none."""
    start, end = (PLAUSIBLE_TIMES.astype(np.int64) // 10**6).tolist()
    return next(
        (name for name, digits in UNIT_DIGITS.items() if start <= low / 10**digits <= high / 10**digits < end), None
    )


def seeming_unit(times: np.ndarray, offsets: np.ndarray) -> str | None:
    """The unit of whole numbers that look like times of events since 1970; None if they do not.

    times: [T] of N lists, offsets [N + 1]. They do if each list has them in order and most lie between 1980 and 2286.
    """
    step = np.ones(max(len(times) - 1, 0), bool)
    step[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(times))] - 1] = False  # from one list to the next
    steps = np.diff(times)[step]
    if len(steps) < MIN_STEPS or not steps.any() or max((steps >= 0).mean(), (steps <= 0).mean()) < IN_ORDER:
        return None
    digits = np.log10(np.maximum(float(np.median(times)), 1.0)) - SECONDS_DIGITS
    return next((name for name, shift in UNIT_DIGITS.items() if 0 <= digits - shift < 10 - SECONDS_DIGITS), None)
