"""The tables of this deployment: which there are, in which physical form, and the catalog that holds them."""

from warehouse.catalogs import embedded_catalog, open_catalog
from warehouse.namespaces import LOG, check_name, check_same_log, log_record, namespace_of
from warehouse.runs import GraphRun, NamespaceTakenError, Process, claim, release
from warehouse.tables import (
    ENGAGEMENT_TABLES,
    changed_since,
    check_one_origin,
    load_table,
    made_from,
    open_namespace,
    replace_engagement_table,
    write_report_table,
)

__all__ = [
    "ENGAGEMENT_TABLES",
    "LOG",
    "GraphRun",
    "NamespaceTakenError",
    "Process",
    "changed_since",
    "check_name",
    "check_one_origin",
    "check_same_log",
    "claim",
    "embedded_catalog",
    "load_table",
    "log_record",
    "made_from",
    "namespace_of",
    "open_catalog",
    "open_namespace",
    "release",
    "replace_engagement_table",
    "write_report_table",
]
