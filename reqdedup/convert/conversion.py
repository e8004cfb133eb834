"""A table that a team already has, rewritten into a layout and verified row for row.

    source -> levels (a sample) -> pieces -> deduplicated batches -> the writer -> files -> checksum
    of both sides -> commit

Further rows are appended the same way, with the table's own levels in place of the sample's. After the sample there is
one pass over the source, and a second one with pyiceberg's own scan if it is an Iceberg table. Memory is a piece of the
source and what a write takes; the disk holds the deduplicated rows, also of a shuffled source, whose requests are
recognised when they come again. The source is only read. Nothing is visible before both checksums agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
from pyiceberg.table import Table

from reqdedup.convert.append import in_table_order, known_columns, open_for_append
from reqdedup.convert.candidates import CandidateSource
from reqdedup.convert.changes import changes_of, times_note
from reqdedup.convert.levels import find_levels
from reqdedup.convert.mapping import (
    ColumnMapping,
    Conversion,
    TargetColumn,
    check_mapping,
    engagement_schema,
    plan_columns,
)
from reqdedup.convert.place import in_source
from reqdedup.convert.rows import Converter
from reqdedup.convert.sessions import find_sessions
from reqdedup.convert.tasks import keys_by, sessions_by
from reqdedup.convert.text_ids import item_keys
from reqdedup.convert.writing import write_converted
from reqdedup.dedup.checksum import ContentChecksum
from reqdedup.dedup.parts import RequestValuesError
from reqdedup.display import counted
from reqdedup.distributed import SHUFFLE_PAYS_FROM, Engine, engine_for
from reqdedup.distributed.engine import named_engine
from reqdedup.masking import mask
from reqdedup.schema import HISTORY_ITEM_ID, ITEM_ID, EngagementSchema, Kind, Level
from reqdedup.storage.foreign.leaves import Shape
from reqdedup.storage.foreign.source import RowSource
from reqdedup.storage.iceberg.bucket_count import choose_num_buckets
from reqdedup.storage.iceberg.layout import (
    LAYOUT_PROPERTY,
    Layout,
    check_new_form,
    engagement_form,
    form_differences,
    stage_table,
    table_buckets,
    table_layout,
    table_schema,
)
from reqdedup.storage.iceberg.names import check_free_name, check_location
from reqdedup.storage.iceberg.url_rules import URL_RULES_PROPERTY, check_same_url_rules, url_rules_of
from reqdedup.storage.iceberg.vocabulary import Vocabulary, items_identifier


@dataclass(frozen=True)
class ConvertProgress:
    """How far a conversion is. phase: keys, sample, rows or verify; done of total rows (of row groups in sample)."""

    phase: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.phase}: {self.done:,} of {self.total:,}"


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion did.

    columns: target name -> (source names, level).  rows, requests, files, bytes: of the new files;
        source_bytes: of the old.
    checksum: of both sides.  compared_with: what the new rows were compared with, in words.
    changes: what is not as it was in the source, on both sides alike: types, zones, new ids.
    left_out: columns of the source that were excluded.  null_lists: that became empty ones, on both sides.
    is_append: the files were added to a table that was there.  location: of the table.
    repeated_rows: of an append, that were there already with equal values, and now are there once more.
    notes: what a reader of the table should know.
    """

    table: str
    location: str
    is_append: bool
    layout: Layout
    num_buckets: int
    columns: Mapping[str, tuple[str, Level]]
    rows: int
    requests: int
    files: int
    bytes: int
    source_bytes: int
    checksum: ContentChecksum
    compared_with: str
    changes: tuple[str, ...]
    left_out: tuple[str, ...]
    null_lists: int
    notes: tuple[str, ...]
    repeated_rows: int
    seconds: float


