"""A team's own table, or folder of Parquet files, rewritten into a layout (`reqdedup convert`)."""

from reqdedup.convert.conversion import ConvertProgress, ConvertReport, convert_table, open_source
from reqdedup.convert.mapping import ColumnMapping

__all__ = ["ColumnMapping", "ConvertProgress", "ConvertReport", "convert_table", "open_source"]
