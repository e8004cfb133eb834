"""Which rank reads which requests of a table in an epoch, and in which order: decided from row counts alone.

    row groups, in the epoch's order     |  A  |   B    |  C  |    D    |
    ranks, equal shares of the rows      |   rank 0   |    rank 1       |

A request belongs to the rank in whose share its first row lies. So every request is read exactly once, the ranks' rows
differ by less than one request each, and a rank opens its own row groups and at most two that it shares. All ranks
compute the same plan; none talks to another. A join, or a sample of what lies in buckets, has its buckets for row
groups: how many rows come out of one nobody knows before, so shares are of the rows, or users, that go in, and of a
bucket that two ranks share each request is dealt by a hash of its keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa

from reqdedup.arrays.hashing import below_rate, mix, stable_hash
from reqdedup.dedup.source import BatchSource
from reqdedup.dedup.streams import REQUEST_KEY
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.reference import check_keys, open_store, store_properties
from reqdedup.storage.read.reader import FileSource, RowGroup
from reqdedup.storage.read.table_source import TableSource
from reqdedup.training.blocks import RequestBlock

Item = TypeVar("Item")


@runtime_checkable
class RowGroupSource(Protocol):
    """A source whose row groups can be read in any order: `TableSource` and `FileSource`."""

    @property
    def schema(self) -> EngagementSchema: ...

    def row_groups(self) -> list[RowGroup]: ...

    def read_row_group(self, group: RowGroup, columns: Sequence[str] | None = None) -> pa.RecordBatch: ...


@runtime_checkable
class UnitSource(Protocol):
    """A source in units without a request in common, to be read apart: a join, a sample of what lies in buckets."""

    @property
    def schema(self) -> EngagementSchema: ...

    @property
    def num_buckets(self) -> int | None: ...

    def weights(self, num_units: int) -> np.ndarray: ...

    def of_unit(
        self, unit: int, num_units: int, notes: list[Any], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]: ...


@runtime_checkable
class KeyedSource(Protocol):
    """A source that may know the log's own ids of items: all of `reqdedup.storage`."""

    def item_keys(self, item_id: np.ndarray) -> np.ndarray | None: ...


Source = RowGroupSource | BatchSource
"""What a loader reads: with row groups, or buckets, each rank reads its own, else every rank reads everything."""


def snapshot_id_of(source: Source) -> int | None:
    """The snapshot that a table source reads, None for any other."""
    return source.snapshot_id if isinstance(source, TableSource) else None


def source_for_ranks(source: Source) -> Source:
    """The same rows from something that another process can open: a snapshot's files, without table and catalog.

    Raises ValueError for a source that cannot be pickled, and for a join or a sample whose store's keys only this
    process has.
    """
    if isinstance(source, TableSource):
        return source.files()
    for files in getattr(source, "file_sources", ()):
        if files.paths and files.io is not None:
            check_keys(repr(source), files.paths[0], files.io)
    try:
        pickle.dumps(source)
    except Exception as error:
        raise ValueError(
            f"train: a source that other processes can open required, found {type(source).__name__} ({error}); write "
            "it to a table and train on TableSource(table)"
        ) from error
    return source


def credentials_of(source: Source) -> dict[str, str]:
    """All properties of the store that a source of files is opened with, for ranks of this process alone."""
    return dict(source.io.properties) if isinstance(source, FileSource) and source.io is not None else {}


def with_credentials(source: Source, properties: Mapping[str, str]) -> Source:
    """The source as `credentials_of` found it: a pickled one has lost them."""
    if not (properties and isinstance(source, FileSource) and source.paths):
        return source
    return source.with_io(open_store(properties, source.paths[0]))


def source_to_dict(source: Source) -> dict[str, Any] | None:
    """What opens a source of files in another process, ready for JSON; None for any other source.

    Of the store's properties only those that say where it is: credentials come from the environment when it is read.
    """
    if not isinstance(source, FileSource):
        return None
    return {
        "paths": [path if urlparse(path).scheme else os.path.abspath(path) for path in source.paths],
        "schema": json.loads(source.schema.to_json()),
        **source.reading(),
        "store": store_properties(source.io),
    }


