"""Keeping tables in shape: compaction, expiry and sweep, health and bucket counts, deleting users, conversion."""

from reqdedup.storage.iceberg.bucket_count import BucketChoice, choose_num_buckets
from reqdedup.storage.maintenance.compaction import CompactReport, compact
from reqdedup.storage.maintenance.deletion import DeletionReport, delete_user
from reqdedup.storage.maintenance.expire import ExpireReport, expire_snapshots
from reqdedup.storage.maintenance.health import TableHealth, table_health
from reqdedup.storage.maintenance.namespace import NamespaceTables, feature_tables_of, tables_of, to_realign
from reqdedup.storage.maintenance.rebucketing import RebucketReport, rebucket
from reqdedup.storage.maintenance.sweep import SweepReport, sweep_orphans

__all__ = [
    "BucketChoice",
    "CompactReport",
    "DeletionReport",
    "ExpireReport",
    "NamespaceTables",
    "RebucketReport",
    "SweepReport",
    "TableHealth",
    "choose_num_buckets",
    "compact",
    "delete_user",
    "expire_snapshots",
    "feature_tables_of",
    "rebucket",
    "sweep_orphans",
    "table_health",
    "tables_of",
    "to_realign",
]
