"""The values of a sample, each distinct one once: numbers and short scalars in memory, sequences and text on disk.

A sample of fat rows repeats every sequence F times; kept as (value, index) it is F times smaller, so a bounded memory
holds enough requests for a useful estimate. `arrays` lays rows down again as the plain Arrow arrays that a writer would
be given, reusing one chunk for the copies of a value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.ranges import offsets_of
from reqdedup.dedup.encoding import numpy_from_blobs
from reqdedup.storage.foreign.leaves import Leaf, Shape

CHUNK_BYTES = 2**20
"""Of one reused chunk: copies of a long value that are laid down before the chunk is used again."""

PIECE_BYTES = 16 * 2**20
"""Of other values laid down at a time."""


class ValueStore:
    """Distinct byte strings in a file, numbered in order of arrival."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._number: dict[bytes, int] = {}
        self._lengths: list[int] = []

    def add(self, values: pa.Array) -> np.ndarray:
        """Numbers of these binary values, [N] int64; -1 for null."""
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        # A file's own dictionary may be numbered by unsigned integers, as Polars writes categories.
        codes = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        used = np.unique(codes[codes >= 0])
        number = np.full(len(encoded.dictionary) + 1, -1, np.int64)  # the last entry serves code -1
        for code, value in zip(used.tolist(), encoded.dictionary.take(pa.array(used))):
            number[code] = self._number_of(value.as_buffer())
        return number[codes]

    def finish(self) -> pa.LargeBinaryArray:
        """All values, mapped from the file."""
        self._file.close()
        offsets = np.concatenate([[0], np.cumsum(np.array(self._lengths, np.int64))])
        data = pa.memory_map(str(self._path)).read_buffer() if offsets[-1] else pa.py_buffer(b"")
        self._number.clear()
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(self._lengths), [None, pa.py_buffer(offsets), data]
        )

    def _number_of(self, value: pa.Buffer) -> int:
        key = hashlib.blake2b(value, digest_size=16).digest()
        number = self._number.setdefault(key, len(self._lengths))
        if number == len(self._lengths):
            self._lengths.append(len(value))
            self._file.write(value)
        return number


