"""Which snapshots of a table hold the same requests: maintenance brings none, and says whose it keeps.

    append s -- compact c1 (of s) -- compact c2 (of s) -- delete d (of s)

So `d` and `s` are known to have the same requests after the snapshots between them have expired, and `s` too. A
deletion takes requests away and counts as the others do.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot, Summary

OPERATION = "reqdedup.operation"
"""Snapshot property: what maintenance did."""

PLAN = "reqdedup.promote-plan"
"""Snapshot property: what a promotion adds; its snapshots have no operation."""

REQUESTS_OF = "reqdedup.requests-of"
"""Snapshot property: the first snapshot with the same requests; expiring forgets parents."""


def brings_no_requests(summary: Summary | Mapping[str, str] | None) -> bool:
    """Whether a snapshot with this summary has the requests of its parent and no others."""
    if summary is None:
        return False
    return summary.get(OPERATION) in ("compact", "rebucket", "delete") or summary.get(PLAN) is not None


def same_requests(metadata: TableMetadata, snapshot_id: int | None) -> tuple[set[int], int | None]:
    """Snapshots known to have the requests of this one, itself and earlier ones, and the first that has them.

    The first is None if that cannot be told, for snapshots have expired.
    """
    known: set[int] = set()
    first: int | None = None
    while snapshot_id is not None:
        known.add(snapshot_id)
        snapshot: Snapshot | None = metadata.snapshot_by_id(snapshot_id)
        if snapshot is None:
            break
        if not brings_no_requests(snapshot.summary):
            return known, snapshot_id
        noted = snapshot.summary.get(REQUESTS_OF) if snapshot.summary is not None else None
        if noted:
            first = int(noted)
            known.add(first)
        snapshot_id = snapshot.parent_snapshot_id
    return known, first
