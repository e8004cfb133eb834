"""What a bundle's model reads and gives, as plain values: `signature.json`.

    inputs       name, dtype, level, kind, width, nullable; read_as: what the model takes it for; default: what it
                 becomes if it is null or left out (without one it is required); computed: of how much of a history,
                 for one that a server computes from it
    outputs      one float32 for each candidate: logits named for the labels, or a cosine
    labels, positive_label    what it was trained for
    transforms   the window of a history and what a null becomes
    vocabulary   where ids come from: item_id from the bundle's items, user_id from the hash of user_key if the log's
                 users are texts (`hash_string`)
    schema       fingerprint of the columns of the table that it was trained on; snapshot_id: of that table

Clients, the feature fetch and the Feature Trimmer read it; `Transforms` comes from it in a server.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reqdedup.arrays.recent_events import RecentEvents
from reqdedup.arrays.windows import HistoryCut
from reqdedup.models.config import ModelConfig
from reqdedup.models.registry import kind_of
from reqdedup.models.transforms import OF_WINDOW, Transforms
from reqdedup.schema import HISTORY_ITEM_ID, ITEM_ID, USER_ID, Column, EngagementSchema, Kind, Level
from reqdedup.values import NULL_INTEGER, check_readable, null_of

USER_KEY = "user_key"
"""The column with the log's own user ids, if they are texts."""

COSINE = "cosine"
"""The output of a retrieval model: of user vector and item vector."""