class SampleColumn:
    """One leaf column of the sampled rows.

    After `finish`: ids [N], equal where values are equal, -1 where null; slots [N], what Parquet counts as values of a
    row (its elements, one where there are none); row_bytes [N], Arrow bytes of the row's value. Of a stored column also
    value_bytes [values + 1], the last for null.
    """

    def __init__(self, leaf: Leaf, directory: Path, number: int) -> None:
        self.leaf = leaf
        self.is_list = leaf.shape is Shape.LIST
        self._is_text = leaf.width_bytes == 0
        self.is_stored = self.is_list or self._is_text
        self._store = ValueStore(directory / f"{number}.values") if self.is_stored else None
        self._words = ValueStore(directory / f"{number}.words") if self.is_list and self._is_text else None
        self._parts: list[pa.Array] = []
        self._id_parts: list[np.ndarray] = []
        self.null_elements = 0

    def add(self, array: pa.Array | None, num_rows: int) -> None:
        """Append the values of `num_rows` rows; None if the file does not have the column."""
        if array is None:
            if self._store is None:
                self._parts.append(pa.nulls(num_rows, self.leaf.type))
            else:
                self._id_parts.append(np.full(num_rows, -1, np.int64))
        elif self._store is None:
            self._parts.append(_plain(array, self.leaf.type))
        elif self.is_list:
            self._id_parts.append(self._store.add(self._blobs(array)))
        else:
            self._id_parts.append(self._store.add(_as_binary(array)))

    def finish(self) -> None:
        if self._store is None:
            self._array = pa.concat_arrays(self._parts) if self._parts else pa.array([], self.leaf.type)
            codes = self._array.dictionary_encode().indices
            self.ids = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)
            self.slots = np.ones(len(self.ids), np.int64)
            self.row_bytes = np.full(len(self.ids), self.leaf.width_bytes, np.int64)
        else:
            self.ids = np.concatenate(self._id_parts) if self._id_parts else np.zeros(0, np.int64)
            self.values = self._store.finish()
            self.value_bytes = np.append(pc.binary_length(self.values).to_numpy(zero_copy_only=False), 0).astype(
                np.int64
            )
            lengths = self.value_bytes // self._element_bytes
            self.slots = np.maximum(lengths[self.ids], 1) if self.is_list else np.ones(len(self.ids), np.int64)
            self.row_bytes = self.value_bytes[self.ids] + (4 if self._is_text and not self.is_list else 0)
            if self._words is not None:
                self._word_values = self._words.finish()
                word_bytes = pc.binary_length(self._word_values).to_numpy(zero_copy_only=False)
                mean = float(word_bytes.mean()) if len(word_bytes) else 0.0
                self.row_bytes = (self.row_bytes * (1 + mean / 4)).astype(np.int64)
        self._parts, self._id_parts = [], []

    @property
    def _element_bytes(self) -> int:
        return 4 if self._words is not None else max(self.leaf.width_bytes, 1)

    @property
    def element_type(self) -> pa.DataType | None:
        """Of the numbers that `raw` values are made of; None if they are something else."""
        return None if self._words is not None or pa.types.is_boolean(self.leaf.type) else self.leaf.type

    def lengths(self, rows: np.ndarray, width: int | None = None) -> np.ndarray:
        """Elements of each row's value of a stored column, [N]; of `width` bytes each, if it is binary."""
        return self.value_bytes[self.ids[rows]] // (width or self._element_bytes)

    @property
    def has_words(self) -> bool:
        """Whether it is of lists of text."""
        return self._words is not None

    def words(self) -> tuple[pa.Array, np.ndarray]:
        """The distinct texts of a column of text, or of lists of text, and how many rows or elements have each."""
        times = np.bincount(self.ids[self.ids >= 0], minlength=len(self.values))
        if self._words is None:
            return self.values, times
        numbers, offsets = numpy_from_blobs(self.raw(np.arange(len(self.values))), "int32")
        of_number, is_word = np.repeat(times, np.diff(offsets)), numbers >= 0
        counts = np.bincount(numbers[is_word], of_number[is_word], minlength=len(self._word_values))
        return self._word_values, counts.astype(np.int64)

    def raw(self, ids: np.ndarray) -> pa.BinaryArray:
        """These values of a stored column as their bytes; null as none."""
        values = self.values.take(pa.array(ids, mask=ids < 0))
        return pc.fill_null(values, b"").cast(pa.binary())

    @property
    def arrow_type(self) -> pa.DataType:
        """Of the plain form."""
        element = _writable(self.leaf.type)
        return pa.list_(pa.field("element", element)) if self.is_list else element

    def plain_values(self) -> pa.Array:
        """For columns that are not stored by value: the rows themselves."""
        return self._array

    def rows(self, rows: np.ndarray) -> pa.Array:
        """These rows as plain Arrow values; for stored columns at most 2^31 - 1 elements at a time."""
        return self.of_ids(self.ids[rows]) if self.is_stored else self._array.take(pa.array(rows))

    def of_ids(self, ids: np.ndarray) -> pa.Array:
        """These values of a stored column, plain."""
        mask = ids < 0
        blobs = self.values.take(pa.array(ids, mask=mask if mask.any() else None))
        if not self.is_list:
            return (
                blobs.cast(self.arrow_type)
                if not pa.types.is_fixed_size_binary(self.arrow_type)
                else blobs.cast(pa.binary()).cast(self.arrow_type)
            )
        _, offset_buffer, data = blobs.buffers()
        offsets = np.frombuffer(offset_buffer, np.int64)[blobs.offset : blobs.offset + len(blobs) + 1]
        count = int(offsets[-1] - offsets[0]) // self._element_bytes
        data = pa.py_buffer(b"") if data is None else data.slice(int(offsets[0]))
        if self._words is not None:
            numbers = pa.Array.from_buffers(pa.int32(), count, [None, data])
            words = pc.if_else(pc.less(numbers, 0), pa.scalar(None, pa.int32()), numbers)  # an element may be null
            elements = self._word_values.take(words).cast(_writable(self.leaf.type))
        elif pa.types.is_boolean(self.leaf.type):
            elements = pa.Array.from_buffers(pa.uint8(), count, [None, data]).cast(pa.bool_())
        else:
            elements = pa.Array.from_buffers(self.leaf.type, count, [None, data])
        bounds = pa.array(((offsets - offsets[0]) // self._element_bytes).astype(np.int32))
        return pa.ListArray.from_arrays(
            bounds, elements, type=self.arrow_type, mask=pa.array(mask) if mask.any() else None
        )

    def chunks(self, rows: np.ndarray) -> Iterator[pa.Array]:
        """These rows, plain, in chunks; a long value that neighbours repeat is laid down once per
        CHUNK_BYTES and reused."""
        if not self.is_stored:
            yield self._array.take(pa.array(rows))
            return
        ids = self.ids[rows]
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else np.zeros(0, np.int64)
        ends = np.append(starts[1:], len(ids))
        sizes = self.value_bytes[ids[starts]] + 8
        run_bytes = sizes * (ends - starts)
        long_runs = np.append(np.flatnonzero(run_bytes > CHUNK_BYTES), len(starts))
        before = np.concatenate([[0], np.cumsum(run_bytes)])
        first = 0
        while first < len(starts):
            next_long = int(long_runs[np.searchsorted(long_runs, first)])
            if next_long > first:
                last = int(np.searchsorted(before, before[first] + PIECE_BYTES, "right")) - 1
                last = min(max(last, first + 1), next_long)
                yield self.of_ids(ids[starts[first] : ends[last - 1]])
                first = last
                continue
            copies = max(1, int(CHUNK_BYTES // sizes[first]))
            count = int(ends[first] - starts[first])
            chunk = self.of_ids(np.full(min(copies, count), ids[starts[first]]))
            for _ in range(count // copies):
                yield chunk
            if count % copies:
                yield chunk.slice(0, count % copies)
            first += 1

    def _blobs(self, lists: pa.Array) -> pa.Array:
        """The lists as binary values, one per row, their elements' bytes back to back."""
        elements = lists.flatten()
        lengths = pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False)
        self.null_elements += elements.null_count
        if self._words is not None:
            numbers = self._words.add(_as_binary(elements)).astype(np.int32)
            data = pa.py_buffer(numbers)
        else:
            elements = _plain(elements, self.leaf.type)
            if pa.types.is_boolean(elements.type):
                elements = elements.cast(pa.uint8())
            if elements.null_count:
                # What lies under a null is arbitrary, and must not make equal values look different.
                valid = np.repeat(elements.is_valid().to_numpy(zero_copy_only=False), self._element_bytes)
                raw = np.frombuffer(_value_buffer(elements, self._element_bytes), np.uint8)
                data = pa.py_buffer(np.where(valid, raw, 0).astype(np.uint8))
            else:
                data = _value_buffer(elements, self._element_bytes)
        offsets = offsets_of(lengths) * self._element_bytes
        array = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(lists), [None, pa.py_buffer(offsets.astype(np.int64)), data]
        )
        return array if not lists.null_count else pc.if_else(lists.is_null(), pa.scalar(None, pa.large_binary()), array)


def _value_buffer(array: pa.Array, width: int) -> pa.Buffer:
    data = array.buffers()[1]
    return pa.py_buffer(b"") if data is None else data.slice(array.offset * width, len(array) * width)


def _plain(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values in the type that all files' columns share; one that it does not hold exactly counts as the nearest."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array if array.type.equals(kind) else array.cast(kind, safe=False)


def _as_binary(array: pa.Array) -> pa.Array:
    """Strings and binary as binary or as a dictionary of binary; bytes unchanged."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        return pa.DictionaryArray.from_arrays(array.indices, _as_binary(array.dictionary))
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    return array.cast(pa.large_binary())


def _writable(kind: pa.DataType) -> pa.DataType:
    """A type that Parquet writes and that this column's bytes cast to."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    return kind
