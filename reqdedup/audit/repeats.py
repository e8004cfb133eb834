"""How often a column repeats inside a request, and how much of it repeats from an earlier request of the same user.

The first is request-level deduplication: its limit is the fan-out. The second is user overlap, a property of how
histories are cut; it comes on top and is stated apart. Both are counted on values, not on compressed bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reqdedup.audit.sample import Sample
from reqdedup.audit.values import SampleColumn

REQUEST, NEARLY_REQUEST, ITEM, KEY, UNKNOWN = "request", "nearly_request", "item", "key", "unknown"

NEARLY_RATIO = 0.9
"""Of the rows after a request's first, at least so many must repeat it in a nearly request-level column ..."""

CHANCE_FACTOR = 0.2
"""... and rows of one request must differ at most this many times as often as rows of two: a label that is nearly
always 0 repeats too, by chance."""

MAX_PAIRS = 1_000
"""Pairs of requests whose sequences are compared element by element, per column."""

FEW_ELEMENTS = 32
"""Of two sequences together: so few are compared at every shift, more at those that a few anchors suggest."""


@dataclass(frozen=True)
class Repeats:
    """level: what the column is.

    repeat_ratio: part of the rows after a request's first whose value equals the first's; None if every request of
    the sample has one row.  broken_requests of checked_requests: those with more than one value.
    example: what breaks a nearly request-level column.  user_overlap: part of the elements (of the characters of text)
        that repeat an earlier request of the user; None without a user key, and for item-level columns.
    """

    level: str
    repeat_ratio: float | None
    checked_requests: int
    broken_requests: int
    is_constant: bool = False
    example: str | None = None
    user_overlap: float | None = None

    @property
    def is_request_level(self) -> bool:
        return self.level in (REQUEST, NEARLY_REQUEST)

    @property
    def may_be_request_level(self) -> bool:
        """Also if every request of the sample has one row, or if it is a key."""
        return self.level != ITEM


class RequestRows:
    """The whole-user rows of a sample, request by request.

    order: the rows, a user's requests by their key; the users by key where the sample is the whole table, else by hash,
    so that the first of them are a sample too.  start: where each request begins in it.
    """

    def __init__(self, sample: Sample, *, is_whole: bool) -> None:
        rows = np.flatnonzero(sample.in_users)
        by_key = np.argsort(sample.key_rank[rows], kind="stable")
        self.order = rows[by_key if is_whole else np.lexsort((sample.key_rank[rows], sample.user[rows]))]
        request, user = sample.request[self.order], sample.user[self.order]
        self.start = np.flatnonzero(np.concatenate([[True], request[1:] != request[:-1]]))
        self.rows_of_request = np.diff(np.append(self.start, len(self.order)))
        first_user = user[self.start]
        self.user_of_request = np.cumsum(np.concatenate([[False], first_user[1:] != first_user[:-1]]))
        self.num_requests, self.num_users = len(self.start), int(self.user_of_request[-1]) + 1
        self.request_of_row = np.repeat(np.arange(self.num_requests), self.rows_of_request)
        self.user_of_row = self.user_of_request[self.request_of_row]


def measure_repeats(
    column: SampleColumn,
    requests: RequestRows,
    *,
    is_key: bool,
    has_users: bool,
    request_name: str,
    request_key: pa.Array | None = None,
) -> Repeats:
    """What one column of the sample is. `request_name` and `request_key` (one value per sampled
    row) name the example."""
    ids = column.ids[requests.order]
    first = ids[requests.start]
    equal = ids == first[requests.request_of_row]
    later = np.ones(len(ids), bool)
    later[requests.start] = False
    num_later = int(later.sum())
    broken = np.bincount(requests.request_of_row, weights=~equal, minlength=requests.num_requests) > 0
    checked = int((requests.rows_of_request > 1).sum())
    is_constant = bool(np.all(ids == ids[0]))
    if is_key:
        return Repeats(KEY, _ratio(equal[later].sum(), num_later), checked, int(broken.sum()), is_constant)
    if not num_later:
        return Repeats(UNKNOWN, None, 0, 0, is_constant)
    ratio = float(equal[later].mean())
    level, example = ITEM, None
    if not broken.any():
        level = REQUEST
    elif ratio >= NEARLY_RATIO and 1 - ratio <= CHANCE_FACTOR * (1 - _chance(first)):
        level = NEARLY_REQUEST
        example = _example(column, requests, equal, int(np.argmax(broken)), request_name, request_key)
    overlap = _overlap(column, requests, first) if has_users and level != ITEM and column.is_stored else None
    return Repeats(level, ratio, checked, int(broken.sum()), is_constant, example, overlap)


