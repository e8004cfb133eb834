"""Layouts, writer, reader, compression, join, backfill, sampling, maintenance of Iceberg tables."""

from reqdedup.storage.layout import Layout, create_table, table_layout, table_schema
from reqdedup.storage.reader import FileSource, RowGroup, TableSource
from reqdedup.storage.source import BatchSource
from reqdedup.storage.writer import WriteProgress, WriteReport, write

__all__ = [
    "BatchSource",
    "FileSource",
    "Layout",
    "RowGroup",
    "TableSource",
    "WriteProgress",
    "WriteReport",
    "create_table",
    "table_layout",
    "table_schema",
    "write",
]
