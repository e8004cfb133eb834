"""Whether rows that are to be appended are in the table already, as a day that is converted twice is.

A row that is there has its request's time, user and request there. So files are asked in the order of their cost:
bounds of request_ts and user_id (which the commit reads anyway), then the two key columns of what overlaps, and only
rows of requests that are on both sides are read in full and compared by the hash of all their values. Tomorrow's rows
overlap in no time, and cost nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.types import NestedField, PrimitiveType

from reqdedup.arrays.hashing import mix
from reqdedup.dedup.checksum import batch_hashes
from reqdedup.schema import REQUEST_ID, REQUEST_TS, USER_ID, EngagementSchema
from reqdedup.storage.iceberg.manifests import data_files
from reqdedup.storage.read.reader import FileSource, RowGroup
from reqdedup.storage.read.table_source import table_files


def repeated_rows(table: Table, new: Sequence[DataFile], schema: EngagementSchema) -> int:
    """How many rows of the new files, which are not in the table yet, it holds already with equal values."""
    old = data_files(table)
    of_partition: dict[str, list[DataFile]] = defaultdict(list)
    for file in new:
        of_partition[str(file.partition)].append(file)
    count = 0
    for partition, files in of_partition.items():
        there = [
            one.file_path
            for one in old
            if str(one.partition) == partition and any(_may_share(table, one, file) for file in files)
        ]
        if there:
            source = FileSource([file.file_path for file in files], schema, io=table.io, merge_pieces=False)
            count += _in_both(source, table_files(table, there, schema))
    return count


def _may_share(table: Table, one: DataFile, other: DataFile) -> bool:
    """Whether the bounds of both files leave room for a row in both."""
    for name in (REQUEST_TS, USER_ID):
        field = table.schema().find_field(name)
        ranges = [_range(file, field) for file in (one, other)]
        if None not in ranges:
            (low, high), (other_low, other_high) = ranges
            if low > other_high or other_low > high:
                return False
    return True


def _range(file: DataFile, field: NestedField) -> Any:
    """Lowest and highest value of a column in a file; None if the file does not say."""
    bounds = [(side or {}).get(field.field_id) for side in (file.lower_bounds, file.upper_bounds)]
    if None in bounds or not isinstance(field.field_type, PrimitiveType):
        return None
    return [from_bytes(field.field_type, value) for value in bounds if value is not None]


def _in_both(new: FileSource, old: FileSource) -> int:
    keys = list(new.stream(new.row_groups(), [USER_ID, REQUEST_ID]))
    requests = np.unique(np.concatenate([_request_hashes(batch) for batch in keys]))
    users = np.unique(np.concatenate([batch.column(USER_ID).to_numpy() for batch in keys]))
    there = _hashes(old, old.row_groups(users), requests)
    if not len(there):
        return 0
    return int(np.isin(_hashes(new, new.row_groups(), requests), there).sum())


def _hashes(source: FileSource, groups: Iterable[RowGroup], requests: np.ndarray) -> np.ndarray:
    """Hashes of the rows of these requests; row groups without any are not read in full."""
    found: list[Any] = [np.zeros(0, np.uint64)]
    for group in groups:
        if not any(_is_of(batch, requests).any() for batch in source.stream([group], [USER_ID, REQUEST_ID])):
            continue
        for batch in source.stream([group]):
            hashes = batch_hashes(batch)
            found.append(hashes[_is_of(batch, requests)])
    return np.concatenate(found)


def _is_of(batch: pa.RecordBatch, requests: np.ndarray) -> np.ndarray:
    return np.isin(_request_hashes(batch), requests)


def _request_hashes(batch: pa.RecordBatch) -> np.ndarray:
    """[N] uint64, one for each user_id and request_id; two requests with one hash cost a reading, no wrong count."""
    user_id, request_id = (batch.column(name).to_numpy().view(np.uint64) for name in (USER_ID, REQUEST_ID))
    return mix(mix(user_id) ^ request_id)
