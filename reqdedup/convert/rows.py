"""The source as deduplicated batches, and its rows hashed value by value for the check at the end.

The two ways share nothing but the casts: batches go through blobs and dictionaries, hashes are taken of plain lists. An
Iceberg table is read a second time for the hashes, as pyiceberg itself projects it; other files have no second reader,
and their hashes are taken of what was read. The checksums agree exactly if the table holds what the source holds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.ranges import offsets_of
from reqdedup.audit.keys import hash_keys
from reqdedup.convert.mapping import Conversion, TargetColumn, engagement_schema
from reqdedup.convert.owners import RequestOwners
from reqdedup.convert.sessions import Sessions, session_ids
from reqdedup.convert.text_ids import by_value, check_text, hash_ids, hex_text, is_bytes
from reqdedup.dedup.checksum import ContentChecksum, RunningChecksum, row_hashes, value_hashes
from reqdedup.dedup.encoding import blobs_from_numpy, deduplicated_schema, element_type
from reqdedup.dedup.history_time import check_history_times, milliseconds, newest_events
from reqdedup.dedup.stored import arrow_type, is_list
from reqdedup.logs.ids import ItemKeys
from reqdedup.schema import HISTORY_TS, KEYS, REQUEST_ID, REQUEST_TS, USER_ID, Column, EngagementSchema
from reqdedup.storage.foreign.source import Piece, RowSource, Stretch

_NO_PLACE = (ValueError, pa.ArrowInvalid, pa.ArrowNotImplementedError)


@dataclass(frozen=True)
class Counted:
    """What a converter has read. num_empty: rows of the source without a candidate."""

    num_rows: int
    null_lists: int
    num_empty: int
    checksum: ContentChecksum
    owners: RequestOwners


class Converter:
    """Turns the source's rows into batches of the target schema.

    checksum: of the source's values so far, as `content_checksum` of the target must be.
    null_lists: lists that were null and become empty, since a sequence cannot be null.
    items, sessions: the keys of its items with their ids, and its sessions; set before the rows are asked for,
    if columns need them.
    owners: which users each request id has, so far; not of sessions, which are made here.
    num_rows: given so far.  time_unit, history_time_unit: see `ColumnMapping`.
    """

    def __init__(
        self,
        source: RowSource,
        columns: Sequence[TargetColumn],
        *,
        time_unit: str | None,
        history_time_unit: str | None = None,
    ) -> None:
        self.source, self.columns = source, tuple(columns)
        self.items: ItemKeys | None = None
        self.sessions: Sessions | None = None
        self.owners = RequestOwners()
        self.schema: EngagementSchema = engagement_schema(columns)
        self.checksum, self.null_lists, self.num_rows = RunningChecksum(), 0, 0
        self._time_unit, self._history_time_unit = time_unit, history_time_unit or "ms"
        self._history_times = next((one for one in columns if one.conversion is Conversion.HISTORY_TIME), None)
        self._names = list(dict.fromkeys(name for target in self.columns for name in target.sources))

    @property
    def compared_with(self) -> str:
        """What `checksum` is taken of, in words."""
        return self.source.independent_reader or "the values as they were read from the files"

    def batches(self, part: Sequence[Stretch] | None = None) -> Iterator[pa.RecordBatch]:
        """Deduplicated batches of all rows, or of a part.

        Raises ValueError for values that the target cannot hold, naming where.
        """
        for piece in self.source.pieces(self._names, part):
            plain = self._plain(piece)
            self.num_rows += piece.num_rows
            self.null_lists += sum(plain[column.name].null_count for column in self.schema.blobs)
            if self.sessions is None:
                self.owners.add(plain[REQUEST_ID].to_numpy(), plain[USER_ID].to_numpy())
            if self.source.independent_reader is None:
                self._count(plain, piece)
            if self._history_times is not None and self._is_plausible(plain, self._history_times):
                self._history_times = None  # one piece with events is enough
            arrays = [
                blobs_of(plain[column.name]) if column.is_blob else plain[column.name] for column in self.schema.columns
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=deduplicated_schema(self.schema))

    def fresh(self) -> Converter:
        """Another for the same columns, which has read nothing and leaves times of history events unchecked."""
        other = copy.copy(self)
        other.checksum, other.owners, other.null_lists, other.num_rows = RunningChecksum(), RequestOwners(), 0, 0
        other._history_times = None
        return other

    def counted(self) -> Counted:
        """What it has read."""
        num_empty = getattr(self.source, "num_empty", 0)
        return Counted(self.num_rows, self.null_lists, num_empty, self.checksum.so_far, self.owners)

    def absorb(self, other: Counted) -> None:
        """Count what another one has read, beside what this one has."""
        self.num_rows += other.num_rows
        self.null_lists += other.null_lists
        self.checksum.take(other.checksum)
        self.owners.absorb(other.owners)

    def check_history_times(self) -> None:
        """Raise ValueError if the first rows with events have them in another unit than said."""
        times = self._history_times
        if times is None:
            return
        targets = [times, next(one for one in self.columns if one.column.name == REQUEST_TS)]
        for piece in self.source.pieces(list(dict.fromkeys(name for one in targets for name in one.sources))):
            plain = {one.column.name: self._checked(piece, one) for one in targets}
            if self._is_plausible(plain, times):
                return

    def read_independently(self, part: int | None = None) -> Iterator[int]:
        """Complete `checksum` with an independent reader, if the source has one; rows done so far, piece by piece."""
        if self.source.independent_reader is not None:
            for piece in self.source.independent_pieces(self._names, part):
                self._count(self._plain(piece), piece)
                yield self.checksum.so_far.rows

    def _count(self, plain: dict[str, pa.Array], piece: Piece) -> None:
        hashes = [
            list_hashes(plain[column.name]) if column.is_blob else value_hashes(plain[column.name])
            for column in self.schema.columns
        ]
        self.checksum.add(piece.num_rows, row_hashes(self.schema.names, hashes, piece.num_rows))

    def _plain(self, piece: Piece) -> dict[str, pa.Array]:
        """Values of every target column, not deduplicated. Raises ValueError that names all columns
        with one that has no place."""
        plain, errors = {}, []
        lost: list[str] = []
        of_keys = {
            name for target in self.columns if target.column.name in (*KEYS, REQUEST_TS) for name in target.sources
        }
        for target in self.columns:
            try:
                plain[target.column.name] = self._checked(piece, target)
            except _NO_PLACE as error:
                where = "" if " at row " in str(error) else self._first_wrong_row(piece, target)
                errors.append(f"column {', '.join(target.sources)} as {target.column.dtype} required{where}: {error}")
                lost += [name for name in target.sources if name not in of_keys]
        if errors:
            without = f". To leave them out: --exclude {' '.join(dict.fromkeys(lost))}" if lost else ""
            raise ValueError(f"{piece.path}: {'; '.join(errors)}{without}")
        return plain

    def _checked(self, piece: Piece, target: TargetColumn) -> pa.Array:
        array = self.values(piece, target)
        _check_values(array, target.column)
        return array

    def _first_wrong_row(self, piece: Piece, target: TargetColumn) -> str:
        """The row of the first value that has no place, in words: halves are converted until one row is left."""
        while piece.num_rows > 1:
            first, rest = piece.slice(0, piece.num_rows // 2), piece.slice(piece.num_rows // 2, piece.num_rows)
            try:
                self._checked(first, target)
            except _NO_PLACE:
                piece = first
            else:
                piece = rest
        return f" at row {piece.rows[0] + 1}" if piece.num_rows and piece.rows[0] >= 0 else ""

    def _is_plausible(self, plain: dict[str, pa.Array], target: TargetColumn) -> bool:
        unit = self._history_time_unit
        if pa.types.is_timestamp(self.source.leaves[target.sources[0]].type):
            unit = "ms"  # a timestamp has its unit
        request_ms = plain[REQUEST_TS].cast(pa.int64()).to_numpy() // 1000
        return check_history_times(
            newest_events(*_packed(plain[HISTORY_TS])),
            request_ms,
            what=f"{self.source.name}: column {target.sources[0]} as {HISTORY_TS}",
            unit=unit,
            todo="say so with history_time_unit (--history-time-unit {unit}), or give the column another name",
        )

    def values(self, piece: Piece, target: TargetColumn) -> pa.Array:
        """The column's values, cast and not deduplicated: an array of scalars, or of lists."""
        found = [piece.arrays[name] for name in target.sources]
        for array in found:
            check_text(array, piece.rows)
        kind = element_type(target.column)
        if target.conversion is Conversion.SESSION:
            return self._session(found, target.column)
        if target.conversion is Conversion.HASH:
            if target.column.is_blob:
                return _relist(found[0], hash_ids([found[0].flatten()]))
            return hash_ids(found)
        if target.conversion is Conversion.ITEM and self.items is not None:
            flat = found[0].flatten() if target.column.is_blob else found[0]
            ids = by_value(flat, self.items.ids).cast(kind)
            return _relist(found[0], ids) if target.column.is_blob else ids
        if target.conversion is Conversion.HISTORY_TIME:
            return _relist(found[0], milliseconds(found[0].flatten(), self._history_time_unit))
        if target.column.is_blob:
            return _relist(found[0], _cast(found[0].flatten(), kind))
        if target.conversion is Conversion.TIME and pa.types.is_integer(found[0].type):
            return self.time(found[0])
        if is_list(kind) and is_list(found[0].type):
            return _relist(found[0], _cast(found[0].flatten(), kind.value_type)).cast(kind)
        return _cast(found[0], kind)

    def time(self, array: pa.Array) -> pa.Array:
        """Request times in UTC: timestamps, dates, or whole numbers of the unit that was said."""
        if pa.types.is_integer(array.type):
            array = array.cast(pa.int64()).cast(pa.timestamp(self._time_unit or "us", tz="UTC"))
        return _cast(array, arrow_type("timestamp"))

    def times_us(self, array: pa.Array) -> np.ndarray:
        """The same as microseconds since 1970, [N] int64; no null among them."""
        return self.time(array).cast(pa.int64()).to_numpy()

    def _session(self, found: Sequence[pa.Array], column: Column) -> pa.Array:
        assert self.sessions is not None
        if any(array.null_count for array in found):
            raise ValueError("no nulls allowed in user and time; filter such rows, or give them values")
        user = hash_keys(found[:1])
        starts = self.sessions.starts(user, self.times_us(found[1]))
        if column.name == REQUEST_TS:
            return pa.array(starts).cast(arrow_type("timestamp"))
        return pa.array(session_ids(user, starts))


