"""Replacing a table's content, its form included, in one commit: the new content exists completely
before the old goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table
from pyiceberg.table.update import RemovePropertiesUpdate, SetPropertiesUpdate

from reqdedup.distributed import Engine
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.bucket_count import choose_num_buckets
from reqdedup.storage.iceberg.commit import MAY_LAND, StagedFiles
from reqdedup.storage.iceberg.form import updates_to
from reqdedup.storage.iceberg.layout import (
    Layout,
    check_engagement_table,
    check_new_form,
    engagement_form,
    form_differences,
    make_table,
    table_buckets,
    table_layout,
    table_schema,
)
from reqdedup.storage.iceberg.settings import WriteSettings
from reqdedup.storage.tasks.write import Rows, commit_source
from reqdedup.storage.write.writer import WriteProgress, WriteReport, set_properties

STREAM_BUCKETS = 16
"""Of a table that is made from a stream of batches, whose size nobody knows."""


def replace_table(
    catalog: Catalog,
    identifier: str,
    schema: EngagementSchema,
    layout: Layout,
    batches: Rows,
    *,
    num_buckets: int | None = None,
    location: str | None = None,
    settings: WriteSettings | None = None,
    progress: Callable[[WriteProgress], None] | None = None,
    seed: int = 0,
    spill_dir: str | Path | None = None,
    properties: Mapping[str, str] | None = None,
    engine: str | Engine | None = None,
) -> WriteReport:
    """Make the table `identifier` hold exactly these rows in this form, whatever form it had; what was written.

    Columns, layout, bucket count and rows change in one commit. Until then, and if anything fails, the table is as it
    was, or not there if it was not; its earlier snapshots, branches and tags stay. batches may be read from the table
    itself.
    num_buckets: partitions of the bucketed layouts. None: as many as the table has; a new one has those of the source,
        else what `choose_num_buckets` says of its size, 16 of a stream, whose size nobody knows.
    location: of a new table; an existing one stays where it is.
    settings: how the files of a table in a new form are written; else the defaults of its layout,
        or what was chosen for it.
    batches, progress, seed, spill_dir, properties, engine: as of `write`.
    Raises ValueError for wrong batches and for a table that reqdedup did not make, ConflictError if another writer was
    faster, also in making the table.
    """
    check_new_form(identifier, 1 if num_buckets is None else num_buckets)
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        table = None
    if num_buckets is None:
        num_buckets = (table and table_buckets(table)) or _fitting_buckets(batches)
    form, made = engagement_form(schema, layout, num_buckets, settings), None
    if table is None:
        table = made = make_table(catalog, identifier, form, location=location)
    check_engagement_table(table)
    own = engagement_form(table_schema(table), table_layout(table), 1)
    updates = updates_to(table, form, own.properties)
    is_same = not form_differences(table, schema, layout, num_buckets)
    if is_same and all(isinstance(one, SetPropertiesUpdate | RemovePropertiesUpdate) for one in updates):
        updates = ()  # else another engine changed columns or partition spec, of which our properties know nothing
    with (
        gone_if_failed(catalog, made),
        StagedFiles(table, updates=(*updates, *set_properties(properties))) as files,
    ):
        return commit_source(
            files, batches, replace=True, progress=progress, seed=seed, spill_dir=spill_dir, engine=engine
        )


@contextlib.contextmanager
def gone_if_failed(catalog: Catalog, made: Table | None) -> Iterator[None]:
    """A table that this call made goes again if the call fails; None if it made none.

    It stays if its name is another table's meanwhile, if it has a snapshot, and if the commit may still land, since its
    answer was lost. Such an empty table is in nobody's way: a repeated call uses it as it is.
    """
    try:
        yield
    except BaseException as error:
        if made is not None and MAY_LAND not in getattr(error, "__notes__", ()):
            with contextlib.suppress(Exception):  # the error that counts is the call's own
                found = catalog.load_table(made.name()).metadata
                if found.table_uuid == made.metadata.table_uuid and not found.snapshots:
                    catalog.purge_table(made.name())
        raise


def _fitting_buckets(source: Rows) -> int:
    """The bucket count of a new table with the rows of this source."""
    if own := getattr(source, "num_buckets", None):
        return int(own)
    num_bytes = getattr(source, "num_bytes", 0)
    if not num_bytes:
        return STREAM_BUCKETS
    return choose_num_buckets(stored_bytes=num_bytes, rows=getattr(source, "num_rows", None)).num_buckets
