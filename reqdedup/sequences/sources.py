"""Where events come from: a source has a name and hands out tables of delivered events, in the order of delivery.

Files of JSON Lines and Parquet are here, and any iterator. Nothing is judged here but whether a line is JSON; what is
an event, `intake` decides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.sequences.definition import EVENT_ID, ITEM, USER, EventLog

BATCH_ROWS = 65_536
LINE = "_line"
"""Column with a line that is no JSON object; its event has nothing else."""


class EventSource(Protocol):
    """Delivered events. name: tells sources apart; one that was appended is not appended again.

    A source of a stream that goes on has `progress` too, as of `intake.append_events`.
    """

    @property
    def name(self) -> str: ...

    def batches(self, log: EventLog) -> Iterator[pa.Table]: ...


@dataclass(frozen=True)
class IteratorSource:
    """Any batches under a name."""

    name: str
    tables: Iterable[pa.Table | pa.RecordBatch]

    def batches(self, log: EventLog) -> Iterator[pa.Table]:
        for one in self.tables:
            yield pa.Table.from_batches([one]) if isinstance(one, pa.RecordBatch) else one


@dataclass(frozen=True)
class FileSource:
    """A file of JSON Lines (.jsonl, .ndjson, .json) or Parquet (.parquet), known by its whole path, from wherever it
    is named."""

    path: Path

    @property
    def name(self) -> str:
        return os.path.abspath(self.path)

    def batches(self, log: EventLog) -> Iterator[pa.Table]:
        if self.path.suffix == ".parquet":
            with pq.ParquetFile(self.path) as file:
                has = [name for name in log.dtypes if name in file.schema_arrow.names]
                for batch in file.iter_batches(BATCH_ROWS, columns=has):
                    yield pa.Table.from_batches([batch])
        elif self.path.suffix in (".jsonl", ".ndjson", ".json"):
            with self.path.open("rb") as lines:
                yield from json_batches((row_of_json(line) for line in lines if line.strip()), log)
        else:
            raise ValueError(
                f"{self.path}: a file of .jsonl, .ndjson, .json or .parquet required, found {self.path.suffix!r}"
            )


def event_files(place: Path) -> list[FileSource]:
    """A file, or the files of a folder by name; those of other kinds are left alone. Raises ValueError if there are
    none, or packed ones among them, which would be missed unseen."""
    kinds = ("*.jsonl", "*.ndjson", "*.json", "*.parquet")
    endings = [kind + packing for kind in kinds for packing in (".gz", ".zst", ".bz2", ".xz")]
    if place.is_dir() and (packed := sorted(path for ending in endings for path in place.rglob(ending))):
        raise ValueError(f"{packed[0]}: event files that are not packed required, found {len(packed):,}; unpack them")
    paths = sorted({path for kind in kinds for path in place.rglob(kind)}) if place.is_dir() else [place]
    if not paths or not all(path.exists() for path in paths):
        raise ValueError(f"{place}: event files (.jsonl, .ndjson, .json, .parquet) required, found none")
    return [FileSource(path) for path in paths]


def json_batches(events: Iterable[dict[str, Any]], log: EventLog) -> Iterator[pa.Table]:
    """Events of `row_of_json` in tables."""
    rows: list[dict[str, Any]] = []
    for event in events:
        rows.append(event)
        if len(rows) == BATCH_ROWS:
            yield _table(rows, log)
            rows = []
    if rows:
        yield _table(rows, log)


def row_of_json(line: bytes) -> dict[str, Any]:
    """A JSON object as an event; the text alone, under LINE, if it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {LINE: line.decode(errors="replace").strip()}


def _table(rows: list[dict[str, Any]], log: EventLog) -> pa.Table:
    """Columns of one kind each: as they are if their values are, else as text."""
    names = [name for name in (*log.dtypes, LINE) if any(name in row for row in rows)]
    return pl.DataFrame([_series(name, [row.get(name) for row in rows]) for name in names]).to_arrow()


def _series(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    for allowed, dtype in (({bool}, pl.Boolean), ({int}, pl.Int64), ({int, float}, pl.Float64), ({str}, pl.String)):
        if kinds <= allowed and (dtype != pl.Int64 or all(v is None or -(2**63) <= v < 2**63 for v in values)):
            return pl.Series(name, values, dtype=dtype)
    say = _id_text if name in (EVENT_ID, USER, ITEM) else json.dumps
    text = [value if value is None or isinstance(value, str) else say(value) for value in values]
    return pl.Series(name, text, dtype=pl.String)


def _id_text(value: Any) -> str:
    """A number beside ids of text as it is read beside numbers; empty, which is no id, if it is not whole."""
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    return str(int(value)) if is_whole else ""
