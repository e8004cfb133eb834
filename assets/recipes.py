"""Sizes of a run. A recipe is a function that returns one complete frozen configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from reqdedup.logs import SyntheticLogConfig
from reqdedup.storage import Activity


@dataclass(frozen=True, kw_only=True)
class SampleRecipe:
    """How users are drawn for training.

    rate: share of the users of each activity stratum.  quantiles: edges of the strata, by requests per user.
    max_requests_per_user: whole requests kept of a very active user.
    """

    rate: float = 0.8
    quantiles: tuple[float, ...] = (0.5, 0.9)
    max_requests_per_user: int = 32
    seed: int = 0

    @property
    def strata(self) -> Activity:
        return Activity(quantiles=self.quantiles)


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """How long and how wide the two models are trained; the columns come from the log.

    num_steps: optimiser steps.  requests_per_batch: requests in one step over all ranks.
    learning_rate: at the start; it decays to zero.  width: D.  history_length: tokens read of each history.
    """

    num_steps: int
    requests_per_batch: int
    learning_rate: float
    width: int = 32
    num_layers: int = 1
    num_ranks: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One complete configuration of the graph.

    log: of the synthetic log; a log of the user's own replaces it.  num_buckets: of the bucketed tables.
    max_history: S, longest history built from a log of the user's own [events].
    session_gap_s: pause that starts a new request where a log has no request id [s].
    """

    name: str
    log: SyntheticLogConfig
    num_buckets: int
    max_history: int
    session_gap_s: float = 1800.0
    sample: SampleRecipe = field(default_factory=SampleRecipe)
    retrieval: TrainRecipe
    ranking: TrainRecipe


def first_of_month() -> datetime:
    """The first day of the current month, 00:00 UTC: recent, and the same for every run of a month."""
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def smoke(end_ts: datetime | None = None) -> Recipe:
    """For tests: the whole graph in under 30 s."""
    return Recipe(
        name="smoke",
        log=SyntheticLogConfig(
            end_ts=end_ts or first_of_month(),
            num_days=7,
            num_users=150,
            num_items=2_000,
            mean_requests_per_user=3,
            mean_fan_out=16,
            max_fan_out=64,
            history_scale=1 / 150,
            max_history=64,
        ),
        num_buckets=4,
        max_history=64,
        retrieval=TrainRecipe(num_steps=30, requests_per_batch=32, learning_rate=3e-3),
        ranking=TrainRecipe(num_steps=30, requests_per_batch=32, learning_rate=3e-3),
    )


def laptop(end_ts: datetime | None = None) -> Recipe:
    """The default: minutes on 2 cores, under 4 GB of memory."""
    return Recipe(
        name="laptop",
        log=SyntheticLogConfig(
            end_ts=end_ts or first_of_month(),
            num_users=2_000,
            num_items=20_000,
            mean_requests_per_user=3,
            mean_fan_out=32,
            max_fan_out=256,
            history_scale=1 / 40,
            max_history=256,
        ),
        num_buckets=8,
        max_history=256,
        retrieval=TrainRecipe(num_steps=300, requests_per_batch=64, learning_rate=3e-3),
        ranking=TrainRecipe(num_steps=300, requests_per_batch=64, learning_rate=3e-3),
    )


def full(end_ts: datetime | None = None) -> Recipe:
    """Histories of up to 16,384 tokens and a fan-out of 150: hours, and tens of GB of disk for the control tables."""
    return Recipe(
        name="full",
        log=SyntheticLogConfig(
            end_ts=end_ts or first_of_month(),
            num_users=2_000,
            num_items=1_000_000,
            mean_requests_per_user=3,
            mean_fan_out=150,
            max_fan_out=1_000,
            max_history=16_384,
        ),
        num_buckets=32,
        max_history=16_384,
        retrieval=TrainRecipe(num_steps=1_000, requests_per_batch=64, learning_rate=1e-3, width=64, num_layers=2),
        ranking=TrainRecipe(num_steps=1_000, requests_per_batch=64, learning_rate=1e-3, width=64, num_layers=2),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"smoke": smoke, "laptop": laptop, "full": full}
