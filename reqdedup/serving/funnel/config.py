"""How many items every step of a recommendation passes on, and what it weighs: a frozen configuration, from TOML.

format = 1
retrieved = 500              # items from the index
ranked = 100                 # of them, the best by the light score

[light]                      # cosine + popularity x share + freshness x 2^(-age / half_life_days)
bundle = "bundles/early"     # of an early ranker: its weighted probabilities instead of the cosine
popularity = 0.05
popularity_column = "count"
freshness = 0.05
freshness_column = "first_seen"
half_life_days = 7

[labels]                     # the ranking's score: weight x probability, added up
click = 1.0
save = 2.0

[slate]                      # reqdedup.rerank
length = 25
[[slate.terms]]
kind = "volume"
weight = 0.5
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from reqdedup.rerank import SlateConfig
from reqdedup.rerank.config import FORMAT as SLATE_FORMAT
from reqdedup.rerank.config import Volume, check_count
from reqdedup.serving.retrieval.item_vectors import ItemVectors

FORMAT = 1
_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class LightRanking:
    """What an item's place before the ranking follows from.

    bundle: of an early ranker, whose probabilities, weighted as the ranking's, stand for the cosine
        (`reqdedup.serving.funnel.light_model`); empty: the cosine itself.
    popularity: weight of the item's share of the most popular, log(1 + count) / log(1 + largest count).
    popularity_column: counts, at least 0.
    freshness: weight of 2^(-age / half-life).  freshness_column: first seen [seconds or microseconds since 1970].
    half_life_days: age at which an item's freshness is one half [days].
    """

    bundle: str = ""
    popularity: float = 0.0
    popularity_column: str = "count"
    freshness: float = 0.0
    freshness_column: str = "first_seen"
    half_life_days: float = 7.0

    def __post_init__(self) -> None:
        for name in ("popularity", "freshness"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"light: a weight {name} of at least 0 required, found {getattr(self, name)}")
        if not self.half_life_days > 0:
            raise ValueError(f"light: half_life_days above 0 required, found {self.half_life_days}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Item columns that have a weight."""
        weights = ((self.popularity, self.popularity_column), (self.freshness, self.freshness_column))
        return tuple(column for weight, column in weights if weight)

    def scores(self, score_N: np.ndarray, row_N: np.ndarray, items: ItemVectors, *, now_s: float) -> np.ndarray:
        """Light scores [N] float64 of retrieved items. score_N: what they begin with, cosines for one.  row_N: their
        rows in `items`.  now_s: seconds since 1970."""
        score_N = score_N.astype(np.float64)
        if self.popularity:
            count_N = np.maximum(items.columns[self.popularity_column][row_N], 0).astype(np.float64)
            largest = max(items.maximum(self.popularity_column), 1.0)
            score_N += self.popularity * np.log1p(count_N) / np.log1p(largest)
        if self.freshness:
            age_N = np.maximum(now_s - _seconds(items.columns[self.freshness_column][row_N]), 0)
            score_N += self.freshness * np.exp2(-age_N / (self.half_life_days * _DAY_S))
        return score_N


def _seconds(moment_N: np.ndarray) -> np.ndarray:
    if moment_N.dtype.kind == "M":
        return moment_N.astype("datetime64[us]").astype(np.int64) / 1e6
    moment_N = moment_N.astype(np.float64)
    return np.where(moment_N > 1e11, moment_N / 1e6, moment_N)  # seconds reach 1e11 in the year 5138


@dataclass(frozen=True, kw_only=True)
class FunnelConfig:
    """retrieved, ranked: items that retrieval and light ranking pass on.  labels: weight of each label's probability in
    the score of the ranking; empty: the model's first label alone.  slate: the re-ranking."""

    retrieved: int = 500
    ranked: int = 100
    light: LightRanking = field(default_factory=LightRanking)
    labels: tuple[tuple[str, float], ...] = ()
    slate: SlateConfig = field(
        default_factory=lambda: SlateConfig(length=25, standardise=True, terms=(Volume(weight=0.5),))
    )

    def __post_init__(self) -> None:
        for name in ("retrieved", "ranked"):
            check_count(getattr(self, name), 1, f"funnel: {name}")
        if not 1 <= self.ranked <= self.retrieved:
            raise ValueError(f"funnel: 1 <= ranked <= retrieved required, found {self.ranked} and {self.retrieved}")
        for label, weight in self.labels:
            if not abs(weight) < float("inf"):
                raise ValueError(f"funnel: a finite weight of {label} required, found {weight}")
        if self.slate.length > self.ranked:
            raise ValueError(f"funnel: a slate of at most ranked = {self.ranked} required, found {self.slate.length}")

    @property
    def fingerprint(self) -> str:
        """Equal for equal configurations, in every process: what the impression log keeps as the version. Where a
        light ranking's bundle lies is none of it; the recommender adds which one it is."""
        kinds = [type(part).__name__ for part in (*self.slate.terms, *self.slate.rules)]
        values = asdict(self)
        del values["light"]["bundle"]
        text = json.dumps([FORMAT, kinds, values], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_items(self, items: ItemVectors) -> None:
        """Raises ValueError if the items lack a column that light ranking or the slate reads."""
        wanted = (*self.light.columns, *self.slate.columns)
        if missing := [name for name in dict.fromkeys(wanted) if name not in items.columns]:
            raise ValueError(
                f"funnel: item columns {', '.join(missing)} required, found {', '.join(items.columns) or 'none'}; "
                "export them with the bundle or leave the term out"
            )

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raises ValueError for a weight of a label that the ranking model does not have."""
        if missing := [label for label, _ in self.labels if label not in labels]:
            raise ValueError(
                f"funnel: labels of the ranking model ({', '.join(labels)}) required, found {', '.join(missing)}"
            )

    def check_light(self, labels: Sequence[str], weighted: Sequence[str]) -> None:
        """Raises ValueError if the light ranking's model lacks a label that has a weight."""
        if missing := [label for label in weighted if label not in labels]:
            raise ValueError(
                f"funnel: light: a model of the label {', '.join(missing)} required, by which slates are ranked, found "
                f"one of {', '.join(labels)}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A configuration from the plain values of a TOML file. Raises ValueError that names what does not fit."""
        values = dict(values)
        found = values.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"funnel: format = {FORMAT} required, found {found}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"funnel: keys {', '.join(sorted(known))} allowed, found {', '.join(unknown)}")
        for name in ("light", "labels", "slate"):
            if not isinstance(values.get(name, {}), Mapping):
                raise ValueError(f"funnel: a table [{name}] required, found {values[name]!r}")
        try:
            if "light" in values:
                values["light"] = LightRanking(**values["light"])
            if "labels" in values:
                values["labels"] = tuple((str(name), float(weight)) for name, weight in values["labels"].items())
            if "slate" in values:
                values["slate"] = SlateConfig.from_dict({"format": SLATE_FORMAT, **values["slate"]})
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"funnel: {error}") from None


def load_funnel_config(path: str | Path) -> FunnelConfig:
    """The configuration of a TOML file. Raises ValueError that names the file and what does not fit in it."""
    try:
        return FunnelConfig.from_dict(tomllib.loads(Path(path).read_text()))
    except OSError as error:
        raise ValueError(f"{path}: a TOML file required, found {error.strerror}") from None
    except ValueError as error:  # tomllib's too
        raise ValueError(f"{path}: {str(error).removeprefix('funnel: ')}") from None
