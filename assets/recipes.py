"""Sizes of a run. A recipe is a function that returns one complete frozen configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from reqdedup.logs import SyntheticLogConfig
from reqdedup.logs.synthetic_events import SyntheticEventsConfig
from reqdedup.models import DCATConfig, FoundationConfig, TwoTowerConfig
from reqdedup.models.config import ModelConfig
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Activity
from reqdedup.training import TrainingConfig

COUNTS = ("recent_event_count",)
"""Integer request columns that count something; the others are categories."""


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
    """How long and how wide a model is trained; what it reads comes from the log's schema.

    num_steps: optimiser steps. max_epochs: passes over the sample, after which training ends whatever num_steps says;
        ranking takes two, for with four its log loss is worse than guessing (`benchmarks.recipe_choices`), but in
        `smoke`, whose epochs are a few steps.
        requests_per_step: over all ranks. learning_rate: decays to zero.
    width: D.  num_layers: of the history transformer.  max_history: S, tokens read of a history.
    options: any other fields of the model's configuration, a variant of docs/models.md for example.  of_training: any
        other fields of TrainingConfig.
    """

    num_steps: int
    requests_per_step: int
    max_history: int
    max_epochs: int = 4
    learning_rate: float = 3e-3
    width: int = 32
    num_layers: int = 1
    num_ranks: int = 2
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    of_training: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, values: Mapping[str, Any]) -> TrainRecipe:
        """The same with everything that is not None in its place: fields of its own, of TrainingConfig, or of the
        model's configuration."""
        given = {name: value for name, value in values.items() if value is not None}
        own = {name: value for name, value in given.items() if name in self.__dataclass_fields__}
        of_training = {
            name: value
            for name, value in given.items()
            if name not in own and name in TrainingConfig.__dataclass_fields__
        }
        options = {name: value for name, value in given.items() if name not in {**own, **of_training}}
        return replace(
            self, **own, of_training={**self.of_training, **of_training}, options={**self.options, **options}
        )

    def of_histories(self) -> TrainRecipe:
        """The same without the options that a foundation model does not have."""
        fields = FoundationConfig.__dataclass_fields__
        return replace(self, options={name: value for name, value in self.options.items() if name in fields})

    def sizes(self) -> dict[str, Any]:
        """Of the model."""
        return {
            "width": self.width,
            "num_layers": self.num_layers,
            "ffn_width": 2 * self.width,
            "max_history": self.max_history,
            "numbers": COUNTS,
            **self.options,
        }

    def training(self, model: ModelConfig, *, label: str) -> TrainingConfig:
        return TrainingConfig(
            model=model,
            num_steps=self.num_steps,
            max_epochs=self.max_epochs,
            requests_per_step=self.requests_per_step,
            learning_rate=self.learning_rate,
            world_size=self.num_ranks,
            seed=self.seed,
            positive_label=label,
            **self.of_training,
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One complete configuration of the graph.

    log: of the synthetic log; a log of the user's own replaces it.  num_buckets: of the bucketed tables.
    max_history: S, longest history built from a log of the user's own [events].
    histories: sequence over the synthetic stream of events that gives the requests their histories; empty: the
        synthetic log's own.
    foundation: model that is pre-trained on the sample's histories alone, with which both models begin, and so of their
        sizes; None: they begin without.
    latency_budget_ms: longest time that scoring a request may take, its context computed anew, one thread [ms].
    """

    name: str
    log: SyntheticLogConfig
    num_buckets: int
    max_history: int
    histories: str = ""
    latency_budget_ms: float = 100.0
    sample: SampleRecipe = field(default_factory=SampleRecipe)
    foundation: TrainRecipe | None = None
    retrieval: TrainRecipe
    ranking: TrainRecipe

    @property
    def events(self) -> SyntheticEventsConfig:
        """Of the synthetic stream: as many users as the log, 2,000 at most, over a fortnight before its end."""
        return SyntheticEventsConfig(
            seed=self.log.seed,
            num_users=min(self.log.num_users, 2_000),
            num_items=min(self.log.num_items, 10_000),
            num_days=min(self.log.num_days, 14),
            start_us=round((self.log.end_ts - timedelta(days=min(self.log.num_days, 14))).timestamp() * 1e6),
        )

    @property
    def num_requests(self) -> int:
        """Of a log whose histories follow from the events."""
        return round(self.log.num_users * self.log.mean_requests_per_user)

    @property
    def fan_out(self) -> int:
        """Rows of each of these requests."""
        return round(self.log.mean_fan_out)

    def changed(
        self,
        *,
        seed: int | None = None,
        num_buckets: int | None = None,
        sample_rate: float | None = None,
        max_requests_per_user: int | None = None,
        foundation: bool | None = None,
        training: Mapping[str, Any] | None = None,
        retrieval: Mapping[str, Any] | None = None,
        ranking: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """The same with everything that is not None in its place. seed: of log, sample and training alike.

        foundation: whether there is one; of a recipe without, by that of retrieval.  training: of every model;
        retrieval, ranking: of one (`TrainRecipe.changed`).
        """
        trained = {**(training or {}), "seed": seed}
        pretrained = self.foundation
        if foundation is not None:
            pretrained = (self.foundation or self.retrieval.of_histories()) if foundation else None
        return replace(
            self,
            log=replace(self.log, **_given(seed=seed)),
            sample=replace(
                self.sample, **_given(rate=sample_rate, max_requests_per_user=max_requests_per_user, seed=seed)
            ),
            foundation=pretrained and pretrained.changed(trained),
            retrieval=self.retrieval.changed({**trained, **(retrieval or {})}),
            ranking=self.ranking.changed({**trained, **(ranking or {})}),
            **_given(num_buckets=num_buckets),
        )

    def pretraining(self, schema: EngagementSchema) -> TrainingConfig | None:
        """A foundation model on the log's histories, each user's requests side by side; None if there is none.

        Its users are judged by the first label, as retrieval is, but beside chance alone: baselines are shown there.
        """
        if self.foundation is None:
            return None
        model = FoundationConfig.from_schema(schema, **self.foundation.sizes())
        together = {"shuffle": "users", "baselines": False, **self.foundation.of_training}
        return replace(self.foundation, of_training=together).training(model, label=_first_label(schema))

    def retrieval_training(self, schema: EngagementSchema) -> TrainingConfig:
        """Two-tower on everything the log has, its first label the positive one."""
        model = TwoTowerConfig.from_schema(schema, **self.retrieval.sizes())
        return self.retrieval.training(model, label=_first_label(schema))

    def ranking_training(self, schema: EngagementSchema) -> TrainingConfig:
        """DCAT on everything the log has, one logit per label."""
        return self.ranking.training(DCATConfig.from_schema(schema, **self.ranking.sizes()), label=_first_label(schema))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _first_label(schema: EngagementSchema) -> str:
    if not schema.labels:
        raise ValueError(f"training needs a label; the log has only {', '.join(schema.names)}")
    return schema.labels[0].name


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
        foundation=TrainRecipe(
            num_steps=40, requests_per_step=32, max_history=64, num_ranks=1, options={"pairs_per_step": 256}
        ),
        retrieval=TrainRecipe(num_steps=40, requests_per_step=32, max_history=64),
        ranking=TrainRecipe(num_steps=40, requests_per_step=32, max_history=64, num_ranks=1),  # a start less
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
        retrieval=TrainRecipe(num_steps=300, requests_per_step=64, max_history=256),
        ranking=TrainRecipe(max_epochs=2, num_steps=300, requests_per_step=64, max_history=256),
    )


def full(end_ts: datetime | None = None) -> Recipe:
    """Histories of up to 16,384 tokens and a fan-out of 160: some 15 GB of disk for the control tables, and an hour and
    a half on two cores. For sizes: of 300 users models learn little (`python -m benchmarks.whole_run`)."""
    return Recipe(
        name="full",
        log=SyntheticLogConfig(
            end_ts=end_ts or first_of_month(),
            num_users=300,
            num_items=1_000_000,
            mean_requests_per_user=3,
            mean_fan_out=160,
            max_fan_out=1_000,
            max_history=16_384,
        ),
        num_buckets=16,
        max_history=16_384,
        latency_budget_ms=5_000.0,
        retrieval=TrainRecipe(
            num_steps=300, requests_per_step=16, max_history=16_384, learning_rate=1e-3, width=64, num_layers=2
        ),
        ranking=TrainRecipe(
            max_epochs=2,
            num_steps=300,
            requests_per_step=16,
            max_history=16_384,
            learning_rate=1e-3,
            width=64,
            num_layers=2,
        ),
    )


def events(end_ts: datetime | None = None) -> Recipe:
    """Requests whose histories follow from the stream of events: minutes on 2 cores."""
    return Recipe(
        name="events",
        log=SyntheticLogConfig(
            end_ts=end_ts or first_of_month(),
            num_users=600,
            num_items=200,
            mean_requests_per_user=10,
            mean_fan_out=8,
            max_fan_out=64,
        ),
        num_buckets=4,
        max_history=200,
        histories="engaged",
        retrieval=TrainRecipe(num_steps=300, requests_per_step=64, max_history=200, options={"pooling": "both"}),
        ranking=TrainRecipe(max_epochs=2, num_steps=300, requests_per_step=64, max_history=200),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"smoke": smoke, "laptop": laptop, "full": full, "events": events}