_NULLS = {"integer": NULL_INTEGER, "float": "NaN", "bool": False, "label": "NaN"}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs, outputs and origin of a model.

    labels: names of the log's labels that it was trained for; of a ranking model those of its logits, in order.
    positive_label: a retrieval model learned from the rows where it is positive; None means all.
    schema: fingerprint of the training table's columns.  snapshot_id: of that table, None if its source had none.
    user_keys: whether the log's users are texts, of which user_id is the hash.
    learned: what its training held out (`reqdedup.training.held_out.Learned`); {} if it read nothing of the log, None
        if that is not known.
    """

    transforms: Transforms
    outputs: tuple[str, ...]
    labels: tuple[str, ...]
    positive_label: str | None
    schema: str
    snapshot_id: int | None
    user_keys: bool = False
    learned: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        schema: EngagementSchema,
        *,
        stride: int = 0,
        positive_label: str | None = None,
        snapshot_id: int | None = None,
        longest_history: int | None = None,
        learned: Mapping[str, Any] | None = None,
    ) -> Signature:
        """Of a model trained on a table of this schema. stride: of the history cut, 0 means its default.
        longest_history: as of `Transforms.of`.

        Raises ValueError if the table lacks a column that the model reads.
        """
        logits = _logits(config)
        return cls(
            transforms=Transforms.of(config, schema, stride=stride, longest_history=longest_history),
            outputs=logits or (COSINE,),
            labels=logits or ((positive_label,) if positive_label else ()),
            positive_label=positive_label,
            schema=schema_fingerprint(schema),
            snapshot_id=snapshot_id,
            user_keys=USER_KEY in schema,
            learned=learned,
        )

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError if it is not the signature of a model of this configuration: every input that the model
        reads, and every output that it gives."""
        inputs = tuple(column.name for column in self.transforms.columns)
        for what, wanted, found in (
            ("inputs", (ITEM_ID, *config.columns), inputs),
            ("outputs", _logits(config) or (COSINE,), self.outputs),
        ):
            if found != wanted:
                raise ValueError(
                    f"{what} of the model, {', '.join(wanted)}, required, found {', '.join(found) or 'none'}; export "
                    "the bundle again"
                )

    def to_dict(self, config: ModelConfig) -> dict[str, Any]:
        """Plain values, ready for strict JSON; `from_dict` is the inverse."""
        cut = self.transforms.cut
        return {
            "task": kind_of(config).task,
            "inputs": [self._input(column, config) for column in self.transforms.columns],
            "outputs": [{"name": name, "dtype": "float32"} for name in self.outputs],
            "labels": list(self.labels),
            "positive_label": self.positive_label,
            "transforms": {"history": {"max_events": cut.max_events, "stride": cut.step}, "nulls": _NULLS},
            "vocabulary": {ITEM_ID: "items", **({USER_ID: USER_KEY} if self.user_keys else {})},
            "schema": self.schema,
            "snapshot_id": self.snapshot_id,
            **({} if self.learned is None else {"learned": dict(self.learned)}),
        }

    def _input(self, column: Column, config: ModelConfig) -> dict[str, Any]:
        default = self.transforms.default_of(column)
        return {
            "name": column.name,
            "dtype": column.dtype,
            "level": column.level.value,
            "kind": column.kind.value,
            "width": column.width,
            "nullable": column.nullable,
            "read_as": _read_as(column, config),
            **({} if default is None else {"default": _to_json(default)}),
            **({"computed": asdict(computed)} if (computed := self.transforms.computed.get(column.name)) else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Signature:
        """Raises ValueError for rules that this version does not compute, KeyError or TypeError for another form."""
        if values["transforms"]["nulls"] != _NULLS:
            raise ValueError(f"null rules {_NULLS} required, found {values['transforms']['nulls']}; train again")
        for one in values["inputs"]:
            check_readable(one["name"], one["dtype"])
        columns = tuple(
            Column(
                name=one["name"],
                dtype=one["dtype"],
                level=Level(one["level"]),
                kind=Kind(one["kind"]),
                width=one["width"],
                nullable=one["nullable"],
            )
            for one in values["inputs"]
        )
        if not columns or columns[0].name != ITEM_ID:
            raise ValueError(f"{ITEM_ID} as the first input required, found {[column.name for column in columns[:1]]}")
        defaults = {
            column.name: default
            for column, one in zip(columns, values["inputs"], strict=True)
            if "default" in one and not _is_null((default := _from_json(one["default"])), column)
        }
        computed = {one["name"]: RecentEvents(**one["computed"]) for one in values["inputs"] if "computed" in one}
        cut = HistoryCut(**values["transforms"]["history"])
        return cls(
            transforms=Transforms(columns=columns, cut=cut, defaults=defaults, computed=computed),
            outputs=tuple(one["name"] for one in values["outputs"]),
            labels=tuple(values["labels"]),
            positive_label=values["positive_label"],
            schema=values["schema"],
            snapshot_id=values["snapshot_id"],
            user_keys=USER_ID in values["vocabulary"],
            learned=values.get("learned"),
        )


def _logits(config: ModelConfig) -> tuple[str, ...]:
    """Labels that a ranking model scores, in their order; a retrieval model has none."""
    logits: tuple[str, ...] = getattr(config, "labels", ())
    return logits


def schema_fingerprint(schema: EngagementSchema) -> str:
    """128 bits, hexadecimal, of the columns' names, types, levels and shapes; their docs may change."""
    columns = [[c.name, c.dtype, c.level.value, c.kind.value, c.width, c.nullable] for c in schema.columns]
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:32]


def _read_as(column: Column, config: ModelConfig) -> str:
    """Item, category, number, vector, or window: what says which events a history is."""
    if column.name in (ITEM_ID, HISTORY_ITEM_ID):
        return "item"
    if column.name in OF_WINDOW:
        return "window"
    if column.kind is Kind.VECTOR:
        return "vector"
    is_number = column.name in (*config.number_columns, *config.item_numbers) or column.dtype.startswith("float")
    return "number" if is_number else "category"


def _is_null(default: bool | int | float, column: Column) -> bool:
    """Whether it is what a null of the column becomes: then a value that is left out is missing, and said to be."""
    null = null_of(column)
    return column.nullable and (default == null or (default != default and null != null))


def _to_json(value: bool | int | float) -> bool | int | float | str:
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def _from_json(value: bool | int | float | str) -> bool | int | float:
    return float(value) if isinstance(value, str) else value
