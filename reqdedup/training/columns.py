"""What a configuration asks of a log that its columns, or the files that it names, cannot give: refused before anything
is written or a rank starts.

Names, levels and types alone are looked at, no value; what only the rows show is `Survey`'s.
"""

from __future__ import annotations

from pathlib import Path

import torch

from reqdedup.models.checkpoint import load_checkpoint
from reqdedup.models.config import ModelConfig
from reqdedup.models.derived import Derived
from reqdedup.models.foundation.beginning import read_foundation
from reqdedup.models.registry import build_model
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.training.config import TrainingConfig
from reqdedup.training.held_out import Learned, check_held_out
from reqdedup.training.optimizers import check_rate_factors
from reqdedup.training.warm_start import WarmStart

WHOLE = ("bool", "int32", "int64")
_OF_CATEGORIES = ("vocabulary", "cross", "hash")


def check_columns(config: TrainingConfig, schema: EngagementSchema) -> None:
    """Raises ValueError for a column that the log lacks, or has at another level or of another type than its use needs,
    for a duration or label that the model reads too, and for rate_factors of parameters that the model lacks."""
    _check_model(config.model, schema)
    for label in getattr(config.model, "labels", ()):
        _label(schema, label, "the model's labels")
    if config.task != "ranking" and config.positive_label:
        _label(schema, config.positive_label, "positive_label")
    for label, _, duration, _ in config.positives:
        _label(schema, label, "positives")
        if duration:
            _column(schema, duration, "positives: a duration", levels=(Level.ITEM, Level.LABEL))
            if duration in config.model.columns:
                raise ValueError(
                    f"training: positives: a duration that is no input of the model required, found {duration} of "
                    f"{label} among its inputs: it is known after the engagement alone, and says whether there was "
                    "one; name it in the model's exclude"
                )
    if config.coarse_column:
        _column(schema, config.coarse_column, "coarse_column", levels=(Level.ITEM,), dtypes=WHOLE)
    for name in config.slice_by:
        _column(schema, name, "slice_by", levels=(Level.REQUEST,), dtypes=WHOLE)
    if config.rate_factors:
        with torch.device("meta"):
            check_rate_factors([name for name, _ in build_model(config.model).named_parameters()], config.rate_factors)


def check_files(config: TrainingConfig) -> None:
    """Raises ValueError for a file that the run begins with or learns from and that is not what it must be."""
    if config.foundation:
        read_foundation(Path(config.foundation), config.model)
    if config.teacher:
        load_checkpoint(Path(config.teacher))
    if config.warm_start:
        WarmStart.load(config)
    if config.item_vectors and config.held_out and (learned := Learned.of_bundle(config.item_vectors)):
        check_held_out(config.item_vectors, learned, config, None)


def _check_model(model: ModelConfig, schema: EngagementSchema) -> None:
    for level, derived in ((Level.REQUEST, model.derived_request), (Level.ITEM, model.derived_item)):
        for one in derived:
            _check_derived(one, schema, level)
    for name in model.columns:
        found = _found(schema, name, "the model's inputs")
        if not found.is_number or found.level is Level.LABEL:
            raise ValueError(
                f"training: the model's inputs: a column of numbers that is no label required, found {name}, "
                f"{_words(found)}; leave it out of the model"
            )


def _check_derived(one: Derived, schema: EngagementSchema, level: Level) -> None:
    said = f"derived feature {one.name}"
    for name in one.columns:
        column = _column(schema, name, said, levels=(level,))
        if one.op in _OF_CATEGORIES and column.dtype.startswith("float"):
            raise ValueError(
                f"training: {said}: a column of whole numbers required for {one.op}, found {name}, {_words(column)}; "
                "use buckets"
            )


def _label(schema: EngagementSchema, name: str, said: str) -> None:
    if name not in {column.name for column in schema.labels}:
        raise ValueError(
            f"training: {said}: one of the log's labels required, found {name!r}; it has "
            f"{', '.join(column.name for column in schema.labels) or 'none'}"
        )


def _found(schema: EngagementSchema, name: str, said: str) -> Column:
    if name not in schema:
        raise ValueError(
            f"training: {said}: no such column: {name}; the log has {', '.join(schema.names)}. Features in a table of "
            "their own are joined to it first (docs/features.md)"
        )
    return schema[name]


def _column(
    schema: EngagementSchema,
    name: str,
    said: str,
    *,
    levels: tuple[Level, ...],
    dtypes: tuple[str, ...] | None = None,
) -> Column:
    """The column `name`, one number at one of these levels. dtypes: of these types; None: any that is a number."""
    column = _found(schema, name, said)
    is_fit = column.is_number if dtypes is None else column.dtype in dtypes
    if column.kind is not Kind.SCALAR or column.level not in levels or not is_fit:
        raise ValueError(
            f"training: {said}: a column with {'a number' if dtypes is None else 'a whole number'} for each "
            f"{'request' if levels == (Level.REQUEST,) else 'item of a request'}"
            f"{' (or a label)' if Level.LABEL in levels else ''} required, found {name}, {_words(column)}"
        )
    return column


def _words(column: Column) -> str:
    """What a column is, for people."""
    kind = "" if column.kind is Kind.SCALAR else f" ({column.kind.value})"
    return f"{'text' if column.dtype == 'string' else column.dtype}{kind} at the level {column.level.value}"
