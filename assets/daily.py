"""A log that arrives day by day: each day's new files are appended to one table, in the form that training reads.

    logs/2026-11-03/*.csv -> partition 2026-11-03 -> one append -> daily_engagements

The table knows which files it holds, in the commit that appended them: making a day again, from a backfill or after a
failure, appends what is new and nothing twice. Histories are those that the log carries, or are made of the day's own
rows; a request has all its rows in one day's folder.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from assets.metadata import write_metadata
from assets.resources import Warehouse, progress_log
from assets.run_recipe import RunRecipe
from assets.stages import LOG, STORAGE, TABLE_POOL, stage
from reqdedup import storage
from reqdedup.ingest import append_log
from reqdedup.logs import LogReader, read_log, synthesize, synthetic_schema
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout
from reqdedup.storage.write.rejects import rejects_identifier
from warehouse import open_namespace

NAME = "daily_engagements"
FRESH_BY = "0 9 * * *"
"""When the day before is to be there, UTC; the UI shows the table as overdue if it is not."""
FILES_OF = "reqdedup.files-of."
"""Table property, with the day behind it: digests of that day's files that the table holds, by name, as JSON."""


def days_of(first_day: date) -> dg.DailyPartitionsDefinition:
    return dg.DailyPartitionsDefinition(start_date=datetime(first_day.year, first_day.month, first_day.day, tzinfo=UTC))


def day_folders(logs: str) -> dict[str, Path]:
    """The folders of a log that are named for a day, by day."""
    folders = sorted(Path(logs).iterdir()) if logs and Path(logs).is_dir() else []
    return {folder.name: folder for folder in folders if folder.is_dir() and _is_day(folder.name)}


