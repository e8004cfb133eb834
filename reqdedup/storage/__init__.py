"""Layouts, writer, reader, compression, join, backfill, sampling, maintenance of Iceberg tables."""

from reqdedup.storage.layout import Layout, create_table, table_layout, table_schema
from reqdedup.storage.reader import FileSource, RowGroup, TableSource
from reqdedup.storage.source import BatchSource

__all__ = [
    "BatchSource",
    "FileSource",
    "Layout",
    "RowGroup",
    "TableSource",
    "create_table",
    "table_layout",
    "table_schema",
]
