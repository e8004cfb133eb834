"""User states as a file beside a bundle, which a server reads at its start: a server never reads the lake.

Parquet, the columns of the table `user_states`; the fingerprint of the model stands in the schema's metadata. The file
is replaced whole, so a reader sees one version of it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MODEL = b"reqdedup.model"
STATES_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("timeline_version", pa.int64(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("history_end", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(), nullable=False),
        pa.field("state", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
    ]
)


def write_states(path: Path, batches: Iterable[pa.RecordBatch], *, model: str) -> int:
    """Make the file hold exactly these states of the model with this fingerprint; how many there are."""
    num_states = 0
    schema = STATES_SCHEMA.with_metadata({MODEL: model.encode()})
    with _replacing(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            num_states += len(batch)
    return num_states


def model_of(path: Path) -> str:
    """Fingerprint of the model whose states the file has. Raises ValueError if it is no such file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except OSError:
        raise ValueError(f"{path}: a file of user states required, found none") from None
    except pa.ArrowInvalid:
        raise ValueError(f"{path}: a file of user states required, found another file") from None
    if MODEL not in metadata:
        raise ValueError(f"{path}: a file of user states required, found another Parquet file")
    return str(metadata[MODEL].decode())


def read_states(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=10_000)


def delete_states(path: Path, users: Collection[int], *, dry_run: bool) -> int:
    """Write the file again without the states of these users; how many they are, or with dry_run would be."""
    model, ids = model_of(path), np.fromiter(users, np.int64)

    def is_theirs(batch: pa.RecordBatch) -> np.ndarray:
        return np.isin(batch["user_id"].to_numpy(), ids)

    num_theirs = sum(int(is_theirs(batch).sum()) for batch in read_states(path))
    if num_theirs and not dry_run:
        write_states(path, (batch.filter(pa.array(~is_theirs(batch))) for batch in read_states(path)), model=model)
    return num_theirs


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside it that gets its name once it is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