def convert_table(
    source: Table | str | Path | Sequence[str | Path] | RowSource,
    catalog: Catalog,
    identifier: str,
    mapping: ColumnMapping,
    *,
    layout: Layout | None = None,
    num_buckets: int | None = None,
    location: str | None = None,
    append: bool = False,
    seed: int = 0,
    progress: Callable[[ConvertProgress], None] | None = None,
    spill_dir: str | Path | None = None,
    engine: str | Engine | None = None,
) -> ConvertReport:
    """Make the table `identifier` of `layout` from an Iceberg table of any catalog or Parquet files, or append them.

    source: a pyiceberg Table, a folder, a file, several files, or what `open_source` made of them.
    layout: BY_REQUEST if None.
    num_buckets: by default what `choose_num_buckets` says.  location: of the new table.  seed: of a SHUFFLED one.
    append: the table is there, and the rows are added to it in one commit, with its columns, layout and buckets. What
    is appended twice is there twice, and counted (`repeated_rows`).
    spill_dir: for temporary files, which take the deduplicated rows.
    engine: where its files are read and the new ones written: "inline", "processes:N"; see `reqdedup.distributed`. The
        table is the same, bit for bit. One of the SHUFFLED layout is written by this process alone.
    Raises ValueError for columns that are missing, of a type without a place, or of another level than thought (with
    the request that shows it), for nulls in keys, for times of history events in another unit than said, and where the
    new table is there already; with append if columns differ from the table's, or the URL rules of a table of ours.
    ConflictError if another writer changed the table in a way that the rows cannot be put on top of. Then no table is
    new or changed, but for the vocabulary, which may have new keys.
    """
    started = time.monotonic()
    check_location(identifier, location)
    rows = source if isinstance(source, RowSource) else open_source(source, mapping)

    def report(phase: str, done: int, total: int) -> None:
        if progress is not None:
            progress(ConvertProgress(phase, done, total))

    notes = [*rows.notes]
    url_rules = url_rules_of(rows.table) if rows.table is not None else ""
    if rows.vocabularies and not _has_their_items(rows, catalog):
        names = ", ".join(dict.fromkeys(rows.vocabularies.values()))
        notes.append(
            f"{', '.join(rows.vocabularies)}: ids whose keys are in {names} of the source's catalog, which this one "
            "lacks: kept as plain numbers"
        )
        rows.vocabularies = {}
    if append:
        if location is not None:
            raise ValueError(
                f"{identifier}: an append goes where the table is, found location={location!r}; leave it out"
            )
        table = open_for_append(catalog, identifier, layout, num_buckets)
        if rows.table is not None and LAYOUT_PROPERTY in rows.table.properties:
            check_same_url_rules(table, url_rules)
        elif url_rules_of(table):
            notes.append(f"its items are told apart by URL rules {url_rules_of(table)}; nothing says so of these rows")
        schema = table_schema(table)
        columns = in_table_order(
            plan_columns(rows, mapping, *known_columns(rows, mapping, schema), schema[ITEM_ID].vocabulary),
            *(table, schema, rows),
        )
        chosen = _engine_of(rows, table_layout(table), engine)
        converter = _converter(rows, columns, mapping, report, chosen)
    else:
        _check_new(catalog, identifier)
        found = find_levels(rows, mapping, progress=report, temp_dir=spill_dir)
        vocabulary = "" if mapping.hash_items else items_identifier(identifier)
        columns = plan_columns(rows, mapping, found.levels, found.widths, found.sequences, vocabulary)
        notes += [*found.notes, *_notes_on_models(columns)]
        layout = layout or Layout.BY_REQUEST
        chosen = _engine_of(rows, layout, engine)
        converter = _converter(rows, columns, mapping, report, chosen)
        if num_buckets is None:
            requests = converter.sessions.count if converter.sessions is not None else found.num_requests
            repeats = max(rows.num_rows / max(requests, 1), 1.0) if layout is not Layout.SHUFFLED else 1.0
            num_buckets = choose_num_buckets(
                stored_bytes=round(rows.num_bytes / repeats), rows=rows.num_rows
            ).num_buckets
        schema = engagement_schema(columns)
        table = _new_table(catalog, identifier, schema, layout, num_buckets, location)
    if any(target.conversion is Conversion.ITEM for target in columns):
        keys = item_keys(rows, columns) if chosen.is_here else keys_by(chosen, converter, mapping, report)
        keys.settle(Vocabulary(catalog, schema[ITEM_ID].vocabulary))
        converter.items = keys
    try:
        written = write_converted(
            *(table, converter, rows.num_rows, report),
            engine=chosen,
            replace=not append,
            seed=seed,
            spill_dir=spill_dir,
            properties={URL_RULES_PROPERTY: url_rules} if url_rules else None,
        )
    except RequestValuesError as error:
        raise in_source(error, converter) from error
    if mapping.time_unit:
        notes += times_note(mapping, table, written.data_files)
    changes = changes_of(rows, columns, mapping)
    if converter.null_lists:
        changes.append(f"{counted(converter.null_lists, 'null list')}: empty, since a sequence cannot be null")
    if shared := converter.owners.num_shared():
        notes.append(
            f"{counted(shared, 'request id')} of more than one user: each user's part is a request of its own. If it "
            "is one request, another column names its user (--user)"
        )
    if isinstance(rows, CandidateSource) and rows.num_empty:
        notes.append(f"{counted(rows.num_empty, 'row')} without a candidate: no row in the table")
    return ConvertReport(
        table=identifier,
        location=mask(table.location()),
        is_append=append,
        layout=table_layout(table),
        num_buckets=table_buckets(table) or 0,
        columns={target.column.name: (", ".join(target.sources), target.column.level) for target in columns},
        rows=converter.num_rows,
        requests=written.num_requests,
        files=len(written.data_files),
        bytes=sum(file.file_size_in_bytes for file in written.data_files),
        source_bytes=rows.num_bytes,
        checksum=converter.checksum.so_far,
        compared_with=converter.compared_with,
        changes=tuple(changes),
        left_out=tuple(dict.fromkeys(mapping.exclude)),
        null_lists=converter.null_lists,
        notes=tuple(notes),
        repeated_rows=written.num_repeated,
        seconds=time.monotonic() - started,
    )


