"""Strata: disjoint groups that together hold every user, by activity, by a request-level column, or by both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reqdedup.schema import EngagementSchema, Kind, Level
from reqdedup.storage.sampling.tally import UserTally

MAX_STRATA = 1000
MEASURES = ("requests", "rows")
EVERYONE = "everyone"
OTHERS = "*"


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Strata by how active a user is; edges belong to the stratum below them.

    bounds: rising edges in `measure`, "3 < requests <= 10" lies between 3 and 10; or
    quantiles: rising shares of the users in (0, 1), "requests, q0.5 to q0.9": the edges are the smallest values that
        at least this share of the users do not exceed. Users who are equally active are never separated.
    measure: what is counted per user, "requests" or "rows".
    """

    bounds: tuple[int, ...] = ()
    quantiles: tuple[float, ...] = ()
    measure: str = "requests"

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"Activity: measure must be one of {MEASURES}, found {self.measure!r}")
        if bool(self.bounds) == bool(self.quantiles):
            raise ValueError(
                f"Activity: give bounds or quantiles, found bounds={self.bounds}, quantiles={self.quantiles}"
            )
        edges = self.bounds or self.quantiles
        if any(low >= high for low, high in itertools.pairwise(edges)):
            raise ValueError(f"Activity: edges must rise, found {edges}")
        if self.quantiles and not all(0 < quantile < 1 for quantile in self.quantiles):
            raise ValueError(f"Activity: quantiles must lie between 0 and 1, found {self.quantiles}")

    def labels(self) -> list[str]:
        """Names of the strata, least active first; known before the data is."""
        if self.bounds:
            between = [f"{low} < {self.measure} <= {high}" for low, high in itertools.pairwise(self.bounds)]
            return [f"{self.measure} <= {self.bounds[0]}", *between, f"{self.measure} > {self.bounds[-1]}"]
        edges = ["q0", *(f"q{quantile:g}" for quantile in self.quantiles), "q1"]
        return [f"{self.measure}, {low} to {high}" for low, high in itertools.pairwise(edges)]

    def assign(self, tally: UserTally) -> np.ndarray:
        """Stratum of each user, [U] int64."""
        counts = getattr(tally, self.measure)
        edges = np.array(self.bounds, np.int64)
        if self.quantiles and len(counts):
            edges = np.quantile(counts, self.quantiles, method="inverted_cdf")
        return np.searchsorted(edges, counts, "left")


Strata = Activity | str
"""One way to divide users: by activity, or by the name of a request-level column."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """Users divided: stratum_of_user [U] int64 is a position in `labels`."""

    labels: tuple[str, ...]
    stratum_of_user: np.ndarray


def strata_columns(strata: Sequence[Strata], schema: EngagementSchema) -> list[str]:
    """The columns among `strata`. Raises ValueError for one that is not a request-level scalar of the source."""
    names = [one for one in strata if isinstance(one, str)]
    scalars = [column.name for column in schema.at(Level.REQUEST) if column.kind is Kind.SCALAR]
    for name in names:
        if name not in scalars:
            raise ValueError(f"strata by column: a request-level scalar required, one of {scalars}; found {name!r}")
    if len(names) + sum(isinstance(one, Activity) for one in strata) != len(strata) or len(set(strata)) != len(strata):
        raise ValueError(f"strata: each an Activity or a column name, every one once; found {list(strata)}")
    return names


def divide(tally: UserTally, strata: Sequence[Strata]) -> Division:
    """Each user's stratum: the first of `strata` divides the users, the next divides each part, and so on.

    A column divides by the user's value in their latest request; only combinations that occur become strata, except
    that the strata of a lone Activity are all listed. Raises ValueError for more than MAX_STRATA values of a column.
    """
    labels, stratum = [EVERYONE], np.zeros(tally.num_users, np.int64)
    for one in strata:
        if isinstance(one, Activity):
            own_labels, own = one.labels(), one.assign(tally)
        else:
            values = tally.values[one]
            if len(values) > MAX_STRATA:
                raise ValueError(
                    f"strata by column {one}: at most {MAX_STRATA:,} values, found {len(values):,}; "
                    "use a coarser column or Activity"
                )
            order = sorted(
                range(len(values)), key=lambda code: (values[code] is None, str(type(values[code])), values[code])
            )
            rank = np.empty(len(values), np.int64)
            rank[order] = np.arange(len(values))
            own_labels = [f"{one}={'null' if values[code] is None else values[code]}" for code in order]
            own = rank[tally.codes[one]]
        labels = [
            own_label if label == EVERYONE else f"{label}, {own_label}" for label in labels for own_label in own_labels
        ]
        stratum = stratum * len(own_labels) + own
        if len(strata) > 1:
            present, stratum = np.unique(stratum, return_inverse=True)
            labels = [labels[position] for position in present]
    return Division(labels=tuple(labels), stratum_of_user=stratum)


def per_stratum(setting: float | Mapping[str, float] | None, labels: Sequence[str], name: str) -> list[float | None]:
    """The setting of each stratum: one value for all, or a mapping from labels, where "*" stands for all others.

    Raises ValueError for a mapping that leaves a stratum out or names one that is not there.
    """
    if not isinstance(setting, Mapping):
        return [setting] * len(labels)
    unknown = sorted(set(setting) - set(labels) - {OTHERS})
    left_out = [label for label in labels if label not in setting and OTHERS not in setting]
    if unknown or left_out:
        meant = [(label, setting[one]) for one in unknown for label in labels if label.endswith(f"={one}")]
        hint = f"; write --{name} '{meant[0][0]}={meant[0][1]:g}'" if meant else ""
        raise ValueError(
            f"{name}: every stratum once required ({OTHERS!r} for all others), found no value for {left_out} and "
            f"values for strata that are not there: {unknown}; the strata are {list(labels)}{hint}"
        )
    return [setting.get(label, setting.get(OTHERS)) for label in labels]
