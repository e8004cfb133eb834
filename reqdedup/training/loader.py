"""From tables to RequestBatches: the only bridge between storage and torch.

A request stays whole: request-level values are read once, move once, and are never expanded here. Shuffling mixes whole
requests: row groups come in a random order, as many as `buffer_requests` asks for are held at once (a *window*), and
their requests are drawn at random. Deduplication is kept and the users per batch rise; the more the larger the window.

Everything follows from (seed, epoch, rank, world size) and the files, so a position is three numbers and resuming is
exact. Memory: one window, the queue of ready batches, and while a window is made one more copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from reqdedup.batch import RequestBatch
from reqdedup.dedup.source import digest, fingerprint_of
from reqdedup.schema import HISTORY_END, KEYS, REQUEST_TS, EngagementSchema
from reqdedup.training.blocks import HistoryCut, RequestBlock, empty_batch
from reqdedup.training.devices import Sent, Transfer
from reqdedup.training.plan import (
    RowGroupSource,
    Share,
    Source,
    UnitSource,
    Wanted,
    by_number,
    epoch_order,
    generator,
    num_units_of,
    read_dealt,
    read_row_groups,
    read_units,
    shares_of_rank,
)
from reqdedup.training.prefetch import prefetched
from reqdedup.training.split import Split

Shuffle = Literal["requests", "users", "none"]
SHUFFLES = get_args(Shuffle)
DEFAULT_BUFFER_REQUESTS = 2048
DEFAULT_BUFFER_BYTES = 512 * 2**20
STATE_FORMAT = 1
"""Number of what `RequestLoader.state_dict` gives; version 0.1.0 gave none."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where an epoch stands: the next request is number `request` of the window that starts at block `block`.

    window: how many windows came before, the window's seed.
    """

    epoch: int = 0
    block: int = 0
    window: int = 0
    request: int = 0


class RequestLoader:
    """Iterating yields one epoch of this rank's RequestBatches; the next iteration is the next epoch.

    source: a table or files (`TableSource`, `FileSource`): each rank reads its own row groups; of a join, or of a
        sample of what lies in buckets, its own buckets; any other BatchSource is read in full by every rank.
    requests_per_batch, rows_per_batch: one of them; rows_per_batch is an upper bound that only a single larger request
        may pass. The last batch of an epoch is smaller.
    shuffle: `requests`; `users`, whose requests stay together, so that a model can share their context
        (`share_context="user"`), at the price of fewer users per batch; or `none`, the order of the
        table.  seed: of it.
    buffer_requests: a window takes row groups until it holds so many requests.  buffer_bytes: or until the next row
        group would not fit (one always does).
    rank, world_size: this process's share; every request belongs to exactly one rank, and ranks may get unequal numbers
        of batches (`in_lockstep` keeps their collectives matched).
    columns: names in the log's schema to read; keys and request_ts always come. None means all that is not a string.
    positive_label: keep only rows whose label is positive (and requests that keep a row): what retrieval learns from.
    chunk_rows: cut requests into chunks of at most so many rows, which are shuffled apart: more users per batch of
        rows, less deduplication.  None keeps requests whole.
    users: keep one part of a split of the requests, by user or by time.  cut: the longest history.
    prefetch_batches: ready batches that a background thread holds; 0 means no thread.
    device: where the batches lie. On a GPU the background thread copies them from page-locked
        memory while the batch before is computed on.
    num_wanted: how many requests, or chunks, the loaders of all ranks together give of each row group or bucket, by its
        number in the source; ranks then get equally many, to one. None: equal shares of the rows.
    on_block: called, in the background thread if there is one, with such a number and what of it was read.
    """

    def __init__(
        self,
        source: Source,
        *,
        requests_per_batch: int | None = None,
        rows_per_batch: int | None = None,
        shuffle: Shuffle = "requests",
        seed: int = 0,
        buffer_requests: int = DEFAULT_BUFFER_REQUESTS,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        rank: int = 0,
        world_size: int = 1,
        columns: Sequence[str] | None = None,
        positive_label: str | None = None,
        chunk_rows: int | None = None,
        users: Split | None = None,
        cut: HistoryCut | None = None,
        prefetch_batches: int = 2,
        device: torch.device | str = "cpu",
        num_wanted: Mapping[int, int] | None = None,
        on_block: Callable[[int, RequestBlock], None] | None = None,
    ) -> None:
        if (requests_per_batch is None) == (rows_per_batch is None):
            raise ValueError("exactly one of requests_per_batch and rows_per_batch required")
        if (requests_per_batch or rows_per_batch or 0) < 1:
            found = rows_per_batch if requests_per_batch is None else requests_per_batch
            raise ValueError(f"a batch of at least 1 required, found {found}")
        if shuffle not in SHUFFLES:
            raise ValueError(f"shuffle: one of {SHUFFLES} required, found {shuffle!r}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: 0 <= rank < world_size required, found rank {rank} of {world_size}")
        if buffer_requests < 1 or not 0 < buffer_bytes < 2**31:
            raise ValueError(
                "buffer_requests of at least 1 and buffer_bytes in (0, 2^31) required, "
                f"found {buffer_requests} and {buffer_bytes}"
            )
        self.source = source
        self.schema = _read_schema(source.schema, columns, positive_label, cut)
        self.requests_per_batch, self.rows_per_batch = requests_per_batch, rows_per_batch
        self.shuffle, self.seed = shuffle, seed
        self.buffer_requests, self.buffer_bytes = buffer_requests, buffer_bytes
        self.rank, self.world_size = rank, world_size
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"chunk_rows of at least 1 required, found {chunk_rows}")
        self.wanted = Wanted(users=users, positive_label=positive_label, chunk_rows=chunk_rows)
        self.cut, self.num_wanted, self.on_block = cut, num_wanted, on_block
        self.prefetch_batches = prefetch_batches
        self._transfer = Transfer(torch.device(device))
        self._position = Position()

    @property
    def epoch(self) -> int:
        return self._position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of this epoch."""
        self._position = Position(epoch=epoch)

    def __iter__(self) -> Iterator[RequestBatch]:
        stream = self._batches(self._position)
        with prefetched(stream, self.prefetch_batches) as ready:
            for sent, position in ready:
                self._position = position
                yield self._transfer.receive(sent)
        self._position = Position(epoch=self._position.epoch + 1)

    def empty_batch(self) -> RequestBatch:
        """A batch of no requests, with the tensors that the others have."""
        return empty_batch(self.schema).to(self._transfer.device)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out, and what it depends on."""
        return {"format": STATE_FORMAT, "position": asdict(self._position), "order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch of that loader.

        Raises ValueError, with the difference, for a state whose batches would be others or come in another order, and
        for a source that cannot show that they would not.
        """
        if state.get("format") != STATE_FORMAT or "order" not in state:
            its = repr(state["format"]) if "format" in state else "none, as version 0.1.0 wrote it"
            raise ValueError(
                f"loader state: format {STATE_FORMAT} required, found {its}; it does not say what its batches depend "
                "on, so begin the epoch anew"
            )
        order = self._order()
        if order["source"] is None:
            raise ValueError(
                f"loader state: a source with fingerprint() required to continue, found {type(self.source).__name__} "
                "without, so nothing shows that the same rows would follow; write it to a table, or begin the epoch "
                "anew"
            )
        for name in sorted(order.keys() | state["order"].keys()):
            wanted, found = state["order"].get(name), order.get(name)
            if wanted != found:
                if isinstance(wanted, dict) and isinstance(found, dict):
                    parts = sorted(part for part in wanted.keys() | found.keys() if wanted.get(part) != found.get(part))
                    name = f"{name}, {parts[0]}"
                    wanted, found = wanted.get(parts[0]), found.get(parts[0])
                raise ValueError(
                    f"loader state: {name} = {wanted!r} required to continue, found {found!r}; "
                    "resume with the settings and the snapshot of the checkpoint"
                )
        self._position = Position(**state["position"])

    def _order(self) -> dict[str, Any]:
        """Everything that decides which request comes when."""
        num_units = num_units_of(self.source)
        return {
            **({} if num_units is None else {"units": num_units}),
            "requests_per_batch": self.requests_per_batch,
            "rows_per_batch": self.rows_per_batch,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "buffer_requests": self.buffer_requests,
            "buffer_bytes": self.buffer_bytes,
            "rank": self.rank,
            "world_size": self.world_size,
            "columns": list(self.schema.names),
            "positive_label": self.wanted.positive_label,
            "chunk_rows": self.wanted.chunk_rows,
            "users": self.wanted.users.state() if self.wanted.users else None,
            **({} if self.num_wanted is None else {"num_wanted": sum(self.num_wanted.values())}),
            "cut": {"max_events": self.cut.max_events, "stride": self.cut.step} if self.cut else None,
            "source": _fingerprint(self.source),
        }

    def _batches(self, start: Position) -> Iterator[tuple[Sent, Position]]:
        """(batch, position after it) from `start` to the end of its epoch."""
        pieces: list[RequestBatch] = []
        num_requests = num_rows = 0
        position = start
        for first_block, window, block in self._windows(start):
            order = self._order_of_requests(block, start.epoch, window)
            rows_before = np.concatenate([[0], np.cumsum(np.diff(block.row_offsets)[order])])
            at = start.request if first_block == start.block else 0
            while at < len(order):
                end = self._end_of_batch(at, rows_before, num_requests, num_rows)
                if end > at:
                    # Inside a batch the order means nothing, and sorted requests lie closer together in memory.
                    pieces.append(block.take(np.sort(order[at:end]), cut=self.cut))
                    num_requests += end - at
                    num_rows += int(rows_before[end] - rows_before[at])
                    at = end
                position = Position(epoch=start.epoch, block=first_block, window=window, request=at)
                if at < len(order) or num_requests == self.requests_per_batch:
                    yield self._finished(pieces), position
                    pieces, num_requests, num_rows = [], 0, 0
        if pieces:
            yield self._finished(pieces), position

    def _order_of_requests(self, block: RequestBlock, epoch: int, window: int) -> np.ndarray:
        if self.shuffle == "none":
            return np.arange(block.num_requests)
        rng = generator(self.seed, "window", epoch, self.rank, window)
        if self.shuffle == "requests":
            return rng.permutation(block.num_requests)
        users, user_R = np.unique(block.user_ids(), return_inverse=True)
        return np.argsort(rng.permutation(len(users))[user_R], kind="stable")

    def _end_of_batch(self, at: int, rows_before: np.ndarray, num_requests: int, num_rows: int) -> int:
        """End of the requests from `at` on that still fit into a batch which already holds so many."""
        last = len(rows_before) - 1
        if self.requests_per_batch is not None:
            return min(at + self.requests_per_batch - num_requests, last)
        assert self.rows_per_batch is not None
        limit = rows_before[at] + self.rows_per_batch - num_rows
        end = int(np.searchsorted(rows_before, limit, side="right")) - 1
        return max(end, at if num_rows else at + 1)

    def _finished(self, pieces: list[RequestBatch]) -> Sent:
        return self._transfer.send(RequestBatch.concatenate(pieces))

    def _windows(self, start: Position) -> Iterator[tuple[int, int, RequestBlock]]:
        """(first block, number, requests) of each window from `start` on."""
        held: list[RequestBlock] = []
        window, first_block = start.window, start.block
        for number, block in self._blocks(start):
            if held and sum(b.num_bytes for b in held) + block.num_bytes > self.buffer_bytes:
                yield first_block, window, RequestBlock.concatenate(held)
                held, window, first_block = [], window + 1, number
            held.append(block)
            if self.shuffle == "none" or sum(b.num_requests for b in held) >= self.buffer_requests:
                yield first_block, window, RequestBlock.concatenate(held)
                held, window, first_block = [], window + 1, number + 1
        if held:
            yield first_block, window, RequestBlock.concatenate(held)

    def _blocks(self, start: Position) -> Iterator[tuple[int, RequestBlock]]:
        """(number, requests) of this rank's blocks from start.block on."""
        for number, unit, block in self._own_blocks(start):
            if number >= start.block:
                if self.on_block is not None:
                    self.on_block(unit, block)
                yield number, block

    def _own_blocks(self, start: Position) -> Iterator[tuple[int, int, RequestBlock]]:
        """(number, row group or bucket, requests that are wanted and this rank's)."""
        if isinstance(self.source, RowGroupSource):
            groups = self.source.row_groups()
            shares = self._shares("row groups", [group.num_rows for group in groups], start.epoch)
            blocks = read_row_groups(self.source, groups, shares, self.schema, first_number=start.block)
        elif (num_units := num_units_of(self.source)) is not None:
            assert isinstance(self.source, UnitSource)
            shares = self._shares("units", self.source.weights(num_units).tolist(), start.epoch)
            blocks = read_units(self.source, num_units, shares, self.schema, first_number=start.block)
        else:
            before, after = (Wanted(), self.wanted) if self.num_wanted is None else (self.wanted, Wanted())
            dealt = read_dealt(self.source, self.schema, before, rank=self.rank, world_size=self.world_size)
            yield from ((number, 0, after.of(block)) for number, block in dealt)
            return
        if self.num_wanted is not None:
            yield from ((number, share.number, block) for number, share, block in by_number(blocks, self.wanted))
            return
        is_mine = Share.by_rows if isinstance(self.source, RowGroupSource) else Share.by_hash
        for number, share, block in blocks:
            if (share.first, share.end) != (0, share.size):
                block = block.where_requests(is_mine(share, block))
            yield number, share.number, self.wanted.of(block)

    def _shares(self, kind: str, sizes: Sequence[int], epoch: int) -> list[Share]:
        """What this rank reads of row groups or units of these sizes, if it is not counted what is wanted of them."""
        rng = None if self.shuffle == "none" else generator(self.seed, kind, epoch)
        if self.num_wanted is not None:
            sizes = [self.num_wanted.get(number, 0) for number in range(len(sizes))]
        return shares_of_rank(sizes, epoch_order(len(sizes), rng), rank=self.rank, world_size=self.world_size)


