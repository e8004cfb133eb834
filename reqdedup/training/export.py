"""From a training run to a bundle: the weights of its checkpoint, and the items of the table that it was trained on.

`train` writes one when it ends; `reqdedup export` writes it again, of a run that was stopped too, from its checkpoint
and run.json. Items are read from scalar columns alone; memory is that of the distinct items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from reqdedup.models import TwoTower
from reqdedup.models.bundle import write_bundle
from reqdedup.models.checkpoint import load_checkpoint, load_model
from reqdedup.models.config import ModelConfig
from reqdedup.models.int8_tables import with_int8_tables
from reqdedup.models.items import Items
from reqdedup.models.signature import Signature
from reqdedup.schema import ITEM_ID, NUMBER_WIDTH_BYTES, REQUEST_TS, Column
from reqdedup.training.blocks import column_values
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.config import TrainingConfig
from reqdedup.training.held_out import Learned
from reqdedup.training.plan import KeyedSource, RowGroupSource, Source

ITEM_KEY = "item_key"
"""The column with the log's own item ids, if they are texts and no vocabulary has them."""

VECTORS_TOGETHER = 4096


def export_checkpoint(checkpoint: Path, source: Source, out: Path | str, *, int8_tables: bool = False) -> Path:
    """Write the bundle of a checkpoint into the folder `out`.

    source: what it was trained on.  int8_tables: of items and events (`reqdedup.models.int8_tables`).
    Raises ValueError for a checkpoint that cannot be read and an `out` that is no bundle.
    """
    state = load_checkpoint(checkpoint)
    training = TrainingConfig.from_dict(state["config"])
    config = training.model
    is_retrieval = training.task == "retrieval"
    items = read_items(source, config, impressions_too=is_retrieval)
    signature = Signature.of(
        config,
        source.schema,
        stride=training.history_stride,
        positive_label=training.positive_label if is_retrieval else None,
        snapshot_id=state["snapshot_id"],
        learned=Learned.of_checkpoint(state).to_dict(),
        longest_history=longest_history(source)
        if any(source.schema[name].computed for name in config.columns)
        else None,
    )
    model = load_model(checkpoint)
    if int8_tables:
        with_int8_tables(model)
    vectors = item_vectors(cast(TwoTower, model), items) if is_retrieval else None
    return write_bundle(
        out, config=config, weights=model.state_dict(), signature=signature, items=items, item_vectors=vectors
    )


def longest_history(source: Source) -> int | None:
    """Events of the longest history of a source; None if it has no histories."""
    names = [column.name for column in source.schema.sequences[:1]]
    if not names:
        return None
    width, longest = NUMBER_WIDTH_BYTES[source.schema[names[0]].dtype], 1
    for batch in _batches(source, names):
        longest = max(longest, pc.max(pc.binary_length(batch.column(0).dictionary)).as_py() or 0)
    return max(1, longest // width)


@torch.no_grad()
def item_vectors(model: TwoTower, items: Items) -> np.ndarray:
    """[V, D] float32: the item tower over all items, in their order."""
    item_id_V = torch.from_numpy(items.item_id_V)
    columns = {name: torch.from_numpy(values) for name, values in items.columns.items()}
    parts = [torch.zeros(0, model.config.output_width)]
    for begin in range(0, len(items), VECTORS_TOGETHER):
        part = slice(begin, begin + VECTORS_TOGETHER)
        parts.append(model.encode_items(item_id_V[part], {name: x_V[part] for name, x_V in columns.items()}))
    return torch.cat(parts).float().numpy()


def read_items(source: Source, config: ModelConfig, *, impressions_too: bool = False) -> Items:
    """All items of a source: an item's columns are those of its earliest row.

    impressions_too: keep the model's columns that differ between the rows of an item (a position, say); else they are
    left out, since they belong to an impression. A model that makes vectors of items needs a value of each.
    """
    columns = [source.schema[name] for name in config.item_columns]
    has_keys = ITEM_KEY in source.schema
    names = [ITEM_ID, REQUEST_TS, *config.item_columns, *([ITEM_KEY] if has_keys else [])]
    read, batches = [source.schema[ITEM_ID], source.schema[REQUEST_TS], *columns], _batches(source, names)
    if (first := next(batches, None)) is None:
        raise ValueError("export: rows to take items from required, found none in the source")
    found = Catalogue.of_parts(_part(batch, read, has_keys) for batch in chain([first], batches))
    keys = None if found.keys is None else tuple("" if key is None else key for key in found.keys)
    if isinstance(source, KeyedSource) and (known := source.item_keys(found.item_id_V)) is not None:
        keys = tuple(known.tolist())
    return Items(
        item_id_V=found.item_id_V,
        count_V=found.count_V,
        first_seen_V=found.first_seen_V,
        columns={name: x for name, x in found.columns.items() if impressions_too or name not in found.varying},
        keys=keys,
    )


def _part(batch: pa.RecordBatch, columns: Sequence[Column], has_keys: bool) -> Catalogue:
    item_id, time, *rest = [column_values(batch.column(column.name), column) for column in columns]
    values = {column.name: x for column, x in zip(columns[2:], rest, strict=True)}
    keys: Any = np.array(batch.column(ITEM_KEY).to_pylist(), object) if has_keys else None
    return Catalogue.of_rows(item_id, np.ones(len(item_id), np.int64), time, values, keys)


def _batches(source: Source, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if isinstance(source, RowGroupSource):
        for group in source.row_groups():
            yield source.read_row_group(group, names)
    else:
        yield from source.batches(names)
