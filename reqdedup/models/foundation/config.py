"""The configuration of the foundation model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from reqdedup.models.config import ModelConfig, inputs_of
from reqdedup.schema import HISTORY_END, TIMELINE_VERSION, EngagementSchema


@dataclass(frozen=True, kw_only=True)
class FoundationConfig(ModelConfig):
    """A causal transformer over user sequences that learns to say what comes next.

    output_width: of the two L2-normalised vectors whose product is the score.
    window: each event predicts the positive ones of the next so many; 1 is the next event alone.
    future: beside it the event that has so many behind it predicts all the positive ones of these; 0: none does.
    positive_category: category of the events that says which are positive, those of `positive_values`; empty: all are.
    pairs_per_step: at most so many pairs of an event and one that it predicts, drawn anew in each step and rank.
    """

    output_width: int = 64
    window: int = 4
    future: int = 8
    positive_category: str = ""
    positive_values: tuple[int, ...] = ()
    pairs_per_step: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.future < 0 or self.pairs_per_step < 2:
            raise ValueError(
                "FoundationConfig: window of at least 1, future of at least 0 and pairs_per_step of at least 2 "
                f"required, found {self.window}, {self.future} and {self.pairs_per_step}"
            )
        if self.history_attention != "causal":
            raise ValueError(
                f"FoundationConfig: causal attention required, found {self.history_attention}: an event would see what "
                "it is to predict"
            )
        if bool(self.positive_category) != bool(self.positive_values) or (
            self.positive_category and self.positive_category not in self.history_categories
        ):
            raise ValueError(
                "FoundationConfig: positive_category, one of the history's categories "
                f"{', '.join(self.history_categories) or '(none)'}, and its positive_values required together, found "
                f"{self.positive_category!r} and {self.positive_values}"
            )

    @classmethod
    def from_schema(
        cls, schema: EngagementSchema, *, exclude: Iterable[str] = (), numbers: Iterable[str] = (), **sizes: Any
    ) -> Self:
        """Of the log's history columns alone. Requests of a user share a pass if the log says where histories begin:
        each event is then read once. sizes: any other field."""
        inputs = inputs_of(schema, exclude=exclude, numbers=numbers)
        is_shared = HISTORY_END in schema and TIMELINE_VERSION in schema
        shared = {"share_context": "user"} if is_shared and sizes.get("positions_from", "start") == "start" else {}
        return cls(**{"history_categories": inputs["history_categories"], **shared, **sizes})