def _ratio(part: float, whole: int) -> float | None:
    return float(part) / whole if whole else None


def _chance(first: np.ndarray) -> float:
    """How often two requests have the same value."""
    _, counts = np.unique(first, return_counts=True)
    pairs = len(first) * (len(first) - 1)
    return float((counts * (counts - 1)).sum() / pairs) if pairs else 0.0


def _example(
    column: SampleColumn, requests: RequestRows, equal: np.ndarray, request: int, name: str, key: pa.Array | None
) -> str:
    start = int(requests.start[request])
    end = start + int(requests.rows_of_request[request])
    other = start + int(np.argmin(equal[start:end]))
    rows = requests.order[[start, other]]
    found = column.rows(rows)
    num_other = int((~equal[start:end]).sum())
    label = f"{name} {_text(key[int(rows[0])])}" if key is not None else "a request"
    return f"{label}: {_difference(found[0], found[1])} in {num_other} of {end - start} rows"


def _difference(first: pa.Scalar, other: pa.Scalar) -> str:
    if not isinstance(first, pa.ListScalar) or not first.is_valid or not other.is_valid:
        return f"{_text(first)}, but {_text(other)}"
    left, right = first.values, other.values
    if len(left) != len(right):
        return f"a list of {len(left)} elements, but one of {len(right)}"
    differ = [position for position in range(len(left)) if left[position] != right[position]]
    position = differ[0] if differ else 0
    return f"element {position} is {_text(left[position])}, but {_text(right[position])}"


def _text(value: pa.Scalar) -> str:
    text = repr(value.as_py()) if value.is_valid else "null"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _overlap(column: SampleColumn, requests: RequestRows, first: np.ndarray) -> float | None:
    """Part of the elements of all requests that an earlier request of the user has, in the same order."""
    user_start = np.flatnonzero(np.concatenate([[True], np.diff(requests.user_of_request) > 0]))
    user_end = np.append(user_start[1:], requests.num_requests)
    num_pairs = int((user_end - user_start - 1).sum())
    stride = max(1, -(-num_pairs // MAX_PAIRS))
    unit = _element_bytes(column, first)
    repeated = total = 0.0
    for start, end in zip(user_start[::stride].tolist(), user_end[::stride].tolist()):
        seen: set[int] = set()
        before = None
        for value in first[start:end].tolist():
            if value < 0:
                continue
            weight = float(column.value_bytes[value])
            total += weight
            if value in seen:
                repeated += weight
            elif before is not None and unit:
                arrays = [np.frombuffer(column.values[number].as_buffer(), f"u{unit}") for number in (before, value)]
                repeated += weight * shared_share(*arrays)
            seen.add(value)
            before = value
    return repeated / total if total else None


def _element_bytes(column: SampleColumn, first: np.ndarray) -> int:
    """Width at which two values are compared: an element's, or for binary the largest that divides every length; 0 for
    text, whose values are equal or not."""
    if column.is_list:
        width = column.leaf.width_bytes
        return width if width in (1, 2, 4, 8) else 4 if width == 0 else 1
    lengths = column.value_bytes[first]
    if not pa.types.is_binary(column.leaf.type) and not pa.types.is_large_binary(column.leaf.type):
        return 0
    return next((width for width in (8, 4, 2) if not np.any(lengths % width)), 1)


def shared_share(earlier: np.ndarray, later: np.ndarray) -> float:
    """Part of `later` that `earlier` has too at one common shift: a window that slid, or a history that grew."""
    if not len(later) or not len(earlier):
        return 0.0
    width = min(4, len(later))
    shifts = {0, len(earlier) - len(later)}
    if len(earlier) + len(later) <= FEW_ELEMENTS:
        shifts = set(range(1 - len(later), len(earlier)))
    votes: dict[int, int] = {}
    for anchor in np.unique(np.linspace(0, len(later) - width, 8).astype(int)).tolist():
        match = np.ones(max(len(earlier) - width + 1, 0), bool)
        for offset in range(width):
            match &= earlier[offset : len(match) + offset] == later[anchor + offset]
        found = np.flatnonzero(match)
        for position in {*found[:8].tolist(), *found[-8:].tolist()}:
            votes[position - anchor] = votes.get(position - anchor, 0) + 1
    shifts |= set(sorted(votes, key=lambda shift: -votes[shift])[:3])
    best = 0
    for shift in shifts:
        start, end = max(0, -shift), min(len(later), len(earlier) - shift)
        if end > start:
            best = max(best, int((later[start:end] == earlier[start + shift : end + shift]).sum()))
    return best / len(later)
