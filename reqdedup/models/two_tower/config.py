"""The configuration of the two-tower model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from reqdedup.models.config import ModelConfig, inputs_of
from reqdedup.schema import EngagementSchema


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig(ModelConfig):
    """A retrieval model. output_width: of the two L2-normalised vectors whose product is the score."""

    output_width: int = 64

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
