"""Where the work of a run goes that goes by bucket: fields of the resources, so that no asset names an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import dagster as dg
from pydantic import Field

from reqdedup.environment import engine_named


class EngineName(StrEnum):
    """Engines of `reqdedup.distributed`."""

    inline = "inline"
    processes = "processes"
    ray = "ray"


class OnEngine(dg.ConfigurableResource):
    """A resource in whose runs every operation that can be divided is, as if REQDEDUP_ENGINE said so."""

    engine: EngineName | None = Field(
        default=None,
        description="Where work on buckets runs: inline (in the run's own process), processes (of this machine) or ray "
        "(the cluster of RAY_ADDRESS, or of this host); the same bits on each. Empty: as REQDEDUP_ENGINE says, else "
        "processes for large tables alone.",
    )
    num_processes: int | None = Field(
        default=None, ge=1, description="How many, with engine processes. Empty: one per core."
    )

    @property
    def engine_name(self) -> str:
        """As the library has it; "" if nothing was chosen."""
        if self.num_processes is None:
            return self.engine.value if self.engine else ""
        if self.engine is not EngineName.processes:
            found = self.engine.value if self.engine else "none"
            raise ValueError(f"num_processes: engine processes beside it required, found {found}")
        return f"{self.engine.value}:{self.num_processes}"

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Any]:
        with engine_named(self.engine_name), super().yield_for_execution(context) as resource:
            yield resource
