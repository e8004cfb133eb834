"""Layouts, writer, reader, compression, join, backfill, sampling, maintenance of Iceberg tables."""

from reqdedup.storage.catalogs import open_catalog
from reqdedup.storage.compression import compression_report
from reqdedup.storage.feature_table import create_feature_table
from reqdedup.storage.features import (
    FeatureReport,
    PromoteReport,
    StagedFeature,
    add_request_feature,
    promote,
    realign,
    rollback_to,
    stage_request_feature,
    staged_feature,
    staged_features,
    tag,
    tags,
)
from reqdedup.storage.join import BucketJoin, bucket_join
from reqdedup.storage.layout import Layout, create_table, table_layout, table_schema
from reqdedup.storage.overlap import UserOverlap, user_overlap
from reqdedup.storage.reader import FileSource, RowGroup, TableSource
from reqdedup.storage.recent_events import recent_event_counts
from reqdedup.storage.rejects import write_rejects
from reqdedup.storage.sampling import UserSample, sample_users
from reqdedup.storage.source import BatchSource
from reqdedup.storage.strata import Activity
from reqdedup.storage.writer import WriteProgress, WriteReport, write

__all__ = [
    "Activity",
    "BatchSource",
    "BucketJoin",
    "FeatureReport",
    "FileSource",
    "Layout",
    "PromoteReport",
    "RowGroup",
    "StagedFeature",
    "TableSource",
    "UserOverlap",
    "UserSample",
    "WriteProgress",
    "WriteReport",
    "add_request_feature",
    "bucket_join",
    "compression_report",
    "create_feature_table",
    "create_table",
    "open_catalog",
    "promote",
    "realign",
    "recent_event_counts",
    "rollback_to",
    "sample_users",
    "stage_request_feature",
    "staged_feature",
    "staged_features",
    "table_layout",
    "table_schema",
    "tag",
    "tags",
    "user_overlap",
    "write",
    "write_rejects",
]
