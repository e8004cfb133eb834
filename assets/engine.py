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
        "(a cluster); the same bits on each. Empty: as REQDEDUP_ENGINE says, else processes for large tables alone.",
    )
    num_processes: int | None = Field(
        default=None, ge=1, description="How many, with engine processes. Empty: one per core."
    )
    ray_address: str = Field(
        default="",
        description="HOST:PORT of the cluster, with engine ray. Empty: that of RAY_ADDRESS, or of this host.",
    )

    @property
    def engine_name(self) -> str:
        """As the library has it; "" if nothing was chosen."""
        name = self.engine.value if self.engine else ""
        for field, value, of in (
            ("num_processes", self.num_processes, EngineName.processes),
            ("ray_address", self.ray_address, EngineName.ray),
        ):
            if value and self.engine is not of:
                raise ValueError(f"{field}: engine {of.value} beside it required, found {name or 'none'}")
        of_engine = self.num_processes or self.ray_address
        return f"{name}:{of_engine}" if of_engine else name

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Any]:
        with engine_named(self.engine_name), super().yield_for_execution(context) as resource:
            yield resource
