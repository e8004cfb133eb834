"""Which rank reads which requests of a table in an epoch, and in which order: decided from counts alone.

    row groups, in the epoch's order     |  A  |   B    |  C  |    D    |
    ranks, equal shares                  |   rank 0   |    rank 1       |

Where it is known how many requests of each row group are wanted, as a training has counted before its first step,
shares are of those: ranks get equally many, to one, wherever in the table they lie, and a row group without any is not
read. Else shares are of the rows, and a request belongs to the rank in whose share its first row lies. Either way every
request is read exactly once, and a rank opens its own row groups and at most two that it shares. All ranks compute the
same plan; none talks to another. A join, or a sample of what lies in buckets, has its buckets for row groups: how many
rows come out of one nobody knows before, so shares that are not counted are of the rows, or users, that go in, and of a
bucket that two ranks share each request is dealt by a hash of its keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa

from reqdedup.arrays.hashing import mix
from reqdedup.dedup.source import BatchSource
from reqdedup.dedup.streams import REQUEST_KEY
from reqdedup.schema import REQUEST_TS, EngagementSchema
from reqdedup.storage.iceberg.reference import check_keys, open_store, store_properties
from reqdedup.storage.read.reader import FileSource, RowGroup
from reqdedup.storage.read.table_source import TableSource
from reqdedup.training.blocks import RequestBlock
from reqdedup.training.split import Split


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


def opened(source: Source) -> Source:
    """The same rows; of a table its snapshot's files, without table and catalog."""
    return source.files() if isinstance(source, TableSource) else source


def source_for_ranks(source: Source) -> Source:
    """The same rows from something that another process can open: a snapshot's files, without table and catalog.

    Raises ValueError for a source that cannot be pickled, and for a join or a sample whose store's keys only this
    process has.
    """
    if isinstance(source, TableSource):
        return opened(source)
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


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a loader gives of the requests that it reads; see its options."""

    users: Split | None = None
    positive_label: str | None = None
    chunk_rows: int | None = None

    def of(self, block: RequestBlock) -> RequestBlock:
        if self.users is not None:
            block = block.where_requests(self.users.contains(block.user_ids(), block.request_times()))
        if self.positive_label is not None:
            block = block.where_label(self.positive_label)
        return block if self.chunk_rows is None else block.in_chunks(self.chunk_rows)

    def number_of(self, block: RequestBlock) -> int:
        """How many requests, or chunks of them, `of` leaves."""
        label = [] if self.positive_label is None else [self.positive_label]
        return self.of(replace(block, rows=block.rows.select([*REQUEST_KEY, REQUEST_TS, *label]))).num_requests


@dataclass(frozen=True)
class Share:
    """Part [first, end) of a row group, or a unit, with this number in the source.

    size: what shares are measured by: its rows, or the requests that are wanted of it.
    """

    number: int
    first: int
    end: int
    size: int

    def by_rows(self, block: RequestBlock) -> np.ndarray:
        """Of a whole row group the requests whose first row lies in the share, [R] bool."""
        first_row_R = block.row_offsets[:-1]
        return (first_row_R >= self.first) & (first_row_R < self.end)

    def by_hash(self, block: RequestBlock) -> np.ndarray:
        """Of a block of a unit, [R] bool."""
        first = pa.array(block.row_offsets[:-1])
        user, request = (block.rows.column(name).take(first).to_numpy().view(np.uint64) for name in REQUEST_KEY)
        hash_R = mix(mix(user) ^ request)
        low, high = (2**64 * at // self.size for at in (self.first, self.end))
        return (hash_R >= np.uint64(low)) & (hash_R <= np.uint64(high - 1))


Read = Iterator[tuple[int, Share, RequestBlock]]
"""(number of the block, share that it is of, all its requests)."""


def shares_of_rank(sizes: Sequence[int], order: Sequence[int], *, rank: int, world_size: int) -> list[Share]:
    """What a rank reads of row groups, or units, of these sizes in this order; of those of size 0 nothing."""
    total = int(sum(sizes))
    begin, end = total * rank // world_size, total * (rank + 1) // world_size
    shares, position = [], 0
    for number in order:
        size = int(sizes[number])
        low, high = max(begin - position, 0), min(end - position, size)
        if low < high:
            shares.append(Share(number, low, high, size))
        position += size
    return shares


def by_number(blocks: Read, wanted: Wanted) -> Read:
    """Of each share the wanted requests number `first` to `end` of its row group or unit, all of whose blocks come.

    Raises ValueError if there are not as many as its size says.
    """
    share, before = None, 0
    for number, of_share, block in blocks:
        if of_share is not share:
            _check_size(share, before)
            share, before = of_share, 0
        block = wanted.of(block)
        number_R = before + np.arange(block.num_requests)
        before += block.num_requests
        yield number, of_share, block.where_requests((number_R >= of_share.first) & (number_R < of_share.end))
    _check_size(share, before)


def _check_size(share: Share | None, found: int) -> None:
    if share is not None and found != share.size:
        raise ValueError(
            f"training: {share.size:,} requests to learn from in row group or bucket {share.number} required, as they "
            f"were counted, found {found:,}; the source changed: begin anew"
        )


UNIT_BLOCKS = 2**32
"""Blocks are numbered anew in each unit, from the number of the unit in the rank's order times this."""


def num_units_of(source: Source) -> int | None:
    """Units that ranks read apart; None if the source has row groups for that, or neither."""
    if isinstance(source, RowGroupSource) or not isinstance(source, UnitSource):
        return None
    return source.num_buckets


def read_units(
    source: UnitSource, num_units: int, shares: Sequence[Share], schema: EngagementSchema, *, first_number: int = 0
) -> Read:
    """Of each share in order, from the unit of block `first_number` on."""
    for own in range(first_number // UNIT_BLOCKS, len(shares)):
        share = shares[own]
        batches = _whole_requests(source.of_unit(share.number, num_units, [], schema.names), schema)
        for number, rows in enumerate(batches, start=own * UNIT_BLOCKS):
            yield number, share, RequestBlock.of(rows, schema)


def epoch_order(count: int, rng: np.random.Generator | None) -> list[int]:
    """Numbers of the row groups, or units, in an epoch's order: shuffled, or as the table has them if `rng` is None."""
    return list(range(count)) if rng is None else rng.permutation(count).tolist()


def generator(seed: int, *path: Any) -> np.random.Generator:
    """A random generator that depends on nothing but the seed and the path, an epoch and a window for example."""
    text = ":".join(map(str, (seed, *path)))
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little"))


def read_row_groups(
    source: RowGroupSource,
    groups: Sequence[RowGroup],
    shares: Sequence[Share],
    schema: EngagementSchema,
    *,
    first_number: int = 0,
) -> Read:
    """Of each share in order, from block `first_number` on; a row group is one block."""
    for number, share in enumerate(shares[first_number:], start=first_number):
        yield number, share, RequestBlock.of(source.read_row_group(groups[share.number], schema.names), schema)


def read_dealt(
    source: BatchSource, schema: EngagementSchema, wanted: Wanted, *, rank: int, world_size: int
) -> Iterator[tuple[int, RequestBlock]]:
    """(number, block) of a source with neither row groups nor units: every rank reads all and keeps its turn of what is
    wanted.

    Requests that a source cuts between two batches are put together again.
    """
    turn = 0
    for number, rows in enumerate(_whole_requests(source.batches(schema.names), schema)):
        block = wanted.of(RequestBlock.of(rows, schema))
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
