"""Whether the forms that were chosen for a table's columns still fit its rows.

They are chosen once, by the first rows (docs/decisions/0020); rows of another kind may come later. The newest row group
is written twice in memory, in the forms that are kept and in those that would be chosen by it now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyiceberg.table import Table

from reqdedup.storage.iceberg.encodings import ENOUGH_ROWS, bytes_in, choose, stored_choices
from reqdedup.storage.iceberg.layout import table_layout
from reqdedup.storage.iceberg.settings import WriteSettings
from reqdedup.storage.maintenance.live import LiveFile
from reqdedup.storage.maintenance.user_rows import rewrite_schema
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.write.form import in_form

WORTH_RENEWING = 0.02
"""Of a row group's bytes that other forms must save."""


@dataclass(frozen=True)
class Misfit:
    """columns: that would take another form now.  saved_ratio: of the bytes of the row group that was looked at."""

    columns: tuple[str, ...]
    saved_ratio: float


def misfit(table: Table, files: Iterable[LiveFile]) -> Misfit | None:
    """What choosing anew would save; None if it is not worth it, or nothing was chosen yet."""
    layout, kept = table_layout(table), stored_choices(table.properties)
    newest = max(files, key=lambda file: (file.sequence, file.num_rows), default=None)
    if newest is None or not kept or layout.has_writer_defaults:
        return None
    schema = rewrite_schema(table)
    settings = WriteSettings.of(table.properties, layout, schema)
    source = table_files(table, [newest.path], schema)
    group = max(source.row_groups(), key=lambda group: group.num_rows)
    if group.num_rows < ENOUGH_ROWS:
        return None
    rows = in_form(source.read_row_group(group), layout, schema)
    found = choose(rows, schema, settings, blobs=layout.has_blobs)
    before, after = (
        bytes_in(rows, schema, settings, choices, blobs=layout.has_blobs) for choices in (found | kept, found)
    )
    if after > before * (1 - WORTH_RENEWING):
        return None
    return Misfit(tuple(name for name in found if found[name] != kept.get(name, found[name])), 1 - after / before)
