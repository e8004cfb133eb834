"""A log into a table: its rows, and those that could not be read into the rejects table beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup import storage
from reqdedup.display import counted, format_bytes
from reqdedup.logs import LogReader
from reqdedup.logs.urls.items import UrlMerges
from reqdedup.logs.urls.rules import FORMAT
from reqdedup.schema import ITEM_ID, EngagementSchema
from reqdedup.storage import Layout
from reqdedup.storage.foreign.folder import check_no_table
from reqdedup.storage.iceberg.layout import check_same_form
from reqdedup.storage.iceberg.url_rules import (
    URL_RULES_PROPERTY,
    check_same_url_rules,
    note_url_rules,
    url_rules_of,
    warn_of_other_url_rules,
)
from reqdedup.storage.iceberg.vocabulary import Vocabulary, items_identifier
from reqdedup.storage.write.rejects import check_rejects_table, rejects_identifier

Histories = Callable[[EngagementSchema, Iterable[pa.RecordBatch]], tuple[EngagementSchema, Iterable[pa.RecordBatch]]]
"""Rows of requests and their schema -> the same with other histories; see `sequences.training_table.with_histories`."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest took and what not.

    written: rows, requests, users and bytes of the table.  rejected: rows by reason, the most frequent first.
    rejects_table: name of the table that holds them.
    leaking: requests whose history would hold a row that had not arrived, were it in the order of time; None if the
        mapping has no arrival_column.
    urls: which ids were merged; None if items are not named by URLs.
    """

    table: str
    layout: Layout
    written: storage.WriteReport
    rejected: dict[str, int]
    rejects_table: str
    leaking: int | None = None
    urls: UrlMerges | None = None

    def __str__(self) -> str:
        written = self.written
        return (
            f"{self.table} ({self.layout.value}): {counted(written.rows, 'row')}, "
            f"{counted(written.requests, 'request')}, {counted(written.users, 'user')}, {format_bytes(written.bytes)}"
        )


def ingest(
    catalog: Catalog,
    identifier: str,
    log: LogReader,
    layout: Layout,
    *,
    num_buckets: int | None = None,
    replace: bool = False,
    histories: Histories | None = None,
    **options: Any,
) -> IngestReport:
    """Make the table `identifier` hold the rows of a log, and the rejects table beside it those that were not read.

    Both are replaced, each in one commit, the rows first; rejected rows of the logs of other tables stay. Items that
    are texts get ids of the namespace's vocabulary, before all else; in a table whose items are hashed they are hashed.
    num_buckets: as of `storage.replace_table`: by default those of the table, of a new one what fits the log's size.
    histories: gives the rows the histories of a sequence instead of the log's; items are hashed then, as in events.
    options: of `storage.replace_table`.
    Warns if the vocabulary has keys of other URL rules.
    Raises ValueError if the table has another form and `replace` is not given, and for files that are those of a table
    of Iceberg, Delta or Hudi; nothing was changed then.
    """
    check_no_table(str(log.path), log.parquet_files)
    rejects_name = rejects_identifier(identifier)
    check_rejects_table(catalog, rejects_name)
    table = catalog.load_table(identifier) if catalog.table_exists(identifier) else None
    of_table = None if table is None or replace else storage.table_schema(table)[ITEM_ID].vocabulary
    name = items_identifier(identifier) if of_table is None else of_table
    vocabulary = Vocabulary(catalog, name) if log.wants_vocabulary and name and histories is None else None
    if vocabulary is not None:
        vocabulary.check()
    log.use_vocabulary(vocabulary)
    if table is not None and not replace:
        check_same_form(table, log.schema, layout, num_buckets)
    before = table and table.current_snapshot()
    rules = _url_rules(log)
    if vocabulary is not None and catalog.table_exists(vocabulary.name):
        warn_of_other_url_rules(vocabulary.table(), rules)
    if rules or (table is not None and url_rules_of(table)):
        options["properties"] = {**(options.get("properties") or {}), URL_RULES_PROPERTY: rules}
    try:
        schema, batches = (log.schema, log) if histories is None else histories(log.schema, log)
        written = storage.replace_table(
            catalog, identifier, schema, layout, batches, num_buckets=num_buckets, **options
        )
        storage.write_rejects(catalog, rejects_name, log.rejects, of=identifier)
    except KeyboardInterrupt:  # after the commit of the rows: the rejects belong to them
        if catalog.table_exists(identifier) and catalog.load_table(identifier).current_snapshot() != before:
            storage.write_rejects(catalog, rejects_name, log.rejects, of=identifier)
        raise
    if vocabulary is not None:
        note_url_rules(vocabulary.table(), rules)
    rejected = dict(sorted(log.counts.rejected.items(), key=lambda item: -item[1]))
    return IngestReport(identifier, layout, written, rejected, rejects_name, log.counts.leaking, log.url_merges)


def append_log(table: Table, log: LogReader, **options: Any) -> storage.WriteReport:
    """Add the rows of a log to a table in one commit; what was written. options: of `storage.write`.

    Raises ValueError if the log has items that are told apart by other URL rules than those of the table.
    """
    rules = _url_rules(log)
    check_same_url_rules(table.refresh(), rules)
    if rules:
        options["properties"] = {**(options.get("properties") or {}), URL_RULES_PROPERTY: rules}
    return storage.write(table, log, mode="append", **options)


def _url_rules(log: LogReader) -> str:
    """What the property says of a log: format and fingerprint of its rules, "" if its items are no URLs."""
    merges = log.url_merges
    return "" if merges is None else json.dumps({"format": FORMAT, "fingerprint": merges.rules})
