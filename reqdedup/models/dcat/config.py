"""The configuration of DCAT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from reqdedup.models.config import ModelConfig, inputs_of
from reqdedup.schema import EngagementSchema


@dataclass(frozen=True, kw_only=True)
class DCATConfig(ModelConfig):
    """A ranking model.

    labels: names of the logits, one for each, in this order.
    item_bias: add a number of each item's own to each logit, so that how well an item does at all need not pass through
        the crossing.
    random_candidates: share of the candidates that get an id drawn by chance in training, so that a model that begins
        with pre-trained tables leans on the history and does not learn each candidate's id by heart.
    """

    labels: tuple[str, ...] = ("click",)
    item_bias: bool = False
    random_candidates: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.labels:
            raise ValueError("DCATConfig: at least one label required, found none")
        if not 0 <= self.random_candidates < 1:
            raise ValueError(f"DCATConfig: random_candidates in [0, 1) required, found {self.random_candidates}")

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
        """A ranking model of everything in the log that it can use.

        labels: those to learn; all of the schema's unless named.  exclude: columns to leave out.
        numbers: integer request columns that count something, so that they are no categories.
        sizes: any other field of the configuration.
        """
        chosen = tuple(labels) if labels is not None else tuple(column.name for column in schema.labels)
        unknown = sorted(set(chosen) - {column.name for column in schema.labels})
        if unknown:
            raise ValueError(f"labels {unknown} are not in the log; it has {[column.name for column in schema.labels]}")
        return cls(labels=chosen, **{**inputs_of(schema, exclude=exclude, numbers=numbers), **sizes})
