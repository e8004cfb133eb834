"""Layouts, writer, reader, compression, join, backfill, sampling, maintenance of Iceberg tables."""

import importlib
import warnings
from typing import Any

from reqdedup.dedup.source import BatchSource
from reqdedup.storage.features import (
    FeatureReport,
    PromoteReport,
    StagedFeature,
    add_request_feature,
    compute_features,
    promote,
    realign,
    replace_feature_table,
    rollback_to,
    stage_request_feature,
    staged_feature,
    staged_features,
    tag,
    tags,
)
from reqdedup.storage.features.recent_events import recent_event_counts
from reqdedup.storage.iceberg.catalogs import open_catalog
from reqdedup.storage.iceberg.errors import ConflictError, IntegrityError
from reqdedup.storage.iceberg.layout import Layout, create_table, table_layout, table_schema
from reqdedup.storage.iceberg.settings import WriteSettings
from reqdedup.storage.join.bucket_join import BucketJoin, bucket_join
from reqdedup.storage.maintenance import (
    BucketChoice,
    CompactReport,
    DeletionReport,
    ExpireReport,
    NamespaceTables,
    RebucketReport,
    SweepReport,
    TableHealth,
    choose_num_buckets,
    compact,
    delete_user,
    expire_snapshots,
    feature_tables_of,
    rebucket,
    sweep_orphans,
    table_health,
    tables_of,
    to_realign,
)
from reqdedup.storage.measure.compression import compression_report
from reqdedup.storage.measure.overlap import UserOverlap, user_overlap
from reqdedup.storage.read.feature_table import create_feature_table
from reqdedup.storage.read.reader import FileSource, RowGroup
from reqdedup.storage.read.table_source import TableSource
from reqdedup.storage.sampling.sample import UserSample, sample_users
from reqdedup.storage.sampling.strata import Activity
from reqdedup.storage.tasks.replace import replace_table
from reqdedup.storage.tasks.write import write
from reqdedup.storage.write.in_order import InOrder
from reqdedup.storage.write.rejects import write_rejects
from reqdedup.storage.write.writer import WriteProgress, WriteReport

_MOVED = dict.fromkeys(("ColumnMapping", "ConvertProgress", "ConvertReport", "convert_table"), "reqdedup.convert")
"""Names of 0.1.0 that live in another room now; they go with version 0.3."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    warnings.warn(f"{__name__}.{name} is {_MOVED[name]}.{name} now", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(_MOVED[name]), name)


__all__ = [
    "Activity",
    "BatchSource",
    "BucketChoice",
    "BucketJoin",
    "CompactReport",
    "ConflictError",
    "DeletionReport",
    "ExpireReport",
    "FeatureReport",
    "FileSource",
    "InOrder",
    "IntegrityError",
    "Layout",
    "NamespaceTables",
    "PromoteReport",
    "RebucketReport",
    "RowGroup",
    "StagedFeature",
    "SweepReport",
    "TableHealth",
    "TableSource",
    "UserOverlap",
    "UserSample",
    "WriteProgress",
    "WriteReport",
    "WriteSettings",
    "add_request_feature",
    "bucket_join",
    "choose_num_buckets",
    "compact",
    "compression_report",
    "compute_features",
    "create_feature_table",
    "create_table",
    "delete_user",
    "expire_snapshots",
    "feature_tables_of",
    "open_catalog",
    "promote",
    "realign",
    "rebucket",
    "recent_event_counts",
    "replace_feature_table",
    "replace_table",
    "rollback_to",
    "sample_users",
    "stage_request_feature",
    "staged_feature",
    "staged_features",
    "sweep_orphans",
    "table_health",
    "table_layout",
    "table_schema",
    "tables_of",
    "tag",
    "tags",
    "to_realign",
    "user_overlap",
    "write",
    "write_rejects",
]
