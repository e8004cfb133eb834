"""Where each user's timeline stands: the number that the user's next event gets, and the last ranks.

    <metadata folder>/<write id>-standing.parquet     a row group for each bucket, in the order of user_id
    user_id, end (events of the user), and the last ranks, unless one definition has the timeline, whose rank is the end

The file is derived from the snapshot that names it: written before the commit, gone with the snapshot when it expires.
It is believed if it says that commit's id and as many events as the snapshot has, and its pages have their checksums.
A snapshot of a compaction, a correction, a deletion or another engine has none; then the timeline's own files are read,
two columns of all its events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.sequences.definition import USER
from reqdedup.sequences.tables import INDEX
from reqdedup.sequences.timeline import Timeline
from reqdedup.storage.iceberg.commit import WRITE_ID
from reqdedup.storage.iceberg.files import derived_file
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.iceberg.row_files import ZSTD_LEVEL, RowFiles

END, EVENTS = "end", "reqdedup.events"


class Standing:
    """Where the users of a timeline stand, and where the rows that come bring them."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._rank_columns = [one.rank_column for one in timeline.definitions]
        stored = self._rank_columns if len(self._rank_columns) > 1 else []
        self._schema = pa.schema([(USER, pa.int64()), (END, pa.int64()), *((name, pa.int32()) for name in stored)])
        self._came: list[pa.Table] = []
        self._made: dict[int, pa.Table] = {}
        self._path = self._believed()

    def ends(self, users: pl.Series, buckets: Iterable[int] | None = None) -> pl.DataFrame:
        """Of these users those who have events, with `end` and the last ranks. buckets: theirs; None: any."""
        found = pl.from_arrow(self._rows(range(self._timeline.num_buckets) if buckets is None else sorted(buckets)))
        assert isinstance(found, pl.DataFrame)
        return found.filter(pl.col(USER).is_in(users.implode())).with_columns(
            pl.col(END).cast(pl.Int32).alias(name) for name in self._rank_columns if name not in self._schema.names
        )

    def add(self, rows: pl.DataFrame) -> None:
        """Note rows that come, in the order of (user_id, timeline_index), all of a user's together."""
        user_T = rows[USER].to_numpy()
        last = rows[np.flatnonzero(np.append(user_T[1:] != user_T[:-1], len(user_T) > 0))]
        columns = [last[USER], last[INDEX] + 1, *(last[name] for name in self._schema.names[2:])]
        self._came.append(pa.table([column.to_arrow() for column in columns], schema=self._schema))

    def write(self, files: RowFiles) -> int:
        """Write where users stand with the rows that came, to be committed with these files; the bytes of it."""
        came = pa.concat_tables([self._schema.empty_table(), *self._came])
        bucket_U = buckets_of(came.column(USER).to_numpy(), self._timeline.num_buckets)
        output, num_events = files.table.io.new_output(files.derived_path("standing.parquet")), 0
        with (
            output.create() as stream,
            pq.ParquetWriter(
                stream,
                self._schema.with_metadata({WRITE_ID: files.write_id}),
                compression="zstd",
                compression_level=ZSTD_LEVEL,
                use_dictionary=False,
                column_encoding=dict.fromkeys(self._schema.names, "DELTA_BINARY_PACKED"),
                write_page_checksum=True,
            ) as writer,
        ):
            for bucket in range(self._timeline.num_buckets):
                rows = pa.concat_tables([came.filter(pa.array(bucket_U == bucket)), self._rows([bucket])])
                _, first_U = np.unique(rows.column(USER).to_numpy(), return_index=True)
                rows = rows.take(pa.array(first_U))
                writer.write_table(rows, row_group_size=max(1, len(rows)))
                num_events += int(rows.column(END).to_numpy().sum())
            writer.add_key_value_metadata({EVENTS: str(num_events)})
        return len(output)

    def _believed(self) -> str | None:
        """Path of the snapshot's file, if it is there and of the snapshot."""
        table, snapshot_id = self._timeline.table, self._timeline.snapshot_id
        snapshot = table.snapshot_by_id(snapshot_id) if snapshot_id is not None else None
        if snapshot is None or snapshot.summary is None or (path := derived_file(snapshot)) is None:
            return None
        required = (snapshot.summary.get(WRITE_ID), snapshot.summary.get("total-records"))
        with (
            contextlib.suppress(OSError, pa.ArrowException),
            table.io.new_input(path).open() as stream,
            pq.ParquetFile(stream) as file,
        ):
            said = file.metadata.metadata or {}
            found = tuple(said.get(name.encode(), b"").decode() for name in (WRITE_ID, EVENTS))
            if found == required and file.schema_arrow.names == self._schema.names:
                return path
        return None

    def _rows(self, buckets: Iterable[int]) -> pa.Table:
        """All users of these buckets, from the snapshot's file or, without one, from the timeline's."""
        if self._path is not None:
            with (
                contextlib.suppress(OSError, pa.ArrowException),
                self._timeline.table.io.new_input(self._path).open() as stream,
                pq.ParquetFile(stream, page_checksum_verification=True) as file,
            ):
                return file.read_row_groups(list(buckets), use_threads=False).replace_schema_metadata()
            self._path = None
        for bucket in buckets:
            if bucket not in self._made:
                self._made[bucket] = self._from_events(bucket)
        return pa.concat_tables([self._schema.empty_table(), *(self._made[bucket] for bucket in buckets)])

    def _from_events(self, bucket: int) -> pa.Table:
        """A file has a user's events side by side, so that the last of them says the rank."""
        stored = self._schema.names[2:]
        found = []
        for file in self._timeline.bucket_files(bucket):
            rows = self._timeline.read_file(file, [USER, *stored])
            user_T = rows.column(USER).to_numpy()
            last_U = np.flatnonzero(np.append(user_T[1:] != user_T[:-1], len(user_T) > 0))
            last = rows.take(pa.array(last_U)).add_column(1, END, pa.array(np.diff(last_U, prepend=-1)))
            found.append(last.select(self._schema.names).cast(self._schema))
        whole = pl.from_arrow(pa.concat_tables([self._schema.empty_table(), *found]))
        assert isinstance(whole, pl.DataFrame)
        last = whole.group_by(USER).agg(pl.col(END).sum(), *(pl.col(name).max() for name in stored)).sort(USER)
        return last.to_arrow().cast(self._schema)