def _check_values(array: pa.Array, column: Column) -> None:
    if column.is_blob:
        _, offsets = _packed(array)
        wrong = np.diff(offsets)[np.diff(offsets) != column.width]
        if column.width and len(wrong):
            raise ValueError(
                f"{column.width} elements each required, found {wrong[0]} in a row; say that it is a sequence, "
                "or leave it out"
            )
    elif array.null_count and not column.nullable:
        raise ValueError(f"no nulls allowed, found {array.null_count}; filter them, or give them a value")


def blobs_of(lists: pa.LargeListArray) -> pa.DictionaryArray:
    """Lists as dictionary-encoded blobs; a null list as an empty one."""
    values, offsets = _packed(lists)
    blobs = blobs_from_numpy(values, offsets)
    starts, run_of_row = _runs(blobs)
    distinct = blobs.take(pa.array(starts)).dictionary_encode()
    return pa.DictionaryArray.from_arrays(distinct.indices.take(pa.array(run_of_row)), distinct.dictionary)


def list_hashes(lists: pa.LargeListArray) -> np.ndarray:
    """A hash of each list's bytes, [N] uint64; equal neighbours are compared and hashed once."""
    values, offsets = _packed(lists)
    data = pa.py_buffer(np.ascontiguousarray(values, values.dtype.newbyteorder("<")))
    ends = pa.py_buffer(offsets * values.itemsize)
    rows = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lists), [None, ends, data])
    starts, run_of_row = _runs(rows)
    return value_hashes(rows.take(pa.array(starts)))[run_of_row]


