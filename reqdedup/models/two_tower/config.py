"""The configuration of the two-tower model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from reqdedup.models.config import ModelConfig, inputs_of
from reqdedup.models.cross import TowerKind
from reqdedup.schema import EngagementSchema

Pooling = Literal["mean", "last", "both"]
ContextFrom = Literal["logged", "positive"]
Fusion = Literal["concat", "attention"]


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig(ModelConfig):
    """A retrieval model.

    output_width: of the two L2-normalised vectors whose product is the score.
    pooling: what the user tower reads of the history after the transformer: the mean of its tokens, the last one, or
        both side by side.
    tower: both towers' MLP alone, with cross layers stacked before it, or in parallel.  cross_layers: their number.
        cross_rank: numbers that each squeezes its input into.
    context_categories: (column, weight, item column) of what the request is about right now: a category of the
        request; a number of the request that says how much it counts, "" for 1; the column of the candidates that
        holds the same categories, "" for none. See `reqdedup.models.two_tower.context`.
    context_vectors: (name, width) of vectors of the request that say the same.
    context_dropout: share of the requests whose whole context is dropped in training.
    context_from: in training the context is the logged one, or made from each positive's own item.
    fusion: how context and state meet: side by side (concat), or the context weighs the parts of the state
        (attention; needs pooling="both").
    heads: labels of TrainingConfig.positives that have a user head each, with which the loss of the label is computed:
        its own first Linear, MLP and cross layers. History, features, context and items are read by the same weights,
        so there is one index of item vectors. Where one user vector is asked for (evaluation, `user_state` and
        `user_head`, a bundle, a server) it is that of the first, by whose label the model is judged. Empty: one head
        for all.
    """

    output_width: int = 64
    pooling: Pooling = "mean"
    tower: TowerKind = "mlp"
    cross_layers: int = 2
    cross_rank: int = 16
    context_categories: tuple[tuple[str, str, str], ...] = ()
    context_vectors: tuple[tuple[str, int], ...] = ()
    context_dropout: float = 0.5
    context_from: ContextFrom = "logged"
    fusion: Fusion = "concat"
    heads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (
            ("pooling", Pooling),
            ("tower", TowerKind),
            ("context_from", ContextFrom),
            ("fusion", Fusion),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"TwoTowerConfig: {name} one of {get_args(kind)} required, found {getattr(self, name)!r}"
                )
        if min(self.cross_layers, self.cross_rank) < 1:
            raise ValueError(
                "TwoTowerConfig: cross_layers and cross_rank of at least 1 required, found "
                f"{self.cross_layers} and {self.cross_rank}"
            )
        self._check_context()
        if len({*self.heads}) != len(self.heads):
            raise ValueError(f"TwoTowerConfig: heads: each label once required, found {', '.join(self.heads)}")
        if self.heads and self.has_row_heads:
            raise ValueError("TwoTowerConfig: context_from='logged' required with heads, found 'positive'")

    def _check_context(self) -> None:
        if not 0 <= self.context_dropout < 1:
            raise ValueError(f"TwoTowerConfig: context_dropout in [0, 1) required, found {self.context_dropout}")
        inputs = (*self.request_categories, *self.request_numbers, *(name for name, _ in self.request_vectors))
        if both := sorted({*self.context_columns} & {*inputs}):
            raise ValueError(
                f"TwoTowerConfig: context columns that are no other inputs required, found {', '.join(both)} in both; "
                "as an input of the request it would pass by context_dropout"
            )
        items = [item_column for _, _, item_column in self.context_categories if item_column]
        if missing := sorted({*items} - {*self.item_categories}):
            raise ValueError(
                f"TwoTowerConfig: item columns of context_categories that the items have required, found "
                f"{', '.join(missing)}; they have {', '.join(self.item_categories) or 'none'}"
            )
        if self.context_from == "positive" and not items:
            raise ValueError(
                "TwoTowerConfig: context_from='positive' needs context_categories with an item column, found none"
            )
        if self.fusion == "attention" and (not self.has_context or self.pooling != "both"):
            raise ValueError(
                "TwoTowerConfig: fusion='attention' weighs mean and last of the history by the context: a context and "
                f"pooling='both' required, found pooling={self.pooling!r} and {len(self.context_columns)} columns"
            )

    @property
    def has_context(self) -> bool:
        return bool(self.context_categories or self.context_vectors)

    @property
    def context_columns(self) -> tuple[str, ...]:
        """Columns of the request that say what it is about."""
        categories = (name for column in self.context_categories for name in column[:2] if name)
        return (*dict.fromkeys(categories), *(name for name, _ in self.context_vectors))

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, *self.context_columns)

    @property
    def number_columns(self) -> tuple[str, ...]:
        weights = (weight for _, weight, _ in self.context_categories if weight)
        return (*super().number_columns, *dict.fromkeys(weights))

    @property
    def vector_columns(self) -> tuple[tuple[str, int], ...]:
        return (*super().vector_columns, *self.context_vectors)

    @property
    def has_row_heads(self) -> bool:
        """Whether training makes a user vector for each row, and not for each request."""
        return self.context_from == "positive"

    @property
    def state_width(self) -> int:
        """Numbers in a user's state."""
        return self.width * (2 if self.pooling == "both" else 1)

    @classmethod
    def from_schema(
        cls,
        schema: EngagementSchema,
        *,
        exclude: Iterable[str] = (),
        numbers: Iterable[str] = (),
        **sizes: Any,
    ) -> Self:
        """A retrieval model of everything in the log that it can use; see there for `numbers` and `sizes`:
        `DCATConfig.from_schema`.

        exclude: columns to leave out, beside `position`: it belongs to an impression, and an item that waits in an
        index has none.
        """
        context = [name for column in sizes.get("context_categories", ()) for name in column[:2]]
        context += [name for name, _ in sizes.get("context_vectors", ())]
        of_request = {column.name for column in schema.request_columns}
        if missing := [name for name in context if name and name not in of_request]:
            raise ValueError(
                f"TwoTowerConfig: context columns of the request required, found {', '.join(missing)}; it has "
                f"{', '.join(sorted(of_request))}"
            )
        return cls(**{**inputs_of(schema, exclude=("position", *exclude, *context), numbers=numbers), **sizes})