def source_from_dict(values: Mapping[str, Any]) -> FileSource:
    """The source; files that are not local are opened with the environment's credentials
    (AWS_ACCESS_KEY_ID and so on)."""
    paths, schema = values["paths"], EngagementSchema.from_json(json.dumps(values["schema"]))
    # not in files of version 0.1.0
    names = ("merge_pieces", "known_columns", "field_ids", "known_fields", "item_files")
    reading = {name: values[name] for name in names if name in values}
    is_local = all(urlparse(path).scheme in ("", "file") for path in paths)
    io = None if is_local else open_store(values.get("store", {}), paths[0])
    return FileSource(paths, schema, io=io, **reading)


PARTS = ("train", "validation", "eval")


class Split(Protocol):
    """One part of the requests of a table; see `reqdedup.training.split` for the kinds."""

    def contains(self, user_id_R: np.ndarray, request_ts_R: np.ndarray) -> np.ndarray:
        """[R] bool."""
        ...

    def state(self) -> dict[str, Any]:
        """What the part follows from, ready for JSON."""
        ...


@dataclass(frozen=True, kw_only=True)
class UserSplit:
    """A share of the users by a stable hash of their id: the same users in every run, table and process.

    held_out: share of the users in the evaluation part.  validation: share of those in the validation part.
    part: `train`, `validation` or `eval`.  seed: another seed, other users.
    """

    held_out: float
    part: str
    seed: int = 0
    validation: float = 0.0

    def __post_init__(self) -> None:
        if self.part not in PARTS or not 0 <= self.held_out <= self.held_out + self.validation <= 1:
            raise ValueError(
                f"user split: part one of {', '.join(PARTS)} and shares from 0 to 1 required, found {self.part!r}, "
                f"{self.held_out} held out and {self.validation} for validation"
            )

    def contains(self, user_id_R: np.ndarray, request_ts_R: np.ndarray | None = None) -> np.ndarray:
        """[R] bool."""
        hash_R = stable_hash(user_id_R, self.seed)
        is_held_out_R = below_rate(hash_R, self.held_out)
        if self.part == "eval":
            return is_held_out_R
        is_out_R = below_rate(hash_R, self.held_out + self.validation)
        return ~is_out_R if self.part == "train" else is_out_R & ~is_held_out_R

    def state(self) -> dict[str, Any]:
        values = asdict(self)
        if not self.validation:
            del values["validation"]  # as loaders of earlier versions say it
        return values


@dataclass(frozen=True)
class Share:
    """Part of one row group: the requests whose first row lies in [first_row, end_row)."""

    group: RowGroup
    first_row: int
    end_row: int


def shares_of_rank(groups: Sequence[RowGroup], *, rank: int, world_size: int) -> list[Share]:
    """What a rank reads of row groups in this order."""
    total = sum(group.num_rows for group in groups)
    first, end = total * rank // world_size, total * (rank + 1) // world_size
    shares, position = [], 0
    for group in groups:
        low, high = max(first - position, 0), min(end - position, group.num_rows)
        if low < high:
            shares.append(Share(group, low, high))
        position += group.num_rows
    return shares


UNIT_BLOCKS = 2**32
"""Blocks are numbered anew in each unit, from the number of the unit in the rank's order times this."""


@dataclass(frozen=True)
class UnitShare:
    """Part of one unit: the requests whose hash lies in [low, high) of 2^64."""

    unit: int
    low: int
    high: int

    def contains(self, block: RequestBlock) -> np.ndarray:
        """[R] bool."""
        first = pa.array(block.row_offsets[:-1])
        user, request = (block.rows.column(name).take(first).to_numpy().view(np.uint64) for name in REQUEST_KEY)
        hash_R = mix(mix(user) ^ request)
        return (hash_R >= np.uint64(self.low)) & (hash_R <= np.uint64(self.high - 1))


