"""What a version of a feature table must hold, looked at in one pass over its rows and the main table's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.arrays.keys import run_starts
from reqdedup.dedup.encoding import numpy_from_blobs
from reqdedup.dedup.parts import blob_bytes
from reqdedup.dedup.streams import REQUEST_KEY
from reqdedup.schema import NUMBER_WIDTH_BYTES, USER_ID, Column, Kind
from reqdedup.storage.features.backfill import MAIN_REQUESTS, MAIN_SNAPSHOT
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.iceberg.same_requests import same_requests
from reqdedup.storage.join.merge import DUPLICATES_FIRST, INNER, JoinCounts, MergeJoin
from reqdedup.storage.measure.checks import CheckResult
from reqdedup.storage.read.buckets import SortedTable
from reqdedup.storage.read.feature_positions import feature_side, first_rows
from reqdedup.storage.read.feature_table import FeatureSchema, is_by_position
from reqdedup.storage.read.table_source import TableSource

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value allowed, by feature; of each element if a value is many. NaN lies in no range."""

CHECKS = ("requests", "order", "buckets", "nulls", "ranges")


def feature_checks(
    main_table: Table,
    side_table: Table,
    snapshot_id: int | None,
    *,
    buckets: Sequence[int] | None = None,
    ranges: Ranges | None = None,
) -> dict[str, CheckResult]:
    """The results of CHECKS for one snapshot of a feature table against the main table's newest.

    requests: every request of the main table is there exactly once, and no other.
    order, buckets: rows are sorted by their keys, in the bucket of their user; by position: the hashes of the keys are
        those of the main table.
    nulls: none if the column is not nullable, and every blob whole values of its width.
    ranges: all values within `ranges`.
    buckets: those that have to be complete, if only some were written; None means all.
    Raises ValueError for a range of a column that is not there or holds no numbers.
    """
    side, schema = feature_side(side_table, snapshot_id=snapshot_id)
    main = SortedTable(main_table, TableSource(main_table), REQUEST_KEY)
    _check_ranges(schema, ranges or {})
    look = _Look(schema, ranges or {})
    complete = set(range(main.num_buckets) if buckets is None else buckets)
    counts, elsewhere, disorder = JoinCounts(), JoinCounts(), ""
    join = MergeJoin(on=REQUEST_KEY, how=INNER, right_columns=(), duplicates=DUPLICATES_FIRST, right_name=side.name)
    for bucket in range(main.num_buckets):
        requests = first_rows(main.stream(bucket, main.num_buckets, list(REQUEST_KEY)), main.name)
        rows = look.passing(side.stream(bucket, main.num_buckets, schema.names), bucket, main.num_buckets)
        try:
            for _ in join.run(requests, rows, counts if bucket in complete else elsewhere):
                pass
        except ValueError as error:  # rows out of order, a damaged file, positions that are those of other requests
            disorder = disorder or f"bucket {bucket}: {error}"
    duplicates = counts.duplicate_right_keys + elsewhere.duplicate_right_keys
    wrong = counts.missing_rows + counts.unused_right_keys + duplicates
    said = (
        f"{counts.left_rows:,} requests in {len(complete)} of {main.num_buckets} buckets: {counts.missing_rows:,} "
        f"without a row, {counts.unused_right_keys:,} rows of no request, {duplicates:,} rows more than one"
    )
    order = disorder or f"{look.rows:,} rows in ({', '.join(REQUEST_KEY)}) order"
    if not disorder and is_by_position(side_table):
        order = f"{look.rows:,} rows by position, their keys' hashes equal those of {main.name}"
    return {
        "requests": CheckResult(wrong == 0 and not disorder, counts.left_rows, said),
        "order": CheckResult(not disorder, look.rows, order),
        "buckets": look.result("buckets", f"rows in the right one of {main.num_buckets} buckets"),
        "nulls": look.result("nulls", "rows without a null where none is allowed, blobs of the right width"),
        "ranges": look.result("ranges", f"rows within the ranges of {len(look.ranges)} features"),
    }


