"""Columns of an event that a function of yours makes, where no table says them: an *executor*.

    # my_events.py, a module that is installed, on PYTHONPATH, or beside the definitions
    @executor
    def price_band(events: pl.DataFrame) -> pl.DataFrame:
        return events.select(price_band=pl.col("price").log10().floor().cast(pl.Int32))

    Computed("band", executor="my_events:price_band", on=["price"], columns={"price_band": "int32"})

It gives each event its values by that event alone, and the same whenever it is asked: then a day, a micro-batch and a
backfill agree. Definitions that are published have its name alone, so that every process that makes rows of the
timeline, a batch, a backfill or an online store, must be able to import it; readers need nothing. A function that
answers otherwise than before calls for a new version of the definitions, as any change of what a sequence holds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from reqdedup.sequences.columns import POLARS_TYPES
from reqdedup.sequences.definition import Computed


@dataclass(frozen=True)
class Executor:
    """A function that definitions may name; nothing else of a module is called by them."""

    function: Callable[[pl.DataFrame], pl.DataFrame]

    def __call__(self, events: pl.DataFrame) -> pl.DataFrame:
        return self.function(events)


def executor(function: Callable[[pl.DataFrame], pl.DataFrame]) -> Executor:
    """Marks a function as an executor: from the columns `on` of events it makes a frame of as many rows with the
    columns that the definition says."""
    return Executor(function)


def load_executor(one: Computed) -> Executor:
    """Raises ValueError unless the module can be imported here and has an executor of that name."""
    module, _, name = one.executor.partition(":")
    say = f"computed {one.name}: an executor {one.executor} required"
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{say}, found none ({error}); install its module, or put it on PYTHONPATH") from error
    if not isinstance(found, Executor):
        raise ValueError(f"{say}, found {type(found).__name__}; mark the function with @executor")
    return found


def with_computed(rows: pl.DataFrame, one: Computed, run: Executor) -> pl.DataFrame:
    """Events with the columns that an executor makes of them. Raises ValueError if it makes others, or values that are
    not of their dtypes."""
    say = f"computed {one.name}: {one.executor}"
    made = run(rows.select(one.on))
    if made.height != rows.height or set(made.columns) != set(one.columns):
        raise ValueError(
            f"{say}: columns {', '.join(one.columns)} of {rows.height} events required, found "
            f"{', '.join(made.columns)} of {made.height}"
        )
    try:
        cast = made.select(pl.col(name).cast(POLARS_TYPES[dtype]) for name, dtype in one.columns.items())
    except pl.exceptions.InvalidOperationError as error:
        raise ValueError(f"{say}: values of {dict(one.columns)} required, found {dict(made.schema)}") from error
    return rows.hstack(cast)
