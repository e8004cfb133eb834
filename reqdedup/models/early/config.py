"""The configuration of the early ranker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from reqdedup.models.dcat.config import DCATConfig
from reqdedup.models.two_tower.config import TwoTowerConfig
from reqdedup.schema import EngagementSchema


@dataclass(frozen=True, kw_only=True)
class EarlyRankerConfig(TwoTowerConfig):
    """A ranking model for many candidates: two towers, and a head over their vectors.

    labels: names of the logits, one for each, in this order.  head_widths: hidden layers of the head, small: it alone
        runs once per candidate.
    """

    labels: tuple[str, ...] = ("click",)
    head_widths: tuple[int, ...] = (32,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.labels or not self.head_widths or min(self.head_widths) < 1:
            raise ValueError(
                "EarlyRankerConfig: at least one label and one hidden width of the head required, found "
                f"{self.labels} and {self.head_widths}"
            )
        if self.context_from == "positive":
            raise ValueError(
                "EarlyRankerConfig: context_from='logged' required, found 'positive': a candidate's own item would say "
                "how it is labelled"
            )
        if self.heads:
            raise ValueError(
                f"EarlyRankerConfig: no heads required, found {', '.join(self.heads)}: one user vector serves all of "
                "its labels"
            )

    @classmethod
    def from_schema(
        cls,
        schema: EngagementSchema,
        *,
        labels: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        numbers: Iterable[str] = (),
        **sizes: Any,
    ) -> Self:
        """As `TwoTowerConfig.from_schema`, with the labels of `DCATConfig.from_schema`."""
        chosen = DCATConfig.from_schema(schema, labels=labels).labels
        return super().from_schema(schema, exclude=exclude, numbers=numbers, labels=chosen, **sizes)