def files_of_day(folder: Path) -> list[Path]:
    """What a day has delivered; a name with a dot or an underscore before it is of a file that is not complete."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith((".", "_"))]


def daily_asset(days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """The table as an asset of these days. It shares the pool of the jobs that keep it in shape, so that an append and
    a compaction never run at once, whatever the instance allows."""

    @stage(
        **STORAGE,
        name=NAME,
        partitions_def=days,
        tags=LOG,
        kinds={"iceberg"},
        pool=TABLE_POOL,
        freshness_policy=dg.FreshnessPolicy.cron(deadline_cron=FRESH_BY, lower_bound_delta=timedelta(hours=9)),
    )
    def daily_engagements(
        context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe
    ) -> dg.MaterializeResult:
        """The log day by day, in the form that training reads: each day's new files are appended in one commit.

        Without a log of your own a synthetic one is made for each day. Look at: files and rows of the day, rejected
        rows, and whether the table's health asks for a compaction.
        """
        day = context.partition_key
        if not run_recipe.logs:
            return _synthetic_day(context, store, run_recipe, day)
        folder = day_folders(run_recipe.logs).get(day)
        if folder is None:
            raise ValueError(
                f"{NAME}: a folder {Path(run_recipe.logs) / day} with the day's files required, found none"
            )
        digests = {path.name: _digest(path) for path in files_of_day(folder)}
        held = _held(store, day)
        changed = [name for name in held if name in digests and digests[name] != held[name]]
        if changed:
            raise ValueError(
                f"{NAME}: files of {day} as they were appended required, found {', '.join(changed)} changed; put new "
                "rows into files of their own"
            )
        new = [folder / name for name in digests if name not in held]
        if not new:
            context.log.info(f"{day}: nothing new in {len(digests):,} files")
            return store.result(NAME, day=day, new_files=0, new_rows=0)
        with tempfile.TemporaryDirectory(prefix="reqdedup-") as links:
            for path in new:
                (Path(links) / path.name).symlink_to(path.resolve())
            log = read_log(links, max_history=run_recipe.get().max_history, **run_recipe.read_options())
            report = _append(context, store, run_recipe, log.schema, log, day, {**held, **digests})
            _add_rejects(store, log.rejects, day)
        for reason, count in log.counts.rejected.items():
            context.log.warning(f"{day}: {count:,} rows rejected: {reason}")
        return store.result(
            NAME,
            day=day,
            new_files=len(new),
            new_rows=report.rows,
            rejected_rows=sum(log.counts.rejected.values()),
            merged_rows=log.counts.rows_merged,
            **_of_day(report),
        )

    return daily_engagements


def _append(
    context: dg.AssetExecutionContext,
    store: Warehouse,
    run_recipe: RunRecipe,
    schema: EngagementSchema,
    batches: Any,
    day: str,
    files: dict[str, str],
) -> storage.WriteReport:
    catalog = store.catalog()
    open_namespace(catalog, store.resolved_namespace)
    table = storage.create_table(
        catalog, store.identifier(NAME), schema, Layout.BY_REQUEST, num_buckets=run_recipe.get().num_buckets
    )
    properties = {FILES_OF + day: json.dumps(files, sort_keys=True)}
    if isinstance(batches, LogReader):
        return append_log(table, batches, progress=progress_log(context), properties=properties)
    return storage.write(table, batches, mode="append", progress=progress_log(context), properties=properties)


def _synthetic_day(
    context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe, day: str
) -> dg.MaterializeResult:
    """A log of one day: the same users and items every day, requests of its own."""
    if _held(store, day):
        return store.result(NAME, day=day, new_files=0, new_rows=0)
    number = date.fromisoformat(day).toordinal()
    end = datetime.combine(date.fromisoformat(day) + timedelta(days=1), datetime.min.time(), UTC)
    config = replace(run_recipe.get().log, end_ts=end, num_days=1)
    report = _append(
        context, store, run_recipe, synthetic_schema(config), _numbered(synthesize(config), number), day, {"-": "-"}
    )
    return store.result(NAME, day=day, new_files=1, new_rows=report.rows, rejected_rows=0, **_of_day(report))


def _numbered(batches: Iterator[pa.RecordBatch], number: int) -> Iterator[pa.RecordBatch]:
    """With ids of requests that no other day has."""
    for batch in batches:
        ids = pc.add(batch["request_id"], pa.scalar(number << 32, pa.int64()))
        yield batch.set_column(batch.schema.get_field_index("request_id"), batch.schema.field("request_id"), ids)


def _of_day(report: storage.WriteReport) -> dict[str, Any]:
    """Of what a write did, that which speaks of the day and not of the table."""
    kept = ("at a glance", "requests", "users", "fan_out", "seconds")
    return {name: value for name, value in write_metadata(report).items() if name in kept}


def _held(store: Warehouse, day: str) -> dict[str, str]:
    """Digests by name of the day's files that the table holds."""
    table = _table(store.catalog(), store.identifier(NAME))
    return json.loads(table.properties.get(FILES_OF + day, "{}")) if table is not None else {}


def _table(catalog: Catalog, identifier: str) -> Table | None:
    return catalog.load_table(identifier) if catalog.table_exists(identifier) else None


def _add_rejects(store: Warehouse, rejects: pa.Table, day: str) -> None:
    """Beside those of other days; after the rows, so that a run that ends between them has no rejects without rows."""
    catalog, identifier = store.catalog(), store.identifier(NAME)
    name = rejects_identifier(identifier)
    table = _table(catalog, name)
    named = rejects.set_column(
        rejects.schema.get_field_index("file"),
        "file",
        pc.binary_join_element_wise(pa.scalar(f"{day}/"), rejects["file"].cast(pa.string()), ""),
    )
    rows = [named]
    if table is not None:
        before = table.scan().to_arrow()
        rows.insert(0, before.filter(pc.equal(before["table_name"], identifier)).drop_columns(["table_name"]))
    storage.write_rejects(catalog, name, pa.concat_tables(rows, promote_options="permissive"), of=identifier)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_day(name: str) -> bool:
    try:
        return date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False
