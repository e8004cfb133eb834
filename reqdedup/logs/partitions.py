"""Frames set aside by the hash of a key, so that what belongs together can be read together without the whole log.

One partition stays in memory; several go to compressed Parquet files, a row group per frame. Rows of one key are all in
one partition, in the order in which they were added.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from reqdedup.logs.ids import mix64


class Partitions:
    """`count` partitions of frames by `key`, an int64 column; files `name`-<number>.parquet in `folder`."""

    def __init__(self, count: int, key: str, folder: Path, name: str):
        self.count = count
        self._key, self._folder, self._name = key, folder, name
        self._frames: list[pl.DataFrame] = []
        self._writers: dict[int, pq.ParquetWriter] = {}

    def add(self, frame: pl.DataFrame) -> None:
        if frame.is_empty():
            return
        if self.count == 1:
            self._frames.append(frame)
            return
        number = (mix64(frame[self._key].to_numpy()) % np.uint64(self.count)).astype(np.int32)
        for (part,), rows in (
            frame.with_columns(pl.Series("_part", number))
            .partition_by("_part", as_dict=True, include_key=False)
            .items()
        ):
            table = rows.to_arrow()
            writer = self._writers.get(int(part))
            if writer is None:
                writer = pq.ParquetWriter(self._path(int(part)), table.schema, compression="zstd")
                self._writers[int(part)] = writer
            writer.write_table(table)

    def finish(self) -> None:
        """Close the files; afterwards partitions can be read."""
        for writer in self._writers.values():
            writer.close()

    def read(self, part: int) -> pl.DataFrame | None:
        """All rows of one partition, None if there is none. Reading a partition lets it go."""
        if self.count == 1:
            frames, self._frames = self._frames, []
            return pl.concat(frames) if frames else None
        if part not in self._writers:
            return None
        path = self._path(part)
        frame = pl.from_arrow(pq.read_table(path))
        path.unlink()
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _path(self, part: int) -> Path:
        return self._folder / f"{self._name}-{part}.parquet"
