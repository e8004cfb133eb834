"""Reading a user's own log: good rows come out as deduplicated batches, bad ones as rejects.

Two passes. The first parses blocks of 16 MiB and sets rows aside by the hash of their user; the second takes one
partition of users at a time: sessions, duplicates, histories. Memory is that of one partition, about five to eight
times `partition_bytes` of log text (1 to 2 GB by default), and never less than the rows of the most active user; a log
smaller than one partition stays in memory, a larger one needs disk for its rows. Requests come out by user and time.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from reqdedup.arrays.windows import default_stride
from reqdedup.distributed import Engine
from reqdedup.logs.checks import Rejects, UnreadableFile, nothing_left, too_many
from reqdedup.logs.counts import LogCounts as LogCounts
from reqdedup.logs.formats import find_files, format_of, read_blocks, read_size
from reqdedup.logs.ids import ItemKeys, Vocabulary
from reqdedup.logs.impressions import IdTypes, ImpressionParser, detect_id_types
from reqdedup.logs.mapping import LogMapping
from reqdedup.logs.mapping_toml import load_mapping
from reqdedup.logs.partitions import Partitions
from reqdedup.logs.presets import Preset, load_preset
from reqdedup.logs.requests import count_owners, find_disputed, form_requests
from reqdedup.logs.sequences import emit_batches, log_schema
from reqdedup.logs.tasks import Folder, LogParts, Told, neighbours, split_log
from reqdedup.logs.text import BLOCK_BYTES
from reqdedup.logs.urls.items import UrlItems, UrlMerges
from reqdedup.logs.values import check_time_rule
from reqdedup.schema import EngagementSchema

DEFAULT_MAX_HISTORY = 1_024
DEFAULT_MAX_REJECTS = 0.1
PARTITION_BYTES = 256 * 2**20
_MAX_PARTITIONS = 256
_PROBE_BYTES = 2**20


def read_log(
    path: str | Path,
    *,
    preset: Preset | None = None,
    mapping: LogMapping | Mapping[str, Any] | str | Path | None = None,
    session_gap_s: float | None = None,
    max_history: int = DEFAULT_MAX_HISTORY,
    stride: int | None = None,
    strict: bool = False,
    max_rejects: float = DEFAULT_MAX_REJECTS,
    partition_bytes: int = PARTITION_BYTES,
    block_bytes: int = BLOCK_BYTES,
    spill_folder: str | Path | None = None,
    progress: Callable[[LogCounts], None] | None = None,
) -> LogReader:
    """A reader of the log at `path`, a file or a folder; iterate it for the accepted deduplicated batches.

    preset: one of `reqdedup.logs.PRESETS`; mapping: a TOML file, its parsed form or a LogMapping. One of them is
        required.
    session_gap_s: pause after which a new request starts, for logs without request ids, in seconds; 0: every row is
        one.
    max_history: length of the longest history, in events; stride: distance between the possible starts of a cut one, in
        events, a quarter of it by default.
    max_rejects: share of rejected rows above which the reading ends with a LogError that lists the reasons. It comes
        after the last batch, so that all reasons are known, and a writer that commits at its end has replaced nothing.
    strict: whether one rejected row is too many.
    partition_bytes, block_bytes: size of a partition of users and of a parsed block, in bytes; they bound memory.
    spill_folder: folder for rows that are set aside, by default the system's; they are removed after reading.
    progress: function that is called with the counts after every block and batch.

    Raises LogError if nothing can be read: no file, no row, missing columns. ValueError for a wrong option.
    """
    if (preset is None) == (mapping is None):
        raise ValueError(f"read_log: a preset or a mapping required, found preset={preset!r} and mapping={mapping!r}")
    rules = load_preset(preset) if preset is not None else load_mapping(mapping)  # type: ignore[arg-type]
    if session_gap_s is not None:
        rules = replace(rules, session_gap_s=session_gap_s)
    if max_history < 1:
        raise ValueError(f"read_log: max_history of at least 1 event required, found {max_history}")
    stride = default_stride(max_history) if stride is None else stride
    if not 1 <= stride <= max_history:
        raise ValueError(f"read_log: 1 <= stride <= max_history = {max_history} required, found {stride}")
    if not 0 <= max_rejects <= 1:
        raise ValueError(f"read_log: a max_rejects from 0 to 1 required, found {max_rejects}")
    if partition_bytes < 1 or block_bytes < 1:
        raise ValueError(f"read_log: at least 1 byte required, found {partition_bytes=} and {block_bytes=}")
    check_time_rule(rules.time)
    return LogReader(
        Path(path),
        rules,
        max_history=max_history,
        stride=stride,
        max_rejects=0.0 if strict else max_rejects,
        partition_bytes=partition_bytes,
        block_bytes=block_bytes,
        spill_folder=spill_folder,
        progress=progress,
    )


@dataclass(frozen=True)
class Aside:
    """Impressions and owners of requests that were set aside. missing: columns without a value so far.

    unread_bytes: of files that could not be read to their end.
    """

    impressions: Partitions
    owners: Partitions
    missing: set[str]
    unread_bytes: int


class LogReader:
    """Deduplicated batches of a log. Each iteration reads anew; `rejects` and `counts` speak of the latest one.

    Making it finds the files and reads the first rows: `schema` is known before anything else is read.
    skipped: files of its folder that are no log.
    """

    def __init__(
        self,
        path: Path,
        mapping: LogMapping,
        *,
        max_history: int,
        stride: int,
        max_rejects: float,
        partition_bytes: int,
        block_bytes: int,
        spill_folder: str | Path | None,
        progress: Callable[[LogCounts], None] | None,
    ):
        self.path, self.mapping = path, mapping
        self._max_history, self._stride, self._max_rejects = max_history, stride, max_rejects
        self._partition_bytes, self._block_bytes = partition_bytes, block_bytes
        self._spill_folder, self._progress = spill_folder, progress
        self._files, beside = find_files(path, mapping)
        self.skipped = [str(file.relative_to(path)) for file in beside]
        names = [file.name if path.is_file() else str(file.relative_to(path)) for file in self._files]
        self._names = [name.encode(errors="backslashreplace").decode() for name in names]
        self.counts = LogCounts(files=len(self._files))
        # request ids that restart in every file clash only if there are several files
        one_file = mapping.request_scope == "file" and len(self._files) == 1
        self._request_scope = "log" if one_file or not mapping.request_id else mapping.request_scope
        self._urls = UrlItems(mapping.url_rules) if mapping.are_urls else None
        self._labels_differ = 0
        self._looked_rows = self._looked_bytes = 0
        self._ids = self._probe()
        self._vocabulary: Vocabulary | None = None
        self.schema: EngagementSchema = log_schema(mapping, self._ids)

    @property
    def wants_vocabulary(self) -> bool:
        """Whether its items are texts that the mapping does not want hashed."""
        return self._ids.item and not self.mapping.hashes_items

    def use_vocabulary(self, vocabulary: Vocabulary | None) -> None:
        """Take the items' ids from it from now on, and leave out their keys; with None they are hashed."""
        self._vocabulary = vocabulary
        self.schema = log_schema(self.mapping, self._ids, vocabulary.name if vocabulary is not None else "")

    @property
    def url_merges(self) -> UrlMerges | None:
        """What the latest reading merged, if items are named by URLs."""
        if self._urls is None:
            return None
        return replace(self._urls.merges, rows_merged=self.counts.rows_merged, labels_differ=self._labels_differ)

    @property
    def parquet_files(self) -> list[Path]:
        """Those of its files that are Parquet, which may be a table's."""
        return [file for file in self._files if format_of(file, self.mapping) == "parquet"]

    @property
    def num_bytes(self) -> int:
        """Of its rows as text, or of the pages of Parquet, uncompressed; roughly."""
        return sum(read_size(file, self.mapping) for file in self._files)

    @property
    def num_rows(self) -> int:
        """About as many as it has, by the first ones, every candidate of a list counted."""
        return round(self.num_bytes * self._looked_rows / max(1, self._looked_bytes))

    @property
    def rejects(self) -> pa.Table:
        """Rejected rows so far: reason, detail, file, line (the first is 1; 0: the whole file), raw."""
        return self._rejects.table()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        self.begin()
        with tempfile.TemporaryDirectory(prefix="reqdedup-", dir=self._spill_folder) as folder:
            aside = self.set_aside(range(len(self._files)), self.num_partitions(), Path(folder))
            self.check_aside(aside.missing, aside.unread_bytes)
            self.settle()
            disputed = find_disputed(aside.owners)
            for part in range(aside.impressions.count):
                frame = aside.impressions.read(part)
                if frame is not None:
                    yield from self.batches_of(frame, disputed)
        self.finish()

    def begin(self) -> None:
        """Read anew: nothing is found yet."""
        self._rejects = Rejects(self._names)
        self.counts = LogCounts(files=len(self._files))
        self.keys = ItemKeys()
        if self._urls is not None:
            self._urls.forget()
        self._labels_differ = 0

    def settle(self) -> None:
        """Give the keys of all items their ids."""
        self.keys.settle(self._vocabulary)

    def finish(self) -> None:
        """Raise LogError if nothing is left, or too much was rejected."""
        self._note_rejects()
        if self.counts.rows == 0:
            raise nothing_left(self.path, self._rejects)
        if self.counts.rejected_ratio > self._max_rejects:
            raise too_many(self.path, self._rejects, self.counts, self._max_rejects)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to read a part."""
        return {**self.__dict__, "_vocabulary": None, "_progress": None, "_rejects": Rejects(), "_of_parts": {}}

    def split_size(self) -> tuple[int, int]:
        """Tasks that read its files, and their bytes; see `storage.tasks.parts`."""
        return len(self._file_groups()), sum(file.stat().st_size for file in self._files)

    def split(self, engine: Engine, folder: Folder) -> LogParts:
        """Its files read by tasks, and its users in shares for others; see `logs.tasks`."""
        self._of_parts: dict[int, Told] = {}
        return split_log(self, self._file_groups(), engine, folder)

    def take(self, number: int, notes: list[Told]) -> None:
        """What the task of a share has found."""
        self._of_parts[number] = notes[0]
        self._report()

    def was_read(self) -> None:
        """All shares were read. Raises as `finish` does."""
        for number in sorted(self._of_parts):
            self.absorb(self._of_parts[number])
        self.finish()

    def told(self) -> Told:
        """What it has found."""
        urls = () if self._urls is None else self._urls.seen()
        return Told(counts=self.counts, rejects=self._rejects, urls=urls, labels_differ=self._labels_differ)

    def absorb(self, told: Told) -> None:
        """Count what another has found in a later part of the log."""
        self.counts.take(told.counts)
        self._rejects.absorb(told.rejects)
        self._labels_differ += told.labels_differ
        if self._urls is not None:
            self._urls.absorb(told.urls)
        self._report()

    def _file_groups(self) -> list[tuple[int, ...]]:
        return neighbours([read_size(file, self.mapping) for file in self._files])

    def _probe(self) -> IdTypes:
        """Types of the ids, from the first rows that have them."""
        self._rejects = Rejects(self._names)
        ids = detect_id_types(self._first_frames(), self.mapping)
        if ids is None:
            raise nothing_left(self.path, self._rejects)
        # an id that is unique only together with its scope is hashed with it, like a string
        return replace(ids, request=ids.request or self._request_scope != "log")

    def _first_frames(self) -> Iterator[pl.DataFrame]:
        for number, file in enumerate(self._files):
            empty, rejected = True, self._rejects.count
            try:
                for block in read_blocks(file, self.mapping, self._rejects, number, block_bytes=_PROBE_BYTES):
                    empty &= block.frame.is_empty()
                    self._looked_bytes += block.num_bytes
                    self._looked_rows += _num_rows(block.frame)
                    yield block.frame
            except UnreadableFile as error:
                self._rejects.add(error.reason, error.detail, number, error.line)
                continue
            if empty and self._rejects.count == rejected:
                self._rejects.add("empty_file", "at least one row required", number, 0)

    def num_partitions(self) -> int:
        """Shares of the users that are read one at a time."""
        return min(_MAX_PARTITIONS, 1 + self.num_bytes // self._partition_bytes)

    def set_aside(self, numbers: Iterable[int], count: int, folder: Path) -> Aside:
        """First pass over the files of these numbers: their parsed impressions, by user."""
        impressions = Partitions(count, "user_id", folder, "impressions")
        owners = Partitions(count, "request_id", folder, "owners")
        missing = {name for name in self.schema.names if name in self.mapping.read_names}
        parser = ImpressionParser(
            *(self.mapping, self._ids, self._rejects),
            request_scope=self._request_scope,
            keys=self.keys,
            urls=self._urls,
        )
        unread = 0
        for number in numbers:
            file = self._files[number]
            rows_before, rejects_before = self.counts.rows_read, self._rejects.count
            try:
                for block in read_blocks(file, self.mapping, self._rejects, number, block_bytes=self._block_bytes):
                    self.counts.bytes_read += block.num_bytes
                    self.counts.rows_read += block.frame.height
                    frame = parser.parse(block.frame, number)
                    impressions.add(frame)
                    missing -= {name for name in missing if frame[name].null_count() < frame.height}
                    if self.mapping.request_id:
                        owners.add(count_owners(frame))
                    self._report()
            except UnreadableFile as error:
                self._rejects.add(error.reason, error.detail, number, error.line)
                unread += file.stat().st_size
            if self.counts.rows_read == rows_before and self._rejects.count == rejects_before:
                self._rejects.add("empty_file", "at least one row required", number, 0)
        impressions.finish()
        owners.finish()
        return Aside(impressions, owners, missing, unread)

    def check_aside(self, missing: set[str], unread_bytes: int) -> None:
        """Note how much of the log could not be read, and warn of columns without a value on any row."""
        self.counts.unread_ratio = unread_bytes / max(1, sum(file.stat().st_size for file in self._files))
        if missing and self.counts.rows_read > self._rejects.count:
            warnings.warn(
                f"{self.path}: {', '.join(sorted(missing))} missing on every row; check what the mapping names for it",
                stacklevel=2,
            )

    def batches_of(self, frame: pl.DataFrame, disputed: pl.DataFrame) -> Iterator[pa.RecordBatch]:
        """Second pass over one partition. disputed: requests that several users claim."""
        if self._ids.item:
            frame = frame.with_columns(pl.Series("item_id", self.keys.ids(frame["item_key"]), pl.Int64))
        frame = form_requests(
            frame,
            self.mapping,
            disputed=disputed,
            session_gap_s=self.mapping.session_gap_s,
            rejects=self._rejects,
            count_merged=self._count_merged,
        )
        if frame.is_empty():
            return
        self.counts.users += frame["user_id"].n_unique()
        for batch in emit_batches(
            frame,
            self.mapping,
            self.schema,
            keys=self.keys if self._ids.item else None,
            max_history=self._max_history,
            stride=self._stride,
            count_leaking=self._count_leaking,
        ):
            self.counts.rows += batch.num_rows
            self.counts.requests += len(np.unique(batch.column("request_id").to_numpy()))
            self._report()
            yield batch

    def _count_merged(self, num_rows: int, num_differing: int) -> None:
        self.counts.rows_merged += num_rows
        self._labels_differ += num_differing

    def _count_leaking(self, num_requests: int) -> None:
        if self.mapping.history.arrival_columns:
            self.counts.leaking = (self.counts.leaking or 0) + num_requests

    def _note_rejects(self) -> None:
        self.counts.rejected = dict(self._rejects.by_reason)

    def _report(self) -> None:
        self._note_rejects()
        if self._progress:
            self._progress(self.counts)


def _num_rows(frame: pl.DataFrame) -> int:
    return int(frame["candidates"].list.len().sum()) if "candidates" in frame.columns else frame.height
