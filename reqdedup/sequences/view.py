"""The batch view: a snapshot of the timeline as memory-mapped columns, for a process that serves.

    folder/view.json      what it is of, columns and their dtypes
    folder/user_id.npy    [U] rising;  start.npy, length.npy: where each user's events lie
    folder/<column>.npy   [T] in the order of (user, timeline_index); text as codes, its values in <column>.json
    folder/recent.arrow   ids of events that a later delivery may repeat

Opening reads no event; a fetch touches the pages of the columns that it is asked for. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.lib.format import open_memmap
from pyiceberg.catalog import Catalog

from reqdedup.arrays.keys import run_starts
from reqdedup.arrays.places import places_in
from reqdedup.sequences.columns import PLAIN_TEXT, numbers_of
from reqdedup.sequences.definition import USER, EventLog
from reqdedup.sequences.delivered import DeliveredRange
from reqdedup.sequences.naive import HORIZON_US
from reqdedup.sequences.tables import INDEX, VERSION, TimelineState, load_raw
from reqdedup.sequences.timeline import open_timeline

FORMAT = 2
_NOT_SERVED = (USER, INDEX, VERSION)


@dataclass(frozen=True)
class Slice:
    """A user's events in a view: rows `start` to `end`."""

    start: int
    end: int


class BatchView:
    """An open view. namespace, state: of the timeline that it was made from.

    columns: served, their arrays memory-mapped.
    """

    def __init__(self, folder: Path) -> None:
        said = json.loads((folder / "view.json").read_text())
        if said["format"] != FORMAT:
            raise ValueError(f"{folder}: a view of format {FORMAT} required, found {said['format']}; build it again")
        self.folder = folder
        self.state = TimelineState(**{**said["state"], "definitions": tuple(said["state"]["definitions"])})
        self.log = EventLog.from_json(said["log"])
        self.namespace: str = said["namespace"]
        self.horizon_us: int = said["horizon_us"]
        self._user_U, self._start_U, self._length_U = (
            np.load(folder / f"{name}.npy") for name in (USER, "start", "length")
        )
        self.columns: dict[str, np.ndarray] = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in said["columns"]
        }
        self.texts: dict[str, np.ndarray] = {
            name: np.array(json.loads((folder / f"{name}.json").read_text()), object) for name in said["texts"]
        }

    def of_user(self, user_id: int) -> Slice:
        """Empty for a user without events."""
        place = int(np.searchsorted(self._user_U, user_id))
        if place == len(self._user_U) or self._user_U[place] != user_id:
            return Slice(0, 0)
        start = int(self._start_U[place])
        return Slice(start, start + int(self._length_U[place]))

    def read(self, name: str, start: int, end: int) -> np.ndarray:
        """Events `start` to `end` of one column; text as objects, None where it is missing."""
        values = self.columns[name][start:end]
        return self.texts[name][values] if name in self.texts else values

    def ends(self, users: pl.Series, rank_columns: Sequence[str]) -> pl.DataFrame:
        """Where the timelines of these users stand, as `Standing.ends` says it."""
        wanted = users.to_numpy()
        place = places_in(wanted, self._user_U)
        has = place >= 0
        place = place[has]
        last = self._start_U[place] + self._length_U[place] - 1
        made = {USER: wanted[has], "end": self._length_U[place]}
        made |= {name: self.columns[name][last] for name in rank_columns}
        schema = {USER: pl.Int64, "end": pl.Int64, **dict.fromkeys(rank_columns, pl.Int32)}
        return pl.DataFrame(made, schema=schema)

    def recent(self) -> pl.DataFrame:
        """Ids of the events before the watermark that a later delivery may repeat, with content."""
        return pl.read_ipc(self.folder / "recent.arrow")


def build_view(catalog: Catalog, namespace: str, folder: Path, *, horizon_us: int = HORIZON_US) -> BatchView:
    """Write a view of the timeline as it is now into a new folder, and open it. Memory is that of a bucket."""
    timeline = open_timeline(catalog, namespace)
    raw = load_raw(catalog, namespace)
    folder.mkdir(parents=True)
    names = [name for name in timeline.schema.names if name not in _NOT_SERVED]
    num_rows = sum(file.record_count for file in timeline.files)
    is_text = {
        name
        for name in names
        if pa.types.is_large_string(kind := timeline.schema.field(name).type) or pa.types.is_string(kind)
    }
    writers: dict[str, np.ndarray] = {}
    texts: dict[str, dict[Any, int]] = {name: {None: 0} for name in is_text}
    users: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    row = 0
    for bucket in range(timeline.num_buckets):
        events = timeline.read(bucket, names)
        user_T = events.column(USER).to_numpy()
        first_U = run_starts([user_T])
        users.append(user_T[first_U])
        lengths.append(np.diff(np.append(first_U, len(user_T))))
        for name in names:
            column = events.column(name)
            values = _codes(column, texts[name]) if name in is_text else numbers_of(column)
            if name not in writers:
                writers[name] = open_memmap(folder / f"{name}.npy", mode="w+", dtype=values.dtype, shape=(num_rows,))
            writers[name][row : row + len(values)] = values
        row += len(user_T)
    for array in writers.values():
        array.flush()  # type: ignore[attr-defined]
    user_U, length_U = (np.concatenate([np.empty(0, np.int64), *several]) for several in (users, lengths))
    order = np.argsort(user_U)
    start_U = np.cumsum(length_U) - length_U
    for name, array in ((USER, user_U), ("start", start_U), ("length", length_U)):
        np.save(folder / f"{name}.npy", array[order])
    for name, known in texts.items():
        (folder / f"{name}.json").write_text(json.dumps(list(known)))
    state = timeline.state
    of_then = DeliveredRange(raw, state.position, state.position, horizon_us=horizon_us, since_us=state.arrival_us)
    before = of_then.before(state.arrival_us)
    before.write_ipc(folder / "recent.arrow", compat_level=PLAIN_TEXT)
    said = {
        "format": FORMAT,
        "state": state.plain(),
        "namespace": namespace,
        "log": timeline.log.to_json(),
        "horizon_us": horizon_us,
        "columns": names,
        "texts": sorted(is_text),
    }
    (folder / "view.json").write_text(json.dumps(said))
    return BatchView(folder)


def _codes(column: pa.ChunkedArray, known: dict[Any, int]) -> np.ndarray:
    """int32 codes of text; new values get the next ones."""
    encoded = column.combine_chunks().dictionary_encode()
    code_of = np.array([known.setdefault(value, len(known)) for value in encoded.dictionary.to_pylist()], np.int32)
    if not len(code_of):
        return np.zeros(len(encoded), np.int32)
    codes = code_of[encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)]
    codes[encoded.indices.is_null().to_numpy(zero_copy_only=False)] = 0
    return codes
