"""Keeping tables in shape: compaction, expiry and sweep, health and bucket counts, deleting users, conversion."""

from reqdedup.storage.maintenance.compact import CompactReport, compact
from reqdedup.storage.maintenance.delete_user import DeletionReport, delete_user
from reqdedup.storage.maintenance.expire import ExpireReport, expire_snapshots
from reqdedup.storage.maintenance.sweep import SweepReport, sweep_orphans

__all__ = [
    "CompactReport",
    "DeletionReport",
    "ExpireReport",
    "SweepReport",
    "compact",
    "delete_user",
    "expire_snapshots",
    "sweep_orphans",
]
