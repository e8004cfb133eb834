"""Whether a model that a run begins with, or is taught by, has learned from what the run is judged by.

Its weights then know their answers, and held-out figures are too good. A warm start has seen labels and histories. A
foundation reads no label, but a history says what its user chose from earlier requests. A teacher's probability of an
item is an average of what users did with it, held-out ones among them, and by time of what they did later; the vector
of an item likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from reqdedup.models.bundle import read_signature
from reqdedup.training.config import TrainingConfig
from reqdedup.training.split import SplitBy, Splits, TimeSplit


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a training held out; see `TrainingConfig`. end_us: by time, it learned from requests before [microseconds
    since 1970, UTC]; None: that is not known."""

    split_by: SplitBy
    held_out: float
    validation: float
    seed: int
    end_us: int | None

    @classmethod
    def of_checkpoint(cls, state: Mapping[str, Any]) -> Self:
        then = TrainingConfig.from_dict(state["config"])
        part = learned_part(state) if then.split_by == "time" else {}
        return cls(
            split_by=then.split_by,
            held_out=then.held_out,
            validation=then.validation,
            seed=then.seed,
            end_us=part.get("part", part).get("end_us"),
        )

    @classmethod
    def of_bundle(cls, folder: Path | str) -> Self | None:
        """None if its model read nothing of a log. Raises ValueError if it does not say what was held out."""
        learned = read_signature(folder).learned
        if learned is None:
            raise ValueError(
                f"{folder}: a bundle that says what its training held out required, found one that does not; export it "
                "again from its checkpoint or, if it is not of a training on this log, write it with learned = {} in "
                "its signature"
            )
        return cls(**{name: learned[name] for name in cls.__dataclass_fields__}) if learned else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_held_out(
    path: Path | str, then: Learned, config: TrainingConfig, splits: Splits | None, *, and_validation: bool = False
) -> None:
    """Raises ValueError if the run whose model is at `path` may have learned from the test part of `splits`.

    By user it must have held out at least as much with the same seed, by last as many requests of a user, and by time
    have ended its training no later than the test part begins: a log that has grown may be split at a later time.
    splits: of a run of this configuration; None: not known yet, times are not looked at. and_validation: nor from the
    validation part, which chooses the weights.
    """
    if not (config.held_out or (and_validation and config.validation)):
        return
    shares = [(one.held_out, one.validation) for one in (config, then)]
    if not and_validation:
        shares[0] = (config.held_out, 0.0)
    wanted, found = f"split by {config.split_by}", f"split by {then.split_by}"
    has_read = then.split_by != config.split_by
    if config.split_by == "time" and not has_read:
        if splits is None:
            return
        part = cast(TimeSplit, splits.train if and_validation or not config.validation else splits.validation)
        ends_us = (part.end_us, then.end_us)
        has_read = part.end_us is None or then.end_us is None or then.end_us > part.end_us
        now, before = ("no time" if us is None else np.datetime64(us, "us") for us in ends_us)
        wanted, found = f"{wanted}, which ended at {now} or before", f"{found}, which ended at {before}"
    elif config.split_by == "user":
        has_read |= then.seed != config.seed or sum(shares[1]) + 1e-9 < sum(shares[0])
        wanted += f", with seed = {config.seed} and at least {sum(shares[0]):g} held out"
        found += f", with seed = {then.seed} and {sum(shares[1]):g} held out"
    elif config.split_by == "last":
        requests, those = (sum(share > 0 for share in pair) for pair in shares)
        has_read |= those < requests
        wanted, found = f"{wanted}, at least {requests} held out", f"{found}, {those} held out"
    if has_read:
        raise ValueError(
            f"{path}: a training that did not read what this run is judged by required, {wanted}, found one {found}; "
            "train it with the split_by, held_out, validation and seed of this run"
        )


def learned_part(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a log that the run of a checkpoint learned from, as its split says it; empty if it says none."""
    return state["loaders"][0].get("order", {}).get("users") or {}
