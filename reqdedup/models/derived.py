"""Features that follow from columns, declared with the model and computed in it: one code in training and in serving.

    op          reads               gives
    vocabulary  a category          1, 2, ... for the values listed, 0 for all others
    buckets     a number            how many of the rising edges are at most it; 0 for a missing one
    cross       several categories  a category of the combination
    hash        a category          another category of it: a second table, whose collisions are others
    clip        a number            the number, kept between two values
    normalise   a number            (number - mean) / deviation
    cyclic      a time or a number  sine and cosine of where it stands in a period: an hour of the day, a weekday

Categories enter through a hashed table of their own, numbers as they are, a missing one (NaN, or -1 of whole numbers)
as 0. Of a request they are computed on its R values, of candidates on theirs; a cross of both levels is none. Times are
microseconds since 1970.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch

from reqdedup.ops.places import places_of
from reqdedup.values import NULL_INTEGER

Op = Literal["vocabulary", "buckets", "cross", "hash", "clip", "normalise", "cyclic"]
_MIX = 0xBF58476D1CE4E5B9 - 2**64
_NUM_VALUES = {"clip": 2, "normalise": 2, "cyclic": 1, "cross": 0, "hash": 1}


@dataclass(frozen=True, kw_only=True)
class Derived:
    """One feature.

    name: of its own.  op: see the head of this module.  columns: what it reads, one, or for a cross at least two.
    values: of vocabulary the known values, of buckets the rising edges, of clip the lowest and the highest, of
        normalise mean and deviation, of cyclic the period in the column's unit, of hash a seed.
    """

    name: str
    op: Op
    columns: tuple[str, ...]
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "values", tuple(self.values))
        where, values = f"derived feature {self.name}", self.values
        if self.op not in get_args(Op):
            raise ValueError(f"{where}: op one of {get_args(Op)} required, found {self.op!r}")
        if (len(self.columns) < 2) if self.op == "cross" else len(self.columns) != 1:
            num_columns = "at least two columns" if self.op == "cross" else "one column"
            raise ValueError(f"{where}: {num_columns} required, found {', '.join(self.columns) or 'none'}")
        if len(values) != _NUM_VALUES.get(self.op, len(values)) or (
            self.op in ("vocabulary", "buckets") and not values
        ):
            wanted = _NUM_VALUES.get(self.op, "at least one")
            raise ValueError(f"{where}: {wanted} values required for {self.op}, found {len(values)}")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise ValueError(f"{where}: finite numbers required as values, found {values}")
        if self.op == "vocabulary" and len({*values}) < len(values):
            raise ValueError(f"{where}: each value once required, found {values}")
        if self.op in ("buckets", "clip") and any(a >= b for a, b in pairwise(values)):
            raise ValueError(f"{where}: rising values required, found {values}")
        if (self.op == "normalise" and values[1] <= 0) or (self.op == "cyclic" and values[0] <= 0):
            raise ValueError(f"{where}: a deviation or period above 0 required, found {values[-1]}")
        if self.op in ("vocabulary", "hash") and any(value != int(value) for value in values):
            raise ValueError(f"{where}: whole numbers required for {self.op}, found {values}")

    @property
    def width(self) -> int:
        """Numbers that it gives; 0 for a category."""
        return {"clip": 1, "normalise": 1, "cyclic": 2}.get(self.op, 0)

    def of(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[N] int64 of a category, [N, width] of numbers, in float32 at least. columns: [N] each."""
        x_N = columns[self.columns[0]]
        if self.op == "vocabulary":
            values = x_N.new_tensor([int(value) for value in self.values], dtype=torch.int64)
            rising, number = values.sort()
            place_N = places_of(x_N.long(), rising)
            return torch.where(place_N >= 0, number[place_N] + 1, 0)
        if self.op == "cross":
            return _crossed([columns[name].long() for name in self.columns])
        if self.op == "hash":
            return _crossed([x_N.long(), torch.full_like(x_N, int(self.values[0]), dtype=torch.int64)])
        is_missing_N = x_N.isnan() if x_N.is_floating_point() else x_N == NULL_INTEGER
        if self.op == "buckets":
            edges = torch.tensor(self.values, dtype=torch.float64, device=x_N.device)
            return torch.where(is_missing_N, 0, torch.searchsorted(edges, x_N.double(), right=True))
        wide_N = x_N.double().masked_fill(is_missing_N, torch.nan)
        if self.op == "clip":
            parts = [wide_N.clamp(*self.values)]
        elif self.op == "normalise":
            parts = [(wide_N - self.values[0]) / self.values[1]]
        else:
            angle_N = wide_N.remainder(self.values[0]) * (2 * math.pi / self.values[0])
            parts = [angle_N.sin(), angle_N.cos()]
        dtype = torch.float64 if x_N.dtype == torch.float64 else torch.float32
        return torch.stack(parts, dim=1).nan_to_num(0.0, 0.0, 0.0).to(dtype)


def with_derived(derived: Iterable[Derived], columns: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The columns, and by their names what follows from them. Raises ValueError for a column that is not there."""
    found = dict(columns)
    for one in derived:
        if missing := [name for name in one.columns if name not in columns]:
            raise ValueError(
                f"derived feature {one.name}: column {missing[0]} required, the batch has {sorted(columns)}; read all "
                "of config.columns"
            )
        found[one.name] = one.of(columns)
    return found


def _crossed(columns: list[torch.Tensor]) -> torch.Tensor:
    """A mix of whole numbers that depends on their order; multiplication modulo 2^64."""
    mixed_N = columns[0]
    for x_N in columns[1:]:
        mixed_N = _mixed(mixed_N) + x_N
    return _mixed(mixed_N)


def _mixed(x_N: torch.Tensor) -> torch.Tensor:
    """Another whole number for each, one to one."""
    return (x_N ^ ((x_N >> 31) & 0x1_FFFF_FFFF)) * _MIX
