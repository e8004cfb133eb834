"""How a table is doing: files and bytes per bucket, skew, and what to do about it.

Counts of files, rows and bytes come from the manifests. Users and the largest one's share need the user ids, which are
read alone; with `count_users=False` no data file is opened. `check_requests` reads every request-level column.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import ManifestContent
from pyiceberg.table import Table

from reqdedup.schema import ITEM_ID, USER_ID
from reqdedup.storage.iceberg.bucket_count import choose_num_buckets
from reqdedup.storage.iceberg.changes import check_one_spec
from reqdedup.storage.iceberg.layout import Layout, table_buckets, table_layout, table_schema
from reqdedup.storage.iceberg.manifests import manifests_of
from reqdedup.storage.maintenance.fit import misfit
from reqdedup.storage.maintenance.live import SMALL_SHARE, LiveFile, by_partition, is_compact, live_files
from reqdedup.storage.measure.checks import CheckResult, requests_agree
from reqdedup.storage.read.feature_table import is_feature_table
from reqdedup.storage.read.table_source import table_files

MANY_SNAPSHOTS, MANY_MANIFESTS, MANY_ITEM_FILES = 100, 100, 16
SKEWED = 3.0
"""A bucket with so many times the mean bytes sets the time and memory of what works bucket by bucket."""

FEW_BUCKETS = 16
"""So many cost a small table nothing that is worth a rewrite."""

HEAVY_USER = 0.2
"""Part of a bucket's rows: a user is never split, so no bucket count helps."""

