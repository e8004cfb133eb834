"""Mature impressions as rows of an engagement table, in the columns of its schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from reqdedup.dedup.encoding import BLOB_TYPE, blobs_from_numpy, deduplicated_schema
from reqdedup.schema import (
    HISTORY_END,
    ITEM_ID,
    REQUEST_ID,
    REQUEST_TS,
    TIMELINE_VERSION,
    USER_ID,
    Column,
    EngagementSchema,
    Kind,
    Level,
)
from reqdedup.sequences.store import Window
from reqdedup.serving.impressions.log import Impression

POSITION = "position"
"""An item-level column of this name is the place in the slate, from 0, if the server did not log another."""


@dataclass(frozen=True)
class LabelledImpression:
    """A mature impression with its history and its labels."""

    impression: Impression
    window: Window
    labels: Mapping[str, np.ndarray]

    @property
    def num_clicked(self) -> int:
        """Items with a label of 1."""
        return int(np.any(list(self.labels.values()), axis=0).sum()) if self.labels else 0

    def value(self, column: Column) -> Any:
        """Of a request-level column that is no sequence; None if it is not known."""
        own = {
            USER_ID: self.impression.user_id,
            REQUEST_ID: self.impression.request_id,
            REQUEST_TS: self.impression.request_ts,
            HISTORY_END: self.impression.history_end,
            TIMELINE_VERSION: self.impression.timeline_version,
        }
        return own[column.name] if column.name in own else self.impression.request.get(column.name)

    def sequence(self, column: Column) -> np.ndarray | None:
        return self.window.columns.get(column.name.removeprefix("history_"))

    def row_values(self, column: Column) -> list[Any]:
        """Of an item-level column or a label, for every item of the slate; None where it is not known."""
        slate = self.impression.slate
        if column.name == ITEM_ID:
            return list(slate.tolist())
        if column.level is Level.LABEL:
            return list(self.labels[column.name].tolist())
        if column.name not in self.impression.items:
            return list(range(len(slate))) if column.name == POSITION else [None] * len(slate)
        place = {item: place for place, item in enumerate(self.impression.item_id.tolist())}
        values = np.asarray(self.impression.items[column.name]).tolist()
        return [values[place[item]] if item in place else None for item in slate.tolist()]

    def missing(self, schema: EngagementSchema) -> str:
        """The first column that is required and not known; empty if there is none."""
        for column in schema.columns:
            if column.nullable:
                continue
            if column.kind is Kind.SEQUENCE:
                is_there = self.sequence(column) is not None
            elif column.kind is Kind.VECTOR:
                value = self.value(column)
                is_there = value is not None and len(value) == column.width
            elif column.level is Level.REQUEST or column.name in (USER_ID, REQUEST_ID):
                is_there = self.value(column) is not None
            else:
                is_there = None not in self.row_values(column)
            if not is_there:
                return column.name
        return ""


def rows_of(labelled: Sequence[LabelledImpression], schema: EngagementSchema) -> pa.RecordBatch:
    """Deduplicated rows of these impressions, one per item that was shown."""
    fan_out = [len(one.impression.slate) for one in labelled]
    request_of_row = np.repeat(np.arange(len(labelled)), fan_out)
    arrays: list[pa.Array] = []
    for field in deduplicated_schema(schema):
        column = schema[field.name]
        if column.is_blob:
            is_sequence = column.kind is Kind.SEQUENCE
            values = [
                np.asarray(one.sequence(column) if is_sequence else one.value(column), column.dtype) for one in labelled
            ]
            offsets = np.cumsum([0, *map(len, values)])
            blobs = blobs_from_numpy(np.concatenate(values), offsets)
            arrays.append(pa.DictionaryArray.from_arrays(pa.array(request_of_row, pa.int32()), blobs).cast(BLOB_TYPE))
        elif column.level is Level.REQUEST or column.name in (USER_ID, REQUEST_ID):
            values_R = pa.array([one.value(column) for one in labelled], field.type)
            arrays.append(values_R.take(pa.array(request_of_row)))
        else:
            arrays.append(pa.array([value for one in labelled for value in one.row_values(column)], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=deduplicated_schema(schema))
