"""From bytes that were written of a sample of users to those of the whole table, with the error stated.

    estimate = X Y / x        Y, x: bytes and size of the sample; X: the table's size, known of the whole
    error    = delete-one-group jackknife over groups of users, each with all its users' bytes

A size is the number of users, requests, rows or, of a list column, elements: whichever the bytes of the groups are most
nearly proportional to. The estimator's own error is added to what the jackknife gives:

- The sample is written twice, into buckets as large as the table's and into more and smaller ones, which are the groups
  of the jackknife. What a row group costs on its own (its dictionaries, its headers) shows between the two, as a + b /
  rows; if the sample's row groups are smaller than the table's would be, the estimate is taken along that line, and the
  whole of this correction counts as error.
- MODEL_ERROR: no figure is claimed more closely than that, also if the sample is the whole table. A conversion knows
  more than an audit: which columns are labels, in what unit times are, which texts are of one vocabulary.

Source: Wolter, "Introduction to Variance Estimation", 2007, ch. 4 (jackknife of a ratio).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MODEL_ERROR = 0.08
"""Of an estimate, on both sides: 50 generated tables that were audited whole and converted into four layouts lay within
7.1% (docs/decisions/0097; tests/audit/test_intervals.py)."""

MOST_EXTRAPOLATED = 3.0
"""Times the difference between the two writings that an estimate is taken beyond the first."""


@dataclass(frozen=True)
class Estimate:
    """bytes, and the ends of its 95% interval."""

    bytes: float
    low: float
    high: float

    def plus(self, constant: float) -> Estimate:
        """With bytes that are known exactly added."""
        return Estimate(self.bytes + constant, self.low + constant, self.high + constant)


@dataclass(frozen=True)
class Written:
    """What one writing of the sample took.

    bytes: [groups] of each column.  sizes: [groups] of each kind of size.  group_rows: mean rows of a row group.
    """

    bytes: Mapping[str, np.ndarray]
    sizes: Mapping[str, np.ndarray]
    group_rows: float


@dataclass(frozen=True)
class ColumnTotal:
    """The estimated bytes of one column, and what they would be without each of the groups, [groups].

    correction: part of the estimate that was not measured but taken along the line of row-group sizes.
    """

    total: float
    without: np.ndarray
    correction: float = 0.0

    def times(self, share: float) -> ColumnTotal:
        return ColumnTotal(self.total * share, self.without * share, self.correction * share)


@dataclass(frozen=True)
class Population:
    """num_units: users (or rows) of the table; num_sampled: of the sample; is_whole: the sample is the table."""

    num_units: float
    num_sampled: int
    is_whole: bool


def estimate_columns(
    large: Written, groups: Written, totals: Mapping[str, float], *, table_group_rows: float
) -> dict[str, ColumnTotal]:
    """Bytes of every column in the whole table.

    large: with buckets as the table's.  groups: the jackknife's; may be `large`.  totals: the table's sizes, by kind.
    table_group_rows: mean rows of the table's row groups. The number of a list column's elements goes by its name.
    """
    beyond = _beyond(large.group_rows, groups.group_rows, table_group_rows)
    found = {}
    for name, of_groups in groups.bytes.items():
        kinds = [kind for kind in ("requests", "rows", "users", name) if kind in totals]
        without = {kind: leave_one_out(of_groups, groups.sizes[kind]) * totals[kind] for kind in kinds}
        best = min(kinds, key=lambda kind: relative_spread(without[kind]))
        scale = totals[best] / max(float(large.sizes[best].sum()), 1e-9)
        measured = float(large.bytes[name].sum()) * scale
        correction = (measured - float(of_groups.sum()) * scale) * beyond
        total = max(measured + correction, 0.5 * measured)
        level = float(of_groups.sum()) * scale
        found[name] = ColumnTotal(total, without[best] * (total / level if level else 1.0), total - measured)
    return found


def joined(groups: Sequence[Written]) -> Written:
    """Groups that were written one by one."""
    return Written(
        {name: np.concatenate([one.bytes[name] for one in groups]) for name in groups[0].bytes},
        {kind: np.concatenate([one.sizes[kind] for one in groups]) for kind in groups[0].sizes},
        float(np.mean([one.group_rows for one in groups])),
    )


def between(one: ColumnTotal, other: ColumnTotal) -> ColumnTotal:
    """The mean of two writings that differ by chance alone; all of their difference counts as error."""
    total = (one.total + other.total) / 2
    error = max(abs(one.correction), abs(other.correction)) + abs(one.total - other.total)
    return ColumnTotal(total, (one.without + other.without) / 2, error)


def leave_one_out(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The ratio of sums of y and x without each entry, [n]; with all of them if there is just one."""
    if len(y) < 2:
        return np.full(len(y), y.sum() / max(x.sum(), 1e-9))
    return (y.sum() - y) / np.maximum(x.sum() - x, 1e-9)


def relative_spread(values: np.ndarray) -> float:
    mean = float(values.mean())
    return float(values.std()) / mean if mean else 0.0


def interval(columns: Sequence[ColumnTotal], population: Population) -> Estimate:
    """The sum of several columns; their errors are those of the same groups, so they are added before they spread."""
    total = sum(column.total for column in columns)
    half = MODEL_ERROR * total + abs(sum(column.correction for column in columns))
    if columns and not population.is_whole:
        without = np.sum([column.without for column in columns], axis=0)
        count = len(without)
        unseen = max(0.0, 1 - population.num_sampled / max(population.num_units, 1))
        variance = unseen * (count - 1) / count * float(((without - without.mean()) ** 2).sum())
        half += student_t(count - 1) * math.sqrt(variance) if count > 1 else total
    return Estimate(total, max(0.0, total - half), total + half)


def _beyond(large: float, small: float, table: float) -> float:
    """How far, in differences between the two writings, the table's row groups lie beyond the larger ones."""
    if small > 0.8 * large:  # no two points, no line
        return 0.0
    return float(np.clip((1 / large - 1 / table) / (1 / small - 1 / large), -1.0, MOST_EXTRAPOLATED))


def student_t(degrees: int) -> float:
    """The 97.5% quantile of Student's t."""
    table = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
    if degrees in table:
        return table[degrees]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
