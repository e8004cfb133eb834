"""From a sample of users to the whole table, with the error stated.

Known of the whole table, exactly or nearly: its rows, requests, users, and for lists the number of elements. A column's bytes
are regressed on these over the sampled users, and the fit is read at the table's totals: the generalised regression
estimator of survey sampling. A table whose users are alike is estimated from few of them; one whose users are not shows
large residuals, and gets a wide interval.

    total = sum_c X_c b + N/n * sum_u (y_u - x_u b)            variance = N^2 (1 - n/N) s^2(residual) / n

Residuals are inflated by their leverage, since a fit follows the users that it was made from (HC3), and the interval has
the quantile of Student's t. With dictionaries of list elements, users of one row group share one, and whether it fell back
to plain: where row groups differ by more than their users explain, the spread over row groups counts instead. What a sample
cannot show is added: `MODEL_ERROR`.

Source: Saerndal, Swensson, Wretman, "Model Assisted Survey Sampling", 1992, ch. 6; MacKinnon and White 1985 (HC3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MODEL_ERROR, DICTIONARY_MODEL_ERROR, WHOLE_MODEL_ERROR = 0.03, 0.06, 0.01
"""Of the estimate, on both sides: row groups of a sample begin and end elsewhere than the table's would; with dictionaries of
list elements, which fall back at some point, that matters more. Even a table that is sampled whole is not cut into files
exactly as its own writer would. docs/audit.md has the measurements behind these."""

UNITS_PER_REGRESSOR = 6


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
class ColumnTotal:
    """The estimated bytes of one column, each sampled unit's residual, and the row group that the unit was written in."""

    total: float
    residual: np.ndarray
    group: np.ndarray | None = None


@dataclass(frozen=True)
class Population:
    """num_units: users (or rows) of the table; num_sampled: of the sample; is_whole: the sample is the table."""

    num_units: float
    num_sampled: int
    is_whole: bool


def estimate_column(y: np.ndarray, x: np.ndarray, totals: np.ndarray, population: Population) -> ColumnTotal:
    """y: [n] bytes of each sampled unit; x: [n, p] what is known of each; totals: [p] of the table, first the rows.

    The first column of x must be positive: it also says how the spread grows with a unit's size.
    """
    if population.is_whole:
        return ColumnTotal(float(y.sum()), np.zeros(len(y)))
    columns = _usable(x, len(y))
    x, totals = x[:, columns], totals[columns]
    root = np.sqrt(x[:, 0])
    scale = np.maximum(np.abs(x).max(axis=0), 1e-300)
    design = x / scale / root[:, None]
    coefficients, *_ = np.linalg.lstsq(design, y / root, rcond=1e-8)
    residual = y - (x / scale) @ coefficients
    q, _ = np.linalg.qr(design)
    leverage = np.clip((q**2).sum(axis=1), 0, 0.95)
    expand = population.num_units / population.num_sampled
    total = float((totals / scale) @ coefficients + expand * residual.sum())
    ratio_total = float(y.sum() / x[:, 0].sum() * totals[0])
    if total <= 0.2 * ratio_total:  # a fit read far outside the sample; the plain ratio is always sane
        total, residual, leverage = ratio_total, y - x[:, 0] * (y.sum() / x[:, 0].sum()), np.zeros(len(y))
    return ColumnTotal(total, residual / (1 - leverage))


def interval(
    columns: list[ColumnTotal], population: Population, *, with_element_dictionaries: bool = False
) -> Estimate:
    """The sum of several columns; their errors are those of the same users, so residuals are added before they spread."""
    total = sum(column.total for column in columns)
    if population.is_whole or not columns:
        return Estimate(total, total * (1 - WHOLE_MODEL_ERROR), total * (1 + WHOLE_MODEL_ERROR))
    n = min(len(column.residual) for column in columns)
    residual = np.sum([column.residual[:n] for column in columns], axis=0)
    squares = float((residual**2).sum()) * n / max(n - 1, 1)
    for column in columns if with_element_dictionaries else []:
        if column.group is not None and column.group[:n].any():
            _, group = np.unique(column.group[:n], return_inverse=True)
            sums = np.bincount(group, weights=residual)
            squares = max(squares, float(((sums - sums.mean()) ** 2).sum()) * len(sums) / (len(sums) - 1))
            break
    model_error = DICTIONARY_MODEL_ERROR if with_element_dictionaries else MODEL_ERROR
    unseen = max(0.0, 1 - n / population.num_units)
    variance = (population.num_units / n) ** 2 * unseen * squares
    half = student_t(max(n - 4, 1)) * math.sqrt(variance) + model_error * abs(total)
    return Estimate(total, max(0.0, total - half), total + half)


def student_t(degrees: int) -> float:
    """The 97.5% quantile of Student's t."""
    table = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
    if degrees in table:
        return table[degrees]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _usable(x: np.ndarray, num_units: int) -> list[int]:
    """Few units cannot carry many regressors: one for every six, at least the first."""
    allowed = max(1, min(x.shape[1], num_units // UNITS_PER_REGRESSOR))
    return list(range(allowed))
