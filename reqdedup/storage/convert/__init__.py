"""A team's own table, or folder of Parquet files, rewritten into a layout (`reqdedup convert`)."""

from reqdedup.storage.convert.conversion import ConvertProgress, ConvertReport, convert_table
from reqdedup.storage.convert.mapping import ColumnMapping

__all__ = ["ColumnMapping", "ConvertProgress", "ConvertReport", "convert_table"]
