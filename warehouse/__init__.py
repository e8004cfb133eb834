"""The tables of this deployment: which there are, in which physical form, and the catalog that holds them."""

from warehouse.catalogs import CatalogConfig, embedded_catalog, open_catalog
from warehouse.tables import ENGAGEMENT_TABLES, create_engagement_table, load_table, open_namespace, write_report_table

__all__ = [
    "ENGAGEMENT_TABLES",
    "CatalogConfig",
    "create_engagement_table",
    "embedded_catalog",
    "load_table",
    "open_catalog",
    "open_namespace",
    "write_report_table",
]