def _runs(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where a value differs from the one before it, [K], and in which of these runs each row lies, [N]."""
    is_new = np.ones(len(values), bool)
    is_new[1:] = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(is_new), np.cumsum(is_new) - 1


def _packed(lists: pa.LargeListArray) -> tuple[np.ndarray, np.ndarray]:
    """Elements [T] and offsets [N + 1]. Raises ValueError if an element is null."""
    values = lists.flatten()
    if values.null_count:
        raise ValueError(
            f"no null elements allowed in a sequence, found {values.null_count}; give them a value in the source, or "
            "keep the list as it is (--level COLUMN=item)"
        )
    lengths = pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False)
    return values.to_numpy(zero_copy_only=False), offsets_of(lengths)


def _relist(lists: pa.Array, values: pa.Array) -> pa.LargeListArray:
    """The same lists around other values of the same count."""
    lengths = pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False)
    offsets = offsets_of(lengths)
    mask = lists.is_null() if lists.null_count else None
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values, mask=mask)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_date(array.type) and pa.types.is_timestamp(kind):
        array = array.cast(pa.timestamp("us"))
    if is_bytes(array.type) and pa.types.is_string(kind):
        return hex_text(array)
    if array.type == kind:
        return array
    try:
        return array.cast(kind)
    except pa.ArrowInvalid as error:
        if pa.types.is_timestamp(array.type) and pa.types.is_timestamp(kind):
            raise ValueError(f"{error}; cut finer times in the source, as CAST(... AS TIMESTAMP) does") from error
        if pa.types.is_uint64(array.type):
            raise ValueError(
                f"whole numbers below 2^63 required, found {pc.max(array).as_py()}; cast it in the source: ids to "
                "text, of which numbers are made, others to DECIMAL(20, 0)"
            ) from error
        raise
