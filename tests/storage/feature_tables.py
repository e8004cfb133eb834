"""Feature tables of the small log, and the plain ways of reading them that the tests compare with."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup.schema import Column, Kind, Level
from reqdedup.storage import Layout, bucket_join, create_table, write
from tests.storage.small_log import log_schema, make_log, to_batches

LOG = make_log(num_users=30, seed=4)
USERS = sorted({request["user_id"] for request in LOG})
NUM_BUCKETS = 4

COUNT = Column(name="count", dtype="int32", level=Level.REQUEST, doc="a count", nullable=True)
SCORE = Column(name="new_score", dtype="float64", level=Level.REQUEST, nullable=True)
RATE = Column(name="rate", dtype="float64", level=Level.REQUEST)
SEQUENCE = Column(name="sequence", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE)
VECTOR = Column(name="vector", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=2)


def main_table(catalog: Catalog, log: list[dict[str, Any]] = LOG, *, layout: Layout = Layout.BY_REQUEST) -> Table:
    table = create_table(catalog, f"lake.main_{layout.value}", log_schema(), layout, num_buckets=NUM_BUCKETS)
    write(table, to_batches(log))
    return table


def constant(value: Any) -> Any:
    """A compute function: the same value for every request."""
    return lambda requests: pa.array([value] * requests.num_rows)


def of_request(requests: pa.RecordBatch) -> pa.Array:
    """A compute function: a number that only this request has."""
    return pc.cast(pc.subtract(requests["request_id"], 0), pa.int32())


def values(main: Table, side: Table, name: str, *, how: str = "left", **options: Any) -> dict[int, Any]:
    """The feature by request id, as the join reads it; blobs as bytes."""
    found: dict[int, Any] = {}
    for batch in bucket_join(main, side, how=how, columns=[name], **options).batches(["request_id", name]):
        for request, value in zip(batch["request_id"].to_pylist(), batch[name].to_pylist()):
            assert found.setdefault(request, value) == value
    return found


def requests_of(users: list[int], log: list[dict[str, Any]] = LOG) -> set[int]:
    return {request["request_id"] for request in log if request["user_id"] in users}


def file_of_bucket(table: Table) -> dict[int, str]:
    return {task.file.partition[0]: task.file.file_path for task in table.scan().plan_files()}
