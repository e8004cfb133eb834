"""What a run is told in the launchpad: which log, and what differs from its recipe; every field typed."""

from enum import StrEnum
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

import warehouse
from assets.recipes import RECIPES, Recipe


class Size(StrEnum):
    """Sizes of a run: the names of `assets.recipes.RECIPES`."""

    smoke = "smoke"
    laptop = "laptop"
    full = "full"
    events = "events"


class LogPreset(StrEnum):
    """Logs that are known: the names of `reqdedup.logs.presets.Preset`."""

    amazon_reviews = "amazon_reviews"
    criteo_attribution = "criteo_attribution"
    eb_nerd = "eb_nerd"
    kuairand = "kuairand"
    kuairec = "kuairec"
    lastfm = "lastfm"
    mind = "mind"
    movielens = "movielens"
    movielens_ratings = "movielens_ratings"
    open_bandit = "open_bandit"
    taobao = "taobao"
    yambda = "yambda"
    yelp = "yelp"


class ComparedLayout(StrEnum):
    """Layouts that are compared with the shuffled control."""

    sorted = "sorted"
    by_request = "by_request"


class Layer(StrEnum):
    """Layers of the history transformer: `reqdedup.models.config.LayerKind`."""

    softmax = "softmax"
    hstu = "hstu"


class Pooled(StrEnum):
    """What the user tower reads of a history: `reqdedup.models.two_tower.config.Pooling`."""

    mean = "mean"
    last = "last"
    both = "both"


class Tower(StrEnum):
    """Cross layers in the towers: `reqdedup.models.cross.TowerKind`."""

    mlp = "mlp"
    stacked = "stacked"
    parallel = "parallel"


class NegativeItems(StrEnum):
    """What retrieval contrasts with: `reqdedup.training.config.Negatives`."""

    batch = "batch"
    catalogue = "catalogue"


class LossOfRanking(StrEnum):
    """`reqdedup.training.ranking_loss.RankingLoss`."""

    cross_entropy = "cross_entropy"
    pairwise = "pairwise"
    listwise = "listwise"


class HeldOutBy(StrEnum):
    """`reqdedup.training.split.SplitBy`."""

    user = "user"
    time = "time"
    last = "last"


