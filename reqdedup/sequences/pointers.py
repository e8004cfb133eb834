"""A training table without sequence columns: each request is a pointer into the timeline, joined as it is read.

    main       user_id, request_id, ..., history_end, timeline_version      `write_training_table(pointers=True)`
    timeline   the events of the users of one bucket at a time

Batches are those of the same table with blobs. The first such table saves nothing, since the timeline is as large as
the blobs; each further one is the size of its own columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog

from reqdedup.arrays.ranges import offsets_of
from reqdedup.arrays.windows import gather_windows
from reqdedup.dedup.encoding import blobs_from_numpy
from reqdedup.schema import HISTORY_END, REQUEST_TS, TIMELINE_VERSION
from reqdedup.sequences.definition import USER
from reqdedup.sequences.ends import (
    history_columns,
    history_name,
    history_values,
    requests_of,
    windows,
    with_arrival,
)
from reqdedup.sequences.timeline import Timeline, open_timeline
from reqdedup.storage import TableSource
from reqdedup.storage.iceberg.layout import table_buckets
from reqdedup.storage.iceberg.reference import TableRef
from reqdedup.storage.read.reader import FileSource

_POINTER = (USER, REQUEST_TS, HISTORY_END, TIMELINE_VERSION)


class PointerSource:
    """A table of pointers as a source of deduplicated batches; see `BatchSource`.

    schema: the table's columns, then the histories of the sequence.
    Raises ValueError if the table has no pointers, or other buckets than the timeline.
    """

    def __init__(
        self, main: TableSource, catalog: Catalog, namespace: str, sequence: str, *, version: int | None = None
    ) -> None:
        found, name = open_timeline(catalog, namespace, version), ".".join(main.table.name())
        self._timeline = _OneBucket(found.table, found.snapshot_id, found.state)
        self._definition = found.definition(sequence)
        self._main: FileSource = main
        missing = [one for one in _POINTER if one not in main.schema.names]
        if missing:
            raise ValueError(f"{name}: pointers ({', '.join(_POINTER)}) required, found no {', '.join(missing)}")
        if table_buckets(main.table) != found.num_buckets:
            raise ValueError(
                f"{name}: {found.num_buckets} buckets, as many as the timeline's, required, found "
                f"{table_buckets(main.table)}; write it with pointers=True"
            )
        self._made = {column.name: column for column in history_columns(found, self._definition)}
        self._source_of = {history_name(name): name for name in self._definition.columns}
        self.schema = main.schema.with_columns(*self._made.values())
        self.name = f"{name} with {sequence}"

    def fingerprint(self) -> dict[str, str]:
        """See `BatchSource`."""
        sequence = f"{self._definition.fingerprint} at {self._timeline.snapshot_id}"
        return {**self._main.fingerprint(), "sequence": sequence}

    def __getstate__(self) -> dict[str, Any]:
        main = self._main.files() if isinstance(self._main, TableSource) else self._main
        return {**self.__dict__, "_main": main}

    def batches(
        self, columns: Sequence[str] | None = None, users: np.ndarray | pa.Array | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The batches of the table with the histories; see `BatchSource`.

        Raises ValueError for rows of another version, or with more events than their user has: of one who was deleted.
        """
        names = [name for name in self.schema.names if columns is None or name in columns]
        wanted = [name for name in self._made if name in names]
        read = [name for name in self._main.schema.names if name in names or (wanted and name in _POINTER)]
        for batch in self._main.batches(read, users):
            if wanted and batch.num_rows:
                batch = self._joined(batch, wanted)
            elif wanted:
                continue
            yield batch.select(names)

    def _joined(self, batch: pa.RecordBatch, wanted: Sequence[str]) -> pa.RecordBatch:
        version, found = self._timeline.state.version, pc.unique(batch.column(TIMELINE_VERSION)).to_pylist()
        if found != [version]:
            raise ValueError(
                f"{self.name}: rows of version {version} of the timeline required, found {found}; open it with "
                "the version that they are of"
            )
        rows = pa.Table.from_batches([batch])
        user_B, at_us_B = requests_of(rows)
        ((row_R, of_bucket),) = windows(
            self._timeline,
            with_arrival(self._definition),
            user_B,
            at_us_B,
            seen_R=rows.column(HISTORY_END).to_numpy(),
        )
        start_B, length_B = (np.empty_like(of_bucket.start_R) for _ in range(2))
        start_B[row_R], length_B[row_R] = of_bucket.start_R, of_bucket.length_R
        is_new = np.ones(len(start_B), bool)
        is_new[1:] = (np.diff(start_B) != 0) | (np.diff(length_B) != 0)
        indices = pa.array((np.cumsum(is_new) - 1).astype(np.int32))
        start_W, length_W = start_B[is_new], length_B[is_new]
        for name in wanted:
            packed = gather_windows(history_values(of_bucket.columns, self._source_of[name]), start_W, length_W)
            blobs = blobs_from_numpy(packed.astype(self._made[name].dtype, copy=False), offsets_of(length_W))
            rows = rows.append_column(name, pa.DictionaryArray.from_arrays(indices, blobs))
        (joined,) = rows.combine_chunks().to_batches()
        return joined


class _OneBucket(Timeline):
    """Keeps the bucket that was read last: a table's batches come bucket by bucket. A rank of a training gets the files
    and no catalog."""

    _kept: tuple[Any, pa.Table] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": TableRef.of(self.table), "_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "table": state["table"].open()})

    def read(self, bucket: int, columns: Sequence[str]) -> pa.Table:
        asked = bucket, tuple(columns)
        if self._kept is None or self._kept[0] != asked:
            self._kept = asked, super().read(bucket, columns)
        return self._kept[1]