BUCKETS_SCHEMA = pa.schema(
    [
        ("partition", pa.int64()),
        ("files", pa.int64()),
        ("small_files", pa.int64()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("users", pa.int64()),
        ("largest_user", pa.int64()),
        ("largest_user_share", pa.float64()),
        ("is_compact", pa.bool_()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class TableHealth:
    """The state of a table's current snapshot.

    buckets: one row per partition (bucket, or day since 1970; null where there is none): files, small_files (below half
        the target size), rows, bytes, users, the id and share of rows of the largest one, and whether it is in its
        final form.
    skew: bytes of the largest bucket over the mean of all num_buckets, empty ones included; None without buckets.
    snapshots, manifests: that the metadata holds, and that a scan reads.  advice: what to do, most pressing first.
    requests_agree: whether every request has one value in each request-level column; None if nobody has looked.
    """

    table: str
    layout: Layout
    num_buckets: int | None
    files: int
    small_files: int
    rows: int
    bytes: int
    users: int | None
    skew: float | None
    snapshots: int
    manifests: int
    buckets: pa.Table
    advice: tuple[str, ...]
    requests_agree: CheckResult | None = None


def table_health(table: Table, *, count_users: bool = True, check_requests: bool = False) -> TableHealth:
    """Files, rows, bytes, users and skew per bucket, with advice. It changes nothing.

    count_users: read the user ids too.  check_requests: read the request-level columns too, for `requests_agree`.
    Raises ValueError for a table that reqdedup did not make, and with check_requests for one without buckets.
    """
    table.refresh()
    layout, num_buckets = table_layout(table), table_buckets(table)
    if is_feature_table(table):
        raise ValueError(
            f"{'.'.join(table.name())}: an engagement table required, found a feature table; look at its main table"
        )
    agree = requests_agree(table) if check_requests else None
    groups = by_partition(live_files(table))
    rows, distinct = [], np.zeros(0, np.int64)
    for partition, files in groups.items():
        users, counts = _users(table, files) if count_users else (None, None)
        rows.append(_bucket_row(partition, files, users, counts, layout))
        if users is not None:
            distinct = np.union1d(distinct, users) if not layout.is_bucketed else np.append(distinct, users)
    buckets = pa.Table.from_pylist(rows, BUCKETS_SCHEMA)
    sizes = np.array([row["bytes"] for row in rows], np.int64)
    health = TableHealth(
        table=".".join(table.name()),
        layout=layout,
        num_buckets=num_buckets,
        files=sum(row["files"] for row in rows),
        small_files=sum(row["small_files"] for row in rows),
        rows=sum(row["rows"] for row in rows),
        bytes=int(sizes.sum()),
        users=len(distinct) if count_users else None,
        skew=float(sizes.max() * num_buckets / sizes.sum()) if num_buckets and len(sizes) else None,
        snapshots=len(table.metadata.snapshots),
        manifests=_num_manifests(table),
        buckets=buckets,
        advice=(),
        requests_agree=agree,
    )
    disagree = (f"requests: {agree.detail}; compaction refuses them",) if agree is not None and not agree.ok else ()
    advice = (*disagree, *_changed_spec(table), *_advice(health), *_chosen_anew(table, groups), *_items(table))
    return replace(health, advice=advice)


def _chosen_anew(table: Table, groups: dict[int | None, list[LiveFile]]) -> list[str]:
    """What choosing the columns' forms anew would save, and how; or that another engine's columns stand against it."""
    try:
        found = misfit(table, [file for files in groups.values() for file in files])
    except ValueError as error:
        return [f"columns: {error}"]
    if found is None:
        return []
    return [
        f"compact --force: the forms chosen for {', '.join(found.columns[:8])} fit the newest rows no more; chosen "
        f"anew they would take {found.saved_ratio:.0%} fewer bytes"
    ]


def _items(table: Table) -> list[str]:
    """Whether the vocabulary of the table's items has become many files, which every ingest and append reads."""
    name = table_schema(table)[ITEM_ID].vocabulary
    if not name:
        return []
    try:
        snapshot = table.catalog.load_table(name).current_snapshot()
    except NoSuchTableError:
        return [f"items: table {name} is not there, and with it the keys of the ids are gone"]
    summary = snapshot.summary if snapshot is not None else None
    files = int(summary["total-data-files"] or 0) if summary is not None else 0
    if files <= MANY_ITEM_FILES:
        return []
    return [f"compact --table {name}: its keys lie in {files} files, which every ingest and append reads"]


def _changed_spec(table: Table) -> list[str]:
    """What another engine made of the partitioning, and what to do about it."""
    try:
        check_one_spec(table, "appends and deletions")
    except ValueError as error:
        return [f"partitions: {error}"]
    return []


def _users(table: Table, files: list[LiveFile]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct users of these files, rising, and the rows of each."""
    source = table_files(table, [file.path for file in files], table_schema(table))
    users, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for batch in source.stream(source.row_groups(), [USER_ID], rows_together=2**20):
        found, found_counts = np.unique(batch.column(0).to_numpy(), return_counts=True)
        both, position = np.unique(np.append(users, found), return_inverse=True)
        counts = np.bincount(position, weights=np.append(counts, found_counts), minlength=len(both)).astype(np.int64)
        users = both
    return users, counts


def _bucket_row(
    partition: int | None,
    files: list[LiveFile],
    users: np.ndarray | None,
    counts: np.ndarray | None,
    layout: Layout,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "partition": partition,
        "files": len(files),
        "small_files": sum(file.fill < SMALL_SHARE for file in files),
        "rows": sum(file.num_rows for file in files),
        "bytes": sum(file.num_bytes for file in files),
        "is_compact": is_compact(files, layout),
    }
    if users is not None and counts is not None and len(users):
        most = int(np.argmax(counts))
        row |= {
            "users": len(users),
            "largest_user": int(users[most]),
            "largest_user_share": float(counts[most] / counts.sum()),
        }
    return row


def _num_manifests(table: Table) -> int:
    snapshot = table.current_snapshot()
    if snapshot is None:
        return 0
    return sum(manifest.content is ManifestContent.DATA for manifest in manifests_of(table, snapshot))


def _advice(health: TableHealth) -> list[str]:
    advice, rows = [], health.buckets.to_pylist()
    due = [row for row in rows if not row["is_compact"]]
    if due and health.layout is not Layout.SHUFFLED:
        files = sum(row["files"] for row in due)
        advice.append(
            f"compact: {len(due)} of {len(rows)} {'buckets' if health.num_buckets else 'days'} have several small "
            f"files, or rows out of order ({files} files); requests may be split over them"
        )
    if health.num_buckets and health.rows:
        choice = choose_num_buckets(stored_bytes=health.bytes, rows=health.rows, users=health.users)
        too_many = health.num_buckets > max(choice.num_buckets * 4 - 1, FEW_BUCKETS)
        if too_many or health.num_buckets <= choice.num_buckets / 4:
            advice.append(
                f"rebucket to {choice.num_buckets}: {health.num_buckets} buckets were found; {choice.reason}. "
                "docs/buckets.md"
            )
    heavy = [row for row in rows if (row["largest_user_share"] or 0) > HEAVY_USER and (row["users"] or 0) > 1]
    if health.num_buckets and heavy and (health.skew or 0) > SKEWED:
        worst = max(heavy, key=lambda row: row["rows"])
        advice.append(
            f"cap the largest users: user {worst['largest_user']} has {worst['largest_user_share']:.0%} of the rows of "
            f"bucket {worst['partition']}; a user is never split, `sample --max-requests-per-user N` cuts whole "
            "requests"
        )
    elif health.num_buckets and (health.skew or 0) > SKEWED:
        advice.append(
            f"more buckets do not split users: the largest has {health.skew:.1f} times the mean bytes; expect it to "
            "set the time"
        )
    if health.snapshots > MANY_SNAPSHOTS:
        advice.append(f"expire: {health.snapshots:,} snapshots keep their files on disk; `expire` frees them")
    if health.manifests > MANY_MANIFESTS:
        advice.append(
            f"compact with --one-commit: a scan reads {health.manifests} manifests; a rewrite leaves one for all it "
            "wrote"
        )
    return advice
