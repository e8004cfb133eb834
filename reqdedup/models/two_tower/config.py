"""The configuration of the two-tower model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from reqdedup.models.config import ModelConfig, inputs_of
from reqdedup.schema import EngagementSchema

Pooling = Literal["mean", "last", "both"]


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig(ModelConfig):
    """A retrieval model.

    output_width: of the two L2-normalised vectors whose product is the score.
    pooling: what the user tower reads of the history after the transformer: the mean of its tokens, the last one, or
        both side by side.
    """

    output_width: int = 64
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"TwoTowerConfig: pooling one of {get_args(Pooling)} required, found {self.pooling!r}")

    @property
    def state_width(self) -> int:
        """Numbers in a user's state."""
        return self.width * (2 if self.pooling == "both" else 1)

    @classmethod
    def from_schema(
        cls,
        schema: EngagementSchema,
        *,
        exclude: Iterable[str] = ("position",),
        numbers: Iterable[str] = (),
        **sizes: Any,
    ) -> Self:
        """A retrieval model of everything in the log that it can use; see there for `numbers` and `sizes`:
        `DCATConfig.from_schema`.

        exclude: columns to leave out, by default `position`: it belongs to an impression, and an item that waits in
        an index has none.
        """
        return cls(**{**inputs_of(schema, exclude=exclude, numbers=numbers), **sizes})
