"""Values of options, from their text: strict, bounded, and refused in one sentence (ValueError).

Digits are 0 to 9 and nothing else: Python's own int() and float() take `1_0`, ` 10 ` and digits of other scripts, which
is how another user's rows would be deleted. Every number has a bound far above sense and far below an overflow.
"""

from __future__ import annotations

import re
from datetime import timedelta

MOST = 2**31 - 1
"""Of a whole number, unless an option says otherwise."""

MOST_BUCKETS = 2**20
MOST_SEED = 2**63 - 1
MOST_DAYS = 36_500

_AGE_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def whole(text: str, *, least: int = 1, most: int = MOST) -> int:
    """A whole number of this range."""
    value = int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else None
    if value is None or not least <= value <= most:
        raise ValueError(f"a whole number from {least:,} to {most:,} required, found {_shown(text)}")
    return value


def number(text: str, *, least: float = 0.0, most: float = 1e12) -> float:
    """A finite number of this range."""
    value = float(text) if re.fullmatch(r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?", text) else None
    if value is None or not least <= value <= most:
        raise ValueError(f"a number from {least:g} to {most:g} required, found {_shown(text)}")
    return value


def share(text: str) -> float:
    """'0.1' or '10%'."""
    is_percentage = text.endswith("%")
    try:
        value = number(text.removesuffix("%"), most=100 if is_percentage else 1)
    except ValueError:
        raise ValueError(f"a share from 0 to 1, or 0% to 100%, required, found {_shown(text)}") from None
    return value / 100 if is_percentage else value


def age(text: str) -> timedelta:
    """'5d', '36h', '90m', '0s'."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)([smhdw])|0", text)
    if found is None:
        raise ValueError(f"an age like 5d, 36h or 90m required, found {_shown(text)}")
    seconds = float(found.group(1) or 0) * _AGE_UNITS[found.group(2) or "s"]
    if seconds > MOST_DAYS * 86_400:
        raise ValueError(f"an age of at most {MOST_DAYS:,}d required, found {_shown(text)}")
    return timedelta(seconds=seconds)


def engine(text: str) -> str:
    """The name of an engine, which is refused before any work, also if there turns out to be none."""
    from reqdedup.distributed.engine import named_engine

    named_engine(text)
    return text


def pair(text: str) -> tuple[str, str]:
    """'left=right'; what is left may hold further equals signs."""
    left, equals, right = text.rpartition("=")
    if not (left and equals and right):
        raise ValueError(f"NAME=VALUE required, found {_shown(text)}")
    return left, right


def user_id(text: str) -> int:
    """A user_id as the tables have it."""
    from reqdedup.logs.ids import parse_id

    try:
        return parse_id(text)
    except ValueError as error:
        raise ValueError(f"{error}; of an id of text use --key {text}") from None


def user_of_events(text: str) -> int:
    """A user_id as events say it: a whole number, or text, which the intake of events hashes."""
    from reqdedup.logs.ids import hash_string, parse_id

    try:
        return parse_id(text)
    except ValueError:
        return hash_string(key(text))


def key(text: str) -> str:
    """The original id of a user, as text."""
    if not text.strip():
        raise ValueError(f"an id of at least one character required, found {text!r}")
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