def num_units_of(source: Source) -> int | None:
    """Units that ranks read apart; None if the source has row groups for that, or neither."""
    if isinstance(source, RowGroupSource) or not isinstance(source, UnitSource):
        return None
    return source.num_buckets


def unit_shares(weights: np.ndarray, order: Sequence[int], *, rank: int, world_size: int) -> list[UnitShare]:
    """What a rank reads of units in this order. weights: of each unit, [N], what its share is measured by."""
    total = int(sum(weights))
    first, end = total * rank // world_size, total * (rank + 1) // world_size
    shares, position = [], 0
    for unit in order:
        weight = int(weights[unit])
        low, high = max(first - position, 0), min(end - position, weight)
        if low < high:
            shares.append(UnitShare(unit, 2**64 * low // weight, 2**64 * high // weight))
        position += weight
    return shares


def read_units(
    source: UnitSource, num_units: int, shares: Sequence[UnitShare], schema: EngagementSchema, *, first_number: int = 0
) -> Iterator[tuple[int, RequestBlock]]:
    """(number, block) of each share in order, from block `first_number` on; units before its own are not read."""
    for own in range(first_number // UNIT_BLOCKS, len(shares)):
        share = shares[own]
        batches = _whole_requests(source.of_unit(share.unit, num_units, [], schema.names), schema)
        for number, rows in enumerate(batches, start=own * UNIT_BLOCKS):
            if number >= first_number:
                block = RequestBlock.of(rows, schema)
                yield number, block.where_requests(share.contains(block))


def epoch_order(groups: Sequence[Item], rng: np.random.Generator | None) -> list[Item]:
    """The row groups, or units, in an epoch's order: shuffled, or as the table has them if `rng` is None."""
    return list(groups) if rng is None else [groups[i] for i in rng.permutation(len(groups))]


def generator(seed: int, *path: Any) -> np.random.Generator:
    """A random generator that depends on nothing but the seed and the path, an epoch and a window for example."""
    text = ":".join(map(str, (seed, *path)))
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little"))


def read_shares(
    source: RowGroupSource, shares: Sequence[Share], schema: EngagementSchema, *, first_number: int = 0
) -> Iterator[tuple[int, RequestBlock]]:
    """(number, block) of each share in order; the blocks hold exactly the shares' requests."""
    for number, share in enumerate(shares, start=first_number):
        block = RequestBlock.of(source.read_row_group(share.group, schema.names), schema)
        if share.first_row > 0 or share.end_row < share.group.num_rows:
            first_row_R = block.row_offsets[:-1]
            block = block.where_requests((first_row_R >= share.first_row) & (first_row_R < share.end_row))
        yield number, block


def read_dealt(
    source: BatchSource, schema: EngagementSchema, *, rank: int, world_size: int
) -> Iterator[tuple[int, RequestBlock]]:
    """(number, block) of a source with neither row groups nor units: every rank reads all and keeps its turn.

    Requests that a source cuts between two batches are put together again.
    """
    turn = 0
    for number, rows in enumerate(_whole_requests(source.batches(schema.names), schema)):
        block = RequestBlock.of(rows, schema)
        is_mine = (np.arange(block.num_requests) + turn) % world_size == rank
        turn += block.num_requests
        yield number, block.where_requests(is_mine)


def _whole_requests(batches: Iterator[pa.RecordBatch], schema: EngagementSchema) -> Iterator[pa.RecordBatch]:
    """The same rows; the last request of each batch waits for the next, which may go on with it."""
    waiting: pa.RecordBatch | None = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        if waiting is not None:
            parts = [RequestBlock.of(waiting, schema), RequestBlock.of(batch, schema)]
            batch = RequestBlock.concatenate(parts).rows
        last = int(RequestBlock.of(batch, schema).row_offsets[-2])
        if last:
            yield batch.slice(0, last)
        waiting = batch.slice(last)
    if waiting is not None:
        yield waiting