class RunRecipe(dg.ConfigurableResource):
    """Which log, and how large a run: a recipe, and what is to differ from it."""

    recipe: Size = Field(
        default=Size.laptop,
        description="Size of the run: smoke (seconds), laptop (minutes) or full (hours); "
        "events (minutes): requests whose histories follow from the stream of events.",
    )
    logs: str = Field(
        default="",
        description="Path of your own log, a file or a folder, on the machine that runs this; empty makes a synthetic "
        "one. Needs a preset or a mapping.",
    )
    preset: LogPreset | None = Field(default=None, description="How to read your log, if it is one of these.")
    mapping: str = Field(
        default="", description="How to read any other log: path of a TOML file that names its columns."
    )
    events: str = Field(
        default="",
        description="Path of your own events, a file or a folder of JSON Lines or Parquet; empty makes a synthetic "
        "stream. Needs `sequences`.",
    )
    sequences: str = Field(
        default="", description="Python file with the EventLog and SequenceDefinitions of your events."
    )
    histories: str = Field(
        default="",
        description="Sequence of your events from which the requests of your log get their histories. Empty: the log's "
        "own histories.",
    )
    strict: bool = Field(default=False, description="Rows of the log that cannot be read fail the run.")
    max_rejects: float = Field(
        default=0.1, ge=0, le=1, description="Share of the log's rows, 0 to 1, above which rejected ones fail the run."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        description="Of the synthetic log, the user sample and the training. Another seed makes another synthetic log, "
        "in a namespace of its own. Empty: the recipe's.",
    )
    layouts: list[ComparedLayout] = Field(
        default=[],
        description="Layouts that compression_report compares with the shuffled control; empty: all. Which are "
        "written is which assets are selected.",
    )
    num_buckets: int | None = Field(
        default=None, ge=1, description="Buckets of the bucketed tables. Empty: the recipe's."
    )
    sample_rate: float | None = Field(
        default=None, gt=0, le=1, description="Share of the users that training reads, 0 to 1. Empty: the recipe's."
    )
    max_requests_per_user: int | None = Field(
        default=None, ge=1, description="Requests kept of a very active user in the sample. Empty: the recipe's."
    )
    foundation: bool | None = Field(
        default=None,
        description="Pre-train a foundation model on the sample's histories, each event once for all requests of its "
        "user, and begin both models with it. Empty: the recipe's, which only smoke does.",
    )
    training_steps: int | None = Field(
        default=None, ge=1, description="Optimiser steps of each model. Empty: the recipe's."
    )
    max_epochs: int | None = Field(
        default=None,
        ge=0,
        description="Passes over the sample, after which training ends whatever training_steps says; 0: no limit. "
        "Empty: the recipe's.",
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="Of each model, at its highest. Empty: the recipe's."
    )
    ranks: int | None = Field(
        default=None, ge=1, le=64, description="Processes that train a model together. Empty: the recipe's."
    )
    layer: Layer | None = Field(
        default=None,
        description="Layers of both models' history transformer: softmax attention, or hstu, where how often something "
        "happened counts. Empty: the recipe's, softmax.",
    )
    pooling: Pooled | None = Field(
        default=None,
        description="Retrieval: what the user tower reads of the history: the mean of its events, the last, or both. "
        "Empty: the recipe's, mean.",
    )
    tower: Tower | None = Field(
        default=None,
        description="Retrieval: an MLP alone, or cross layers (DCN v2) stacked before it or parallel to it. Empty: the "
        "recipe's, mlp.",
    )
    negatives: NegativeItems | None = Field(
        default=None,
        description="Retrieval: contrast with items of other users in the batch, or with the catalogue. Empty: the "
        "recipe's, batch.",
    )
    ranking_loss: LossOfRanking | None = Field(
        default=None,
        description="Ranking: cross_entropy of each row (calibrated), or pairwise or listwise within a request. Empty: "
        "the recipe's, cross_entropy.",
    )
    split_by: HeldOutBy | None = Field(
        default=None,
        description="What both models are judged on: held-out users, the last requests by time, or each user's last "
        "one. Empty: the recipe's, user.",
    )

    def get(self) -> Recipe:
        """The recipe with what differs from it."""
        return RECIPES[self.recipe.value]().changed(
            seed=self.seed,
            num_buckets=self.num_buckets,
            sample_rate=self.sample_rate,
            max_requests_per_user=self.max_requests_per_user,
            foundation=self.foundation,
            training={
                "num_steps": self.training_steps,
                "max_epochs": self.max_epochs,
                "learning_rate": self.learning_rate,
                "num_ranks": self.ranks,
                "layer": _value(self.layer),
                "split_by": _value(self.split_by),
            },
            retrieval={
                "pooling": _value(self.pooling),
                "tower": _value(self.tower),
                "negatives": _value(self.negatives),
            },
            ranking={"ranking_loss": _value(self.ranking_loss)},
        )

    @property
    def events_path(self) -> Path:
        return Path(self.events)

    def check_log(self) -> None:
        """Raise ValueError unless a log of the user's own says in exactly one way how to read it, and events of the
        user's own what they look like."""
        if bool(self.events) != bool(self.sequences):
            raise ValueError("events and sequences belong together; give both or neither")
        if self.histories and not (self.logs and self.events):
            raise ValueError("histories: logs and events required, of which the requests and their histories are")
        ways = [name for name in ("preset", "mapping") if getattr(self, name)]
        if self.logs and len(ways) != 1:
            raise ValueError(f"logs: a preset or a mapping beside it required, found {' and '.join(ways) or 'neither'}")

    @property
    def namespace(self) -> str:
        """Of the tables, unless another is given."""
        return warehouse.namespace_of(
            recipe=self.recipe.value, logs=self.logs, preset=self.preset.value if self.preset else "", seed=self.seed
        )

    def log_record(self) -> dict[str, str]:
        """The log as properties of the table of its rows: its path, or which synthetic one, and a fingerprint."""
        return warehouse.log_record(recipe=self.recipe.value, logs=self.logs, seed=self.seed)

    def read_options(self) -> dict[str, Any]:
        """How the user's own log is read, for `read_log`."""
        return {
            "preset": self.preset.value if self.preset else None,
            "mapping": self.mapping or None,
            "strict": self.strict,
            "max_rejects": self.max_rejects,
        }


def _value(choice: StrEnum | None) -> str | None:
    return None if choice is None else choice.value