def _read_schema(
    schema: EngagementSchema, columns: Sequence[str] | None, positive_label: str | None, cut: HistoryCut | None
) -> EngagementSchema:
    """The columns to read, strings left out."""
    names = set(schema.names if columns is None else columns) | {*KEYS, REQUEST_TS}
    if positive_label is not None:
        if positive_label not in {column.name for column in schema.labels}:
            raise ValueError(
                f"positive_label: one of the log's labels {[c.name for c in schema.labels]} required, "
                f"found {positive_label!r}"
            )
        names.add(positive_label)
    if cut is not None and HISTORY_END in schema:
        names.add(HISTORY_END)
    unknown = sorted(names - set(schema.names))
    if unknown:
        raise ValueError(
            f"no such columns: {', '.join(unknown)}; there are {', '.join(schema.names)}. Features in a table of their "
            "own are joined to it first (docs/features.md), or read from a sample that has them"
        )
    return schema.select(column.name for column in schema.columns if column.name in names and column.is_number)


def _fingerprint(source: Source) -> dict[str, str] | None:
    """What the source says of its rows; of row groups that say nothing, their names and rows."""
    found = fingerprint_of(source)
    if found is None and isinstance(source, RowGroupSource):
        return {"row groups": digest([[group.path, group.index, group.num_rows] for group in source.row_groups()])}
    return found
