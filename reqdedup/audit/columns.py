"""The sample as a table of ours: the columns that its leaves become, as `convert` makes them, in deduplicated batches.

    member   string      user_id, its hash, and the text itself
    sku      string      item_id, its number in the vocabulary, if it is the item's key
    history  list<int8>  list of int32, once per request
    seen_at  list<time>  list of whole milliseconds, as of numbers in another unit that look like times
    tags     list<text>  list of the texts' int32 ids
    price    decimal     in its own type; lists that differ inside a request are taken to stay as they are

Names do not matter to the bytes of a column, so columns are numbered. `request_ts`, which every table of ours has, and
a user or item that the audited one lacks are written and not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from reqdedup.arrays.ranges import offsets_of
from reqdedup.audit.repeats import KEY, REQUEST, UNKNOWN, Repeats
from reqdedup.audit.sample import Sample
from reqdedup.audit.scan import KeyColumns
from reqdedup.audit.values import SampleColumn
from reqdedup.dedup.encoding import blobs_from_numpy, deduplicated_schema, element_type, numpy_from_blobs
from reqdedup.dedup.history_time import milliseconds, seeming_unit
from reqdedup.dedup.stored import type_name
from reqdedup.schema import (
    ITEM_ID,
    NUMBER_WIDTH_BYTES,
    REQUEST_ID,
    REQUEST_TS,
    USER_ID,
    Column,
    EngagementSchema,
    Kind,
    Level,
)
from reqdedup.storage.foreign.files import TableFiles
from reqdedup.storage.foreign.leaves import Leaf, Shape, is_text, uuid_text

BATCH_ROWS, BATCH_BYTES = 65_536, 64 * 2**20
TRIED_LISTS = 256
"""Distinct lists by which it is judged whether whole numbers are times."""

_ID_MASK = np.uint64(2**63 - 1)


class SampleTable:
    """Rows of the sample in the form that `storage.write` takes.

    schemas: of the tables that the columns are written in: one, and a further one for vectors of every other length
    than the history's. Other lists of other lengths are no sequences.
    leaf_of: the leaf that each counted column is made of; several columns may be of one leaf.
    times: unit of the lists that are taken for times of events, which become milliseconds.
    """

    def __init__(
        self,
        table: TableFiles,
        sample: Sample,
        repeats: Mapping[str, Repeats],
        keys: KeyColumns,
        blobs: Mapping[str, Column],
    ) -> None:
        """blobs: of a table of ours, the binary columns that are sequences, by name."""
        self._sample, self._repeats, self._blobs = sample, repeats, blobs
        self.leaf_of: dict[str, str] = {}
        units = {name: _time_unit(column) for name, column in sample.columns.items() if name not in blobs}
        self.times = {name: unit for name, unit in units.items() if unit is not None}
        self._keys: dict[str, np.ndarray] = {}
        self._whole: set[str] = set()
        texts = [one for name, one in sample.columns.items() if one.has_words or (name,) == keys.item]
        self._numbers = _vocabulary([one for one in texts if is_text(one.leaf.type)])
        head = [
            self._key(USER_ID, keys.user, sample.user),
            self._key(REQUEST_ID, keys.request, sample.request),
            self._key(ITEM_ID, keys.item, sample.key_rank.astype(np.uint64)),
            Column(name=REQUEST_TS, dtype="timestamp", level=Level.REQUEST, doc="not counted"),
        ]
        _, first, inverse = np.unique(sample.request, return_index=True, return_inverse=True)
        self._first_of_request = first[inverse]
        scalars: list[Column] = []
        lists: dict[bytes, list[Column]] = {}
        for number, leaf in enumerate(leaf for leaf in table.leaves if leaf.name in sample.columns):
            column = (
                None
                if leaf.name in self._whole
                else self._column(f"c{number}", leaf, is_required=table.is_required(leaf))
            )
            if column is None:
                continue
            self.leaf_of[column.name] = leaf.name
            if column.is_blob:
                width = NUMBER_WIDTH_BYTES[column.dtype] if leaf.name in blobs else None
                lengths = sample.columns[leaf.name].lengths(first, width)
                lists.setdefault(lengths.tobytes(), []).append(column)
            else:
                scalars.append(column)
        groups = sorted(
            lists.values(),
            key=lambda group: (all(self._is_vector(column, first) for column in group), -self._elements(group[0])),
        )
        leaves = {leaf.name: leaf for leaf in table.leaves}
        for group in groups[1:]:
            if not any(self._stays_blob(column, first) for column in group):
                kept = [_kept_list(column.name, leaves[self.leaf_of[column.name]], Level.REQUEST) for column in group]
                scalars += [column for column in kept if column is not None]
        blobs_apart = [group for group in groups[1:] if any(self._stays_blob(column, first) for column in group)]
        self.schemas = [EngagementSchema((*head, *scalars, *(groups[0] if groups else ())))]
        self.schemas += [EngagementSchema((*head, *group)) for group in blobs_apart]

    @property
    def leaves(self) -> list[str]:
        """Leaves that have a place in our layouts."""
        return list(dict.fromkeys(self.leaf_of.values()))

    def counted(self, schema: EngagementSchema) -> list[str]:
        """Columns of one of `schemas` that count there; keys count in the first."""
        own = [column.name for column in schema.columns if schema is self.schemas[0] or column.is_blob]
        return [name for name in own if name in self.leaf_of]

    def user_ids(self, rows: np.ndarray) -> np.ndarray:
        return self._keys[USER_ID][rows]

    def batches(self, schema: EngagementSchema, rows: np.ndarray) -> Iterator[pa.RecordBatch]:
        """These rows of the sample, in this order, in batches of bounded size."""
        row_bytes = np.full(len(rows), 64, np.int64)
        for name in self.counted(schema):
            row_bytes += self._sample.columns[self.leaf_of[name]].row_bytes[rows]
        part = np.cumsum(row_bytes) // BATCH_BYTES
        bounds = np.union1d(np.flatnonzero(np.diff(part)) + 1, np.arange(0, len(rows), BATCH_ROWS))
        for some in np.split(rows, bounds[bounds > 0]):
            if len(some):
                arrays = [self._array(column, some) for column in schema.columns]
                yield pa.RecordBatch.from_arrays(arrays, schema=deduplicated_schema(schema))

    def _stays_blob(self, column: Column, first: np.ndarray) -> bool:
        """Whether it is a vector, or a sequence in a table of ours, although it has not the length of the history."""
        return self.leaf_of[column.name] in self._blobs or self._is_vector(column, first)

    def _is_vector(self, column: Column, first: np.ndarray) -> bool:
        """Whether it holds as many fractions in every request, and is no sequence of a table of ours."""
        name = self.leaf_of[column.name]
        values = self._sample.columns[name]
        is_fraction = pa.types.is_floating(values.leaf.type) and name not in self._blobs
        return is_fraction and len(np.unique(values.lengths(first))) == 1

    def _elements(self, column: Column) -> int:
        return int(self._sample.columns[self.leaf_of[column.name]].slots.sum())

    def _key(self, name: str, leaves: tuple[str, ...], identity: np.ndarray) -> Column:
        """The int64 key of one integer column as it is, of an item of text its number by frequency, else a hash;
        counted with the first of its columns."""
        ids = (identity & _ID_MASK).view(np.int64)
        if leaves:
            self.leaf_of[name] = leaves[0]
        if len(leaves) == 1:
            column = self._sample.columns[leaves[0]]
            if pa.types.is_integer(column.leaf.type):
                ids = column.plain_values().cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False)
                self._whole.add(leaves[0])
            elif name == ITEM_ID and is_text(column.leaf.type):
                ids = self._numbers[leaves[0]][column.ids]
                self._whole.add(leaves[0])
        self._keys[name] = ids
        return Column(name=name, dtype="int64", level=Level.KEY, doc=", ".join(leaves) or "not counted")

    def _column(self, name: str, leaf: Leaf, *, is_required: bool) -> Column | None:
        column, found = self._sample.columns[leaf.name], self._repeats[leaf.name]
        if leaf.name in self._blobs or leaf.shape is Shape.LIST:
            dtype = self._blobs[leaf.name].dtype if leaf.name in self._blobs else _list_dtype(column)
            dtype = "int64" if leaf.name in self.times else dtype
            if dtype is None or not found.may_be_request_level or column.null_elements:
                return _kept_list(name, leaf, Level.REQUEST if found.may_be_request_level else Level.ITEM)
            return Column(name=name, dtype=dtype, level=Level.REQUEST, doc=leaf.name, kind=Kind.SEQUENCE)
        dtype = _scalar_dtype(leaf)
        if dtype is None:
            return None
        is_request = found.level in (REQUEST, UNKNOWN, KEY) and not (found.is_constant or found.broken_requests)
        level = Level.REQUEST if is_request else Level.ITEM
        return Column(name=name, dtype=dtype, level=level, doc=leaf.name, nullable=not is_required)

    def _array(self, column: Column, rows: np.ndarray) -> pa.Array:
        if column.name in self._keys:
            return pa.array(self._keys[column.name][rows])
        if column.name not in self.leaf_of:
            return pa.array(np.zeros(len(rows), np.int64)).cast(element_type(column))
        values = self._sample.columns[self.leaf_of[column.name]]
        if column.is_blob:
            used, codes = np.unique(values.ids[self._first_of_request[rows]], return_inverse=True)
            return pa.DictionaryArray.from_arrays(
                pa.array(codes.astype(np.int32)),
                _blobs(values, used, column, self._numbers, self.times.get(values.leaf.name)),
            )
        plain = values.rows(rows)
        if values.leaf.is_uuid:
            plain = uuid_text(plain)
        return plain.cast(element_type(column), safe=False)


def _blobs(
    values: SampleColumn, ids: np.ndarray, column: Column, numbers_of: Mapping[str, np.ndarray], unit: str | None
) -> pa.Array:
    """These values of a list column as little-endian numbers; a null list is an empty one, a null element zero.

    unit: of times, which become milliseconds.
    """
    if values.has_words:
        numbers, offsets = numpy_from_blobs(values.raw(ids), "int32")
        return blobs_from_numpy(numbers_of[values.leaf.name].astype(np.int32)[numbers], offsets)
    if not values.is_list or (values.element_type == element_type(column) and unit in (None, "ms")):
        return values.raw(ids)
    lists = values.of_ids(ids)
    elements, lengths = lists.flatten(), lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    if unit is not None:
        elements = milliseconds(elements, unit)
    numbers = elements.cast(element_type(column), safe=False).fill_null(0).to_numpy(zero_copy_only=False)
    return blobs_from_numpy(numbers, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def _kept_list(name: str, leaf: Leaf, level: Level) -> Column | None:
    """The column of lists that are no sequence; None if Iceberg has no type for its elements."""
    dtype = type_name(leaf.type)
    return Column(name=name, dtype=f"list<{dtype}>", level=level, doc=leaf.name, nullable=True) if dtype else None


def _vocabulary(columns: list[SampleColumn]) -> dict[str, np.ndarray]:
    """Of each column the number of each of its words, [W + 1] int64, the last of a null: those of one vocabulary, whose
    most frequent word has the first."""
    if not columns:
        return {}
    found = [column.words() for column in columns]
    words = pa.chunked_array([one.cast(pa.large_binary()) for one, _ in found]).combine_chunks().dictionary_encode()
    codes = words.indices.to_numpy()
    counts = np.bincount(codes, np.concatenate([times for _, times in found]))
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    ends = np.cumsum([len(one) for one, _ in found])
    return {column.leaf.name: np.append(rank[part], 0) for column, part in zip(columns, np.split(codes, ends[:-1]))}


def _time_unit(column: SampleColumn) -> str | None:
    """The unit of lists of times, or of whole numbers that seem to be times; None if it is of others."""
    kind = column.leaf.type
    if not column.is_list or column.null_elements:
        return None
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return str(getattr(kind, "unit", "s"))
    if not pa.types.is_integer(kind) or kind.bit_width < 32 or pa.types.is_uint64(kind):
        return None
    lists = column.of_ids(np.arange(min(len(column.values), TRIED_LISTS)))
    return seeming_unit(lists.flatten().to_numpy(), offsets_of(lists.value_lengths().to_numpy()))


def _list_dtype(column: SampleColumn) -> str | None:
    kind = column.leaf.type
    if is_text(kind) and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        return "int32"
    return "int32" if pa.types.is_boolean(kind) else _number_dtype(kind)


def _scalar_dtype(leaf: Leaf) -> str | None:
    return "string" if leaf.is_uuid else type_name(leaf.type)


def _number_dtype(kind: pa.DataType) -> str | None:
    if pa.types.is_integer(kind):
        return "int32" if kind.bit_width < 32 or kind == pa.int32() else "int64"
    if pa.types.is_floating(kind):
        return "float64" if kind.bit_width == 64 else "float32"
    return None
