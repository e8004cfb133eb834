"""What a slate weighs: a frozen configuration, by hand or from a TOML file.

format = 1
length = 25          # picks of a request
window = 10          # picks that a term looks back on

[[terms]]            # added to the utility, weight times
kind = "volume"
weight = 1.5

[[terms]]
kind = "soft_spacing"
column = "is_sensitive"
weight = 0.5

[[rules]]            # kept as long as a candidate is left that keeps them; the last rule gives way first
kind = "hard_spacing"
column = "author_id"
gap = 3
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any, Self

FORMAT = 1


def check_count(value: Any, least: int, name: str) -> None:
    """Raises ValueError for anything but a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} of at least {least}, a whole number, required, found {value!r}")


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """weight: factor of the term in the utility, at least 0."""

    weight: float

    @property
    def columns_read(self) -> tuple[str, ...]:
        return ()

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"{kind_of(self)}: a weight of at least 0 required, found {self.weight}")


@dataclass(frozen=True, kw_only=True)
class Volume(TermConfig):
    """Length of what the window's span does not explain of the candidate's vector: sliding spectrum decomposition.

    Source: Huang et al., "Sliding Spectrum Decomposition for Diversified Recommendation", KDD 2021.
    """


@dataclass(frozen=True, kw_only=True)
class LogVolume(TermConfig):
    """Logarithm of the squared residual: the greedy gain of a determinantal point process over the window.

    Source: Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process", NeurIPS 2018.
    """


@dataclass(frozen=True, kw_only=True)
class Mmr(TermConfig):
    """Less the largest cosine with a pick of the window: maximal marginal relevance (Carbonell and Goldstein, 1998)."""


@dataclass(frozen=True, kw_only=True)
class SoftSpacing(TermConfig):
    """Less the sum of 1 / distance over the picks of the window that are flagged, for a candidate that is flagged too.

    column: flag of the candidate, bool or number.
    """

    column: str

    @property
    def columns_read(self) -> tuple[str, ...]:
        return (self.column,)


@dataclass(frozen=True, kw_only=True)
class PrefixOverlap(TermConfig):
    """Less the longest prefix that the candidate shares with a pick of the window, as a share of all levels.

    columns: levels from the coarsest to the finest, a category path or a semantic id; integers or text.
    """

    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.columns, tuple) or not self.columns:
            raise ValueError(f"prefix_overlap: a list of columns, at least one, required, found {self.columns!r}")

    @property
    def columns_read(self) -> tuple[str, ...]:
        return self.columns


@dataclass(frozen=True, kw_only=True)
class HardSpacing:
    """No two picks of one value within `gap` picks. column: integers or text.  gap: at least 1 pick between them."""

    column: str
    gap: int

    def __post_init__(self) -> None:
        check_count(self.gap, 1, "hard_spacing: a gap")


@dataclass(frozen=True, kw_only=True)
class Quota:
    """At most, or at least, so many picks of a value in the slate.

    column: integers or text.  value: whose picks are counted; None: each value has the quota.
    at_most, at_least: picks.
    """

    column: str
    value: int | str | None = None
    at_most: int | None = None
    at_least: int | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("quota: either at_most or at_least required, found both or none")
        if self.at_least is not None and self.value is None:
            raise ValueError("quota: at_least needs the value whose picks it counts, found none")
        check_count(self.at_most if self.at_least is None else self.at_least, 0, "quota: a count")


TERMS = {
    "volume": Volume,
    "log_volume": LogVolume,
    "mmr": Mmr,
    "soft_spacing": SoftSpacing,
    "prefix_overlap": PrefixOverlap,
}
RULES = {"hard_spacing": HardSpacing, "quota": Quota}


@dataclass(frozen=True, kw_only=True)
class SlateConfig:
    """How a slate is composed.

    length: picks of a request, fewer if it has fewer candidates.  window: picks that terms look back on.
    standardise: scores of a request get mean 0 and standard deviation 1 first: weights then mean the same everywhere.
    terms: added to the score.  rules: kept while a candidate is left that keeps them; the last one gives way first.
    """

    length: int
    window: int = 10
    standardise: bool = False
    terms: tuple[TermConfig, ...] = ()
    rules: tuple[HardSpacing | Quota, ...] = ()

    def __post_init__(self) -> None:
        for name in ("length", "window"):
            check_count(getattr(self, name), 1, f"slate: {name}")
        if not isinstance(self.standardise, bool):
            raise ValueError(f"slate: standardise, true or false, required, found {self.standardise!r}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the candidate columns that terms and rules read."""
        read = [name for term in self.terms for name in term.columns_read] + [rule.column for rule in self.rules]
        return tuple(dict.fromkeys(read))

    @property
    def needs_vectors(self) -> bool:
        return any(isinstance(term, Volume | LogVolume | Mmr) for term in self.terms)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A configuration from the plain values of a TOML file. Raises ValueError that names what does not fit."""
        values = dict(values)
        found = values.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"slate: format = {FORMAT} required, found {found}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"slate: keys {', '.join(sorted(known))} allowed, found {', '.join(unknown)}")
        if "length" not in values:
            raise ValueError("slate: length, the picks of a request, required, found none")
        for name in ("terms", "rules"):
            given = values.get(name, [])
            if not isinstance(given, list) or not all(isinstance(entry, Mapping) for entry in given):
                raise ValueError(f"slate: a list of tables, [[{name}]], required, found {given!r}")
        terms = tuple(_made(TERMS, "term", entry) for entry in values.pop("terms", ()))
        rules = tuple(_made(RULES, "rule", entry) for entry in values.pop("rules", ()))
        return cls(**values, terms=terms, rules=rules)


def load_slate_config(path: str | Path) -> SlateConfig:
    """The configuration of a TOML file. Raises ValueError that names the file and what does not fit in it."""
    try:
        return SlateConfig.from_dict(tomllib.loads(Path(path).read_text()))
    except OSError as error:
        raise ValueError(f"{path}: a TOML file required, found {error.strerror}") from None
    except ValueError as error:  # tomllib's too
        raise ValueError(f"{path}: {str(error).removeprefix('slate: ')}") from None


def kind_of(config: object) -> str:
    """Name of a term or rule in a TOML file."""
    return next(name for name, made in (TERMS | RULES).items() if type(config) is made)


def _made(kinds: Mapping[str, type], what: str, entry: Mapping[str, Any]) -> Any:
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry.items() if name != "kind"
    }
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"slate: a {what} of kind {', '.join(kinds)} required, found {kind!r}")
    allowed = {field.name for field in fields(kinds[kind])}
    if unknown := sorted(set(values) - allowed):
        raise ValueError(f"slate: {kind} takes {', '.join(sorted(allowed))}, found {', '.join(unknown)}")
    try:
        return kinds[kind](**values)
    except TypeError as error:  # a field that it must have, or a value of another type
        raise ValueError(f"slate: {kind}: {error}") from None