def features_current(main_table: Table, side_table: Table) -> CheckResult:
    """Whether the features were computed for the requests that the main table has now, as its snapshots tell.

    Compaction, rebucketing, deletion and promotion bring no new requests; whatever else came since makes them stale.
    """
    snapshot, current = side_table.current_snapshot(), main_table.metadata.current_snapshot_id
    summary = snapshot.summary if snapshot is not None else None
    made_from, noted = (summary.get(name) if summary is not None else None for name in (MAIN_SNAPSHOT, MAIN_REQUESTS))
    side, main = ".".join(side_table.name()), ".".join(main_table.name())
    had, first_had = same_requests(main_table.metadata, int(made_from) if made_from and made_from.isdigit() else None)
    has, first_has = same_requests(main_table.metadata, current)
    if noted:
        had, first_had = had | {int(noted)}, int(noted)
    if had & has and not _is_older(main_table, current, made_from):
        said = f"{side}: made from snapshot {made_from} of {main}, whose requests are the same now"
        return CheckResult(True, 1, said)
    if had and has and (first_had is None or first_has is None):
        said = (
            f"{side}: made from snapshot {made_from} of {main}; whether that has had other requests since cannot be "
            f"told, for snapshots between it and {current} have expired; compute the features again"
        )
        return CheckResult(False, 1, said)
    said = (
        f"{side} is stale: made from snapshot {made_from} of {main}, which has had other requests since (snapshot "
        f"{current}); compute the features again"
    )
    return CheckResult(False, 1, said)


def _is_older(table: Table, snapshot_id: int | None, than: str | None) -> bool:
    """Whether somebody went back to a snapshot before this one, maybe to requests that were deleted in between."""
    found, other = (table.snapshot_by_id(int(one)) if one else None for one in (snapshot_id, than))
    return found is not None and other is not None and (found.sequence_number or 0) < (other.sequence_number or 0)


class _Look:
    """Looks at the rows of a feature table as they pass; keeps the first thing that is wrong, by check."""

    def __init__(self, schema: FeatureSchema, ranges: Ranges) -> None:
        self.rows = 0
        self.ranges = ranges
        self._schema, self._wrong = schema, dict.fromkeys(CHECKS, "")

    def passing(self, batches: Iterator[pa.RecordBatch], bucket: int, num_buckets: int) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            users = batch.column(USER_ID).to_numpy()
            users = users[run_starts([users])]
            right = buckets_of(users, num_buckets) == bucket
            if not right.all():
                self._note("buckets", f"user {int(users[np.argmin(right)])} lies in bucket {bucket}")
            for column in self._schema.features:
                array = batch.column(column.name)
                self._look_at_form(array, column)
                if column.name in self.ranges:
                    self._look_at_range(array, column)
            self.rows += batch.num_rows
            yield batch

    def result(self, check: str, right: str) -> CheckResult:
        return CheckResult(not self._wrong[check], self.rows, self._wrong[check] or f"{self.rows:,} {right}")

    def _note(self, check: str, what: str) -> None:
        self._wrong[check] = self._wrong[check] or what

    def _look_at_form(self, array: pa.Array, column: Column) -> None:
        if array.null_count and not column.nullable:
            self._note("nulls", f"{column.name}: no nulls allowed, found {array.null_count} in a batch")
        if not column.is_blob:
            return
        lengths, element = blob_bytes(array.dictionary), NUMBER_WIDTH_BYTES[column.dtype]
        wrong = lengths != column.width * element if column.kind is Kind.VECTOR else lengths % element != 0
        if wrong.any():
            wanted = f"{column.width * element}" if column.kind is Kind.VECTOR else f"a multiple of {element}"
            self._note(
                "nulls", f"{column.name}: {wanted} bytes a value required, found {int(lengths[np.argmax(wrong)])}"
            )

    def _look_at_range(self, array: pa.Array, column: Column) -> None:
        low, high = self.ranges[column.name]
        if column.is_blob:
            values, _ = numpy_from_blobs(array.dictionary, column.dtype)
        else:
            values = array.drop_null().to_numpy(zero_copy_only=False)
        outside = ~((values >= low) & (values <= high))
        if outside.any():
            self._note("ranges", f"{column.name}: {low:g} to {high:g} required, found {values[np.argmax(outside)]}")


def _check_ranges(schema: FeatureSchema, ranges: Ranges) -> None:
    numbers = [column.name for column in schema.features if column.dtype in NUMBER_WIDTH_BYTES]
    unknown = sorted(set(ranges) - set(numbers))
    if unknown:
        raise ValueError(f"ranges: features of numbers required ({', '.join(numbers)}), found {', '.join(unknown)}")
