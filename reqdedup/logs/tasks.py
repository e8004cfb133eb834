"""Reading a log by several processes: its files first, then its users, a share of them each.

    files 0-3   task -> one file: impressions of share 0, 1, ... and owners of requests 0, 1, ...; keys, rejects, counts
    files 4-9   task -> ...
    driver      keys of all files: ids from the vocabulary, once; a task per share finds requests that many users claim
    share 0     task -> its impressions of all files -> sessions, duplicates, histories -> batches, rejects, counts

The shares are those of `Partitions`, and lie in the order of the files: so batches, rejects and counts are those of one
process. What goes from the first tasks to the second lies in files of a folder that the writer of the table gives.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from reqdedup.distributed import Engine
from reqdedup.logs.checks import Rejects
from reqdedup.logs.counts import LogCounts
from reqdedup.logs.ids import ItemKeys
from reqdedup.logs.partitions import Partitions
from reqdedup.logs.requests import disputed_of

if TYPE_CHECKING:
    from reqdedup.logs.reader import LogReader

FILES_BYTES = 64 * 2**20
"""Of the text of neighbouring files that one task reads, or of one file."""


class Folder(Protocol):
    """Where tasks leave files for others; picklable. paths: of those that go at the end."""

    paths: list[str]

    def new_path(self, name: str) -> str: ...

    def create(self, path: str) -> Any: ...

    def read(self, path: str, start: int, end: int) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class ParseTask:
    """Files to read. files: their numbers."""

    number: int
    files: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"files {self.files[0]}-{self.files[-1]}"


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Where the shares of some files lie in one file: impressions, then owners; each from `ends[i]` to `ends[i+1]`."""

    path: str
    ends: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Told:
    """What reading a part of a log found.

    urls: hashes of distinct URLs, of their forms, and of what is no URL.  labels_differ: see `UrlMerges`.
    """

    counts: LogCounts
    rejects: Rejects
    urls: tuple[np.ndarray, ...] = ()
    labels_differ: int = 0


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What a task has read. missing: columns without a value.  unread_bytes: of files not readable to their end."""

    shares: Shares
    told: Told
    keys: ItemKeys
    missing: frozenset[str]
    unread_bytes: int

    @property
    def num_bytes(self) -> int:
        return int(self.shares.ends[-1])


@dataclass(frozen=True, kw_only=True)
class Parsing:
    """What the tasks share that read files. count: of shares."""

    reader: LogReader
    folder: Folder
    count: int

    def run(self, task: ParseTask) -> Parsed:
        reader, path = copy.copy(self.reader), self.folder.new_path(f"files{task.number}")
        reader.begin()
        with tempfile.TemporaryDirectory(prefix="reqdedup-") as local:
            aside = reader.set_aside(task.files, self.count, Path(local))
            ends = [0]
            with self.folder.create(path) as stream:
                for partitions in (aside.impressions, aside.owners):
                    for data in map(_packed, _frames(partitions)):
                        stream.write(data)
                        ends.append(ends[-1] + len(data))
        return Parsed(
            shares=Shares(path=path, ends=np.array(ends)),
            told=reader.told(),
            keys=reader.keys,
            missing=frozenset(aside.missing),
            unread_bytes=aside.unread_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class ShareTask:
    """A share to look at."""

    share: int

    @property
    def name(self) -> str:
        return f"requests {self.share}"


@dataclass(frozen=True, kw_only=True)
class FindingDisputes:
    """What the tasks share that look for requests which several users claim."""

    folder: Folder
    shares: tuple[Shares, ...]
    count: int

    def run(self, task: ShareTask) -> pl.DataFrame | None:
        owners = _share(self.folder, self.shares, self.count + task.share)
        return None if owners is None else disputed_of(owners)


@dataclass(frozen=True, kw_only=True)
class LogParts:
    """A log whose files have been read, in shares of its users. Notes: `Told`."""

    reader: LogReader
    folder: Folder
    shares: tuple[Shares, ...]
    count: int
    disputed: pl.DataFrame

    def parts(self) -> list[int]:
        return [one for one in range(self.count) if any(each.ends[one] < each.ends[one + 1] for each in self.shares)]

    def of_part(self, part: int, notes: list[Any]) -> Iterator[pa.RecordBatch]:
        reader, keys = copy.copy(self.reader), self.reader.keys
        reader.begin()
        reader.keys = keys
        frame = _share(self.folder, self.shares, part)
        if frame is not None:
            yield from reader.batches_of(frame, self.disputed)
        notes.append(reader.told())


def neighbours(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Numbers of neighbouring files, FILES_BYTES or one of them together. sizes: of their text."""
    groups: list[list[int]] = []
    together = 0
    for number, size in enumerate(sizes):
        if not groups or together + size > FILES_BYTES:
            groups.append([])
            together = 0
        groups[-1].append(number)
        together += size
    return [tuple(group) for group in groups]


def split_log(reader: LogReader, groups: Sequence[tuple[int, ...]], engine: Engine, folder: Folder) -> LogParts:
    """The log in shares of its users. groups: numbers of files that are read together."""
    reader.begin()
    count, found = reader.num_partitions(), dict[int, Parsed]()
    tasks = [ParseTask(number=number, files=files) for number, files in enumerate(groups)]
    with contextlib.closing(engine.run(Parsing(reader=reader, folder=folder, count=count), tasks)) as answers:
        for number, parsed in answers:
            found[number] = parsed
            folder.paths.append(parsed.shares.path)
            reader.keys.absorb(parsed.keys)
    in_order = [found[number] for number in range(len(groups))]
    for parsed in in_order:
        reader.absorb(parsed.told)
    missing = frozenset[str].intersection(*(parsed.missing for parsed in in_order))
    reader.check_aside(set(missing), sum(parsed.unread_bytes for parsed in in_order))
    reader.settle()
    shares = tuple(parsed.shares for parsed in in_order)
    disputed = _disputed(engine, FindingDisputes(folder=folder, shares=shares, count=count))
    return LogParts(reader=reader, folder=folder, shares=shares, count=count, disputed=disputed)


def _disputed(engine: Engine, work: FindingDisputes) -> pl.DataFrame:
    held = [one for one in range(work.count) if any(_has(each, work.count + one) for each in work.shares)]
    found = [pl.DataFrame(schema={"request_id": pl.Int64, "owner": pl.Int64})]
    if held:
        with contextlib.closing(engine.run(work, [ShareTask(share=one) for one in held])) as answers:
            found += [frame for _, frame in sorted(answers, key=lambda answer: answer[0]) if frame is not None]
    return pl.concat(found)


def _has(shares: Shares, share: int) -> bool:
    return bool(shares.ends[share] < shares.ends[share + 1])


def _frames(partitions: Partitions) -> Iterator[pl.DataFrame | None]:
    return (partitions.read(part) for part in range(partitions.count))


def _packed(frame: pl.DataFrame | None) -> bytes:
    if frame is None or frame.is_empty():
        return b""
    stream = io.BytesIO()
    frame.write_ipc_stream(stream, compression="zstd")
    return stream.getvalue()


def _share(folder: Folder, shares: Sequence[Shares], share: int) -> pl.DataFrame | None:
    """Rows of a share, in the order of the files."""
    frames = [
        pl.read_ipc_stream(folder.read(one.path, int(one.ends[share]), int(one.ends[share + 1])))
        for one in shares
        if _has(one, share)
    ]
    return pl.concat(frames) if frames else None