def open_source(source: Table | str | Path | Sequence[str | Path], mapping: ColumnMapping) -> RowSource:
    """The source's rows: its own, or if the item is in a list, one for each of its elements.

    Raises ValueError, and FileNotFoundError, for a source or columns that `convert_table` would not take; it makes
    nothing.
    """
    rows = RowSource(source)
    item = rows.leaves.get(mapping.item)
    if item is not None and item.shape is Shape.LIST:
        beside = [name for name in mapping.labels if name in rows.leaves and rows.leaves[name].shape is Shape.LIST]
        rows = CandidateSource(source, mapping.item, [*beside, *mapping.candidates])
    elif mapping.candidates:
        raise ValueError(
            f"{rows.name}: candidates are lists beside an item in a list, found no list {mapping.item}; leave them "
            "out, or name the list of items (--item)"
        )
    check_mapping(rows, mapping)
    return rows


def _has_their_items(rows: RowSource, catalog: Catalog) -> bool:
    """Whether the vocabularies of the source's ids are tables of this catalog too, and not others of these names."""
    assert rows.table is not None
    theirs = rows.table.catalog
    try:
        return all(
            catalog.load_table(name).metadata.table_uuid == theirs.load_table(name).metadata.table_uuid
            for name in rows.vocabularies.values()
        )
    except (NoSuchTableError, NoSuchNamespaceError):
        return False


def _engine_of(rows: RowSource, layout: Layout, engine: str | Engine | None) -> Engine:
    if layout is not Layout.SHUFFLED:
        work: Any = rows
        num_tasks, num_bytes = len(rows.parts()), rows.num_bytes
        return engine_for(engine, work, num_tasks=num_tasks, num_bytes=num_bytes, pays_from=SHUFFLE_PAYS_FROM)
    asked = named_engine(engine) if isinstance(engine, str) else engine
    if asked is not None and not asked.is_here:
        raise ValueError(
            f"{rows.name}: another layout than SHUFFLED, whose random order goes over all rows, required by engine "
            f"{asked.name}; leave the engine out"
        )
    return engine_for("inline", None, num_tasks=1)


def _converter(
    rows: RowSource,
    columns: Sequence[TargetColumn],
    mapping: ColumnMapping,
    report: Callable[[str, int, int], None],
    engine: Engine,
) -> Converter:
    converter = Converter(rows, columns, time_unit=mapping.time_unit, history_time_unit=mapping.history_time_unit)
    if mapping.session_gap_s is not None:
        if engine.is_here:
            converter.sessions = find_sessions(rows, mapping, converter.times_us, report)
        else:
            converter.sessions = sessions_by(engine, converter, mapping, report)
    return converter


def _notes_on_models(columns: Sequence[TargetColumn]) -> list[str]:
    """What a model would miss of a table with these columns."""
    if any(target.column.name == HISTORY_ITEM_ID for target in columns):
        return []
    ids = [t.sources[0] for t in columns if t.column.kind is Kind.SEQUENCE and t.column.dtype in ("int32", "int64")]
    if not ids:
        return [f"models need a sequence of item ids, {HISTORY_ITEM_ID}; these columns have none"]
    likely = next((name for name in ids if "item" in name.lower()), ids[0])
    return [
        f"models need {HISTORY_ITEM_ID}, the item ids of the user's history; if {likely} has them, convert with "
        f"--rename {likely}={HISTORY_ITEM_ID}"
    ]


def _check_new(catalog: Catalog, identifier: str) -> Table | None:
    """The table of this name if it is one of ours without rows. Raises ValueError if the name is taken otherwise."""
    check_free_name(identifier)
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        return None
    if LAYOUT_PROPERTY not in table.properties or table.metadata.snapshots:
        raise ValueError(
            f"{identifier}: a new table required, found one; append to it (--append), choose another name, or drop it "
            "first"
        )
    return table


def _new_table(
    catalog: Catalog, identifier: str, schema: EngagementSchema, layout: Layout, num_buckets: int, location: str | None
) -> Table:
    """The table for the rows, which the commit of its rows makes.

    An empty one of the same form is used as it is: a user made it. It is never dropped, since another process may be
    writing into it.
    """
    table = _check_new(catalog, identifier)
    if table is None:
        check_new_form(identifier, num_buckets)
        return stage_table(catalog, identifier, engagement_form(schema, layout, num_buckets), location=location)
    differences = form_differences(table, schema, layout, num_buckets)
    if location is not None and location.rstrip("/") != table.location().rstrip("/"):
        differences.append(f"location {location} required, found {mask(table.location())}")
    if differences:
        raise ValueError(
            f"{identifier}: an empty table in the form of the rows required, found one in another "
            f"({'; '.join(differences)}). Nothing was changed: choose another name, or drop it first"
        )
    return table
