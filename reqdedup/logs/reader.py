"""Reading a user's own log: good rows come out as deduplicated batches, bad ones as rejects.

Two passes. The first parses blocks of 16 MiB and sets rows aside by the hash of their user; the second takes one
partition of users at a time: sessions, duplicates, histories. Memory is that of one partition, about five to eight
times `partition_bytes` of log text (1 to 2 GB by default), and never less than the rows of the most active user; a log
smaller than one partition stays in memory, a larger one needs disk for its rows. Requests come out by user and time.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from reqdedup.arrays.windows import default_stride
from reqdedup.logs.checks import LogError, Rejects, UnreadableFile
from reqdedup.logs.formats import find_files, format_of, read_blocks, read_size
from reqdedup.logs.ids import ItemKeys, Vocabulary
from reqdedup.logs.impressions import IdTypes, ImpressionParser, detect_id_types
from reqdedup.logs.mapping import LogMapping
from reqdedup.logs.mapping_toml import load_mapping
from reqdedup.logs.partitions import Partitions
from reqdedup.logs.presets import Preset, load_preset
from reqdedup.logs.requests import count_owners, find_disputed, form_requests
from reqdedup.logs.sequences import emit_batches, log_schema
from reqdedup.logs.text import BLOCK_BYTES
from reqdedup.logs.urls.items import UrlItems, UrlMerges
from reqdedup.logs.values import check_time_rule
from reqdedup.schema import EngagementSchema

DEFAULT_MAX_HISTORY = 1_024
DEFAULT_MAX_REJECTS = 0.1
PARTITION_BYTES = 256 * 2**20
_MAX_PARTITIONS = 256
_PROBE_BYTES = 2**20


@dataclass
class LogCounts:
    """What one reading has found so far; complete when the reading is.

    files: number of files that the log has.
    bytes_read: size of the rows read, uncompressed.
    rows_read: number of rows that could be split into fields.
    rows, requests, users: number of accepted ones.
    rejected: number of rejected rows by reason.
    unread_ratio: share of the log's bytes in files that could not be read, or not to their end.
    leaking: number of requests whose history would hold a row that had not arrived yet, were it in the order of time;
        None if the log does not say when rows arrived.
    """

    files: int = 0
    bytes_read: int = 0
    rows_read: int = 0
    rows: int = 0
    requests: int = 0
    users: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    unread_ratio: float = 0.0
    leaking: int | None = None

    @property
    def rejected_ratio(self) -> float:
        """Rejected rows per row, or the share of the bytes in unread files if that is more."""
        rejected = sum(self.rejected.values())
        return max(rejected / max(1, self.rows + rejected), self.unread_ratio)

    @property
    def fan_out(self) -> float:
        """Accepted rows per request; 0 before the first."""
        return self.rows / self.requests if self.requests else 0.0


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
        return None if self._urls is None else replace(self._urls.merges, labels_differ=self._labels_differ)

    @property
    def parquet_files(self) -> list[Path]:
        """Those of its files that are Parquet, which may be a table's."""
        return [file for file in self._files if format_of(file, self.mapping) == "parquet"]

    @property
    def rejects(self) -> pa.Table:
        """Rejected rows so far: reason, detail, file, line (the first is 1; 0: the whole file), raw."""
        return self._rejects.table()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        self._rejects = Rejects(self._names)
        self.counts = LogCounts(files=len(self._files))
        if self._urls is not None:
            self._urls.forget()
        self._labels_differ = 0
        with tempfile.TemporaryDirectory(prefix="reqdedup-", dir=self._spill_folder) as folder:
            self._keys = ItemKeys()
            impressions, disputed = self._set_aside(Path(folder))
            self._keys.settle(self._vocabulary)
            for part in range(impressions.count):
                frame = impressions.read(part)
                if frame is not None:
                    yield from self._batches(frame, disputed)
        self._note_rejects()
        if self.counts.rows == 0:
            raise self._nothing_left()
        if self.counts.rejected_ratio > self._max_rejects:
            raise self._too_many()

    def _probe(self) -> IdTypes:
        """Types of the ids, from the first rows that have them."""
        self._rejects = Rejects(self._names)
        ids = detect_id_types(self._first_frames(), self.mapping)
        if ids is None:
            raise self._nothing_left()
        # an id that is unique only together with its scope is hashed with it, like a string
        return replace(ids, request=ids.request or self._request_scope != "log")

    def _first_frames(self) -> Iterator[pl.DataFrame]:
        for number, file in enumerate(self._files):
            empty, rejected = True, self._rejects.count
            try:
                for block in read_blocks(file, self.mapping, self._rejects, number, block_bytes=_PROBE_BYTES):
                    empty &= block.frame.is_empty()
                    yield block.frame
            except UnreadableFile as error:
                self._rejects.add(error.reason, error.detail, number, error.line)
                continue
            if empty and self._rejects.count == rejected:
                self._rejects.add("empty_file", "at least one row required", number, 0)

    def _set_aside(self, folder: Path) -> tuple[Partitions, pl.DataFrame]:
        """First pass: all parsed impressions by user, and the requests that several users claim."""
        size = sum(read_size(file, self.mapping) for file in self._files)
        count = min(_MAX_PARTITIONS, 1 + size // self._partition_bytes)
        impressions = Partitions(count, "user_id", folder, "impressions")
        owners = Partitions(count, "request_id", folder, "owners")
        missing = {name for name in self.schema.names if name in self.mapping.read_names}
        parser = ImpressionParser(
            *(self.mapping, self._ids, self._rejects),
            request_scope=self._request_scope,
            keys=self._keys,
            urls=self._urls,
        )
        unread = 0
        for number, file in enumerate(self._files):
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
        self.counts.unread_ratio = unread / max(1, sum(file.stat().st_size for file in self._files))
        impressions.finish()
        owners.finish()
        if missing and self.counts.rows_read > self._rejects.count:
            warnings.warn(
                f"{self.path}: {', '.join(sorted(missing))} missing on every row; check what the mapping names for it",
                stacklevel=2,
            )
        return impressions, find_disputed(owners)

    def _batches(self, frame: pl.DataFrame, disputed: pl.DataFrame) -> Iterator[pa.RecordBatch]:
        """Second pass over one partition."""
        if self._ids.item:
            frame = frame.with_columns(pl.Series("item_id", self._keys.ids(frame["item_key"]), pl.Int64))
        frame = form_requests(
            frame,
            self.mapping,
            disputed=disputed,
            session_gap_s=self.mapping.session_gap_s,
            rejects=self._rejects,
            count_differing=self._count_differing,
        )
        if frame.is_empty():
            return
        self.counts.users += frame["user_id"].n_unique()
        for batch in emit_batches(
            frame,
            self.mapping,
            self.schema,
            keys=self._keys if self._ids.item else None,
            max_history=self._max_history,
            stride=self._stride,
            count_leaking=self._count_leaking,
        ):
            self.counts.rows += batch.num_rows
            self.counts.requests += len(np.unique(batch.column("request_id").to_numpy()))
            self._report()
            yield batch

    def _count_differing(self, num_items: int) -> None:
        self._labels_differ += num_items

    def _count_leaking(self, num_requests: int) -> None:
        if self.mapping.history.arrival_columns:
            self.counts.leaking = (self.counts.leaking or 0) + num_requests

    def _note_rejects(self) -> None:
        self.counts.rejected = dict(self._rejects.by_reason)

    def _report(self) -> None:
        self._note_rejects()
        if self._progress:
            self._progress(self.counts)

    def _too_many(self) -> LogError:
        counts, count = self.counts, self._rejects.count
        found = f"{count:,} of {counts.rows + count:,}, {count / (counts.rows + count):.2%}"
        if counts.unread_ratio:
            found += f", and {counts.unread_ratio:.0%} of the log's bytes in files that cannot be read to their end"
        wanted, allow = (
            f"at most {100 * self._max_rejects:.4g}% rejected rows required",
            "more with a larger max_rejects",
        )
        if not self._max_rejects:
            wanted, allow = "strict reading requires that no row is rejected", "some without strict, by max_rejects"
        return LogError(
            f"{self.path}: {wanted}, found {found}; mend the log or the mapping, or allow {allow} (--max-rejects):\n"
            f"{self._rejects.summary()}"
        )

    def _nothing_left(self) -> LogError:
        found = self._rejects.summary() or "  no row at all"
        return LogError(
            f"{self.path}: at least one row with user, item and time required, found none that can be used:\n{found}\n"
            "Check that the preset or mapping is the one of this log (docs/mapping.md)."
        )
