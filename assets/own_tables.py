"""Jobs on tables of your own: what the command line does, from the launchpad. Nothing changes unless `apply` is set.

A run's report is in the metadata of its step, the text that the command line prints among it.
"""

import tempfile
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from assets.engine import OnEngine
from assets.metadata import GLANCE
from assets.pictures import facts, table
from assets.resources import tag_process
from assets.stages import TABLE_POOL
from reqdedup import storage
from reqdedup.audit import render
from reqdedup.cli.commands.conversion import format_conversion
from reqdedup.cli.commands.health import format_health
from reqdedup.convert import ColumnMapping
from reqdedup.display import format_bytes
from reqdedup.distributed import counted
from reqdedup.environment import LakePlace, find_lake
from reqdedup.lake import Lake
from reqdedup.masking import mask
from reqdedup.schema import Level
from reqdedup.storage import Layout

APPLY = Field(default=False, description="Do it. Without it the report says what would be done, and nothing changes.")
TABLE = Field(description="An Iceberg table of the lake, as namespace.name.")


class TargetLayout(StrEnum):
    """Physical forms of a table that models are trained on."""

    by_request = "by_request"
    sorted_large_pages = "sorted_large_pages"
    sorted = "sorted"


class TimeUnit(StrEnum):
    """Of a time that is a whole number since 1970."""

    s = "s"
    ms = "ms"
    us = "us"
    ns = "ns"


class ColumnLevel(StrEnum):
    """What a column is equal on: all rows of a request, or no more than one."""

    request = "request"
    item = "item"


class OwnLake(OnEngine):
    """The lake whose tables are worked on; a deployment says which it is if the launchpad does not."""

    catalog: str = Field(
        default="", description="Name of a catalog in pyiceberg's configuration. Empty: the deployment's own lake."
    )

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        tag_process(context)

    def default_place(self) -> LakePlace:
        return find_lake()

    def open(self) -> Lake:
        return Lake(find_lake(catalog=self.catalog) if self.catalog else self.default_place())


class AuditConfig(dg.Config):
    source: str = Field(description="A folder or file of Parquet, or an Iceberg table of the lake as namespace.name.")
    request_key: list[str] = Field(description="Columns that are equal on all rows of a request.")
    user_key: list[str] = Field(default=[], description="Columns that say whose request it is.")
    item_key: list[str] = Field(default=[], description="Columns that order the rows of a request.")
    sample_mb: int = Field(default=2048, ge=1, description="Size of the sample with every value laid down, in MB.")
    num_buckets: int | None = Field(default=None, ge=1, description="Of the layouts. Empty: as many as convert makes.")


class ConvertConfig(dg.Config):
    source: str = Field(description="A folder or file of Parquet, or an Iceberg table of the lake as namespace.name.")
    table: str = Field(description="The new table, or with append the one that is there, as namespace.name.")
    user: str = Field(description="Column of the user.")
    request: list[str] = Field(description="Columns that together tell requests apart.")
    item: str = Field(description="Column of the item.")
    time: str = Field(description="Column of the request's time.")
    time_unit: TimeUnit | None = Field(default=None, description="Of a time that is a whole number.")
    history_time_unit: TimeUnit | None = Field(default=None, description="Of numbers that become history_ts.")
    labels: list[str] = Field(default=[], description="Columns that are to be predicted.")
    levels: dict[str, ColumnLevel] = Field(default={}, description="Levels of columns where they are known.")
    rename: dict[str, str] = Field(default={}, description="Name in the new table, by column.")
    exclude: list[str] = Field(default=[], description="Columns that are left out.")
    layout: TargetLayout = Field(default=TargetLayout.by_request, description="Physical form of the new table.")
    num_buckets: int | None = Field(default=None, ge=1, description="Partitions by user. Empty: what fits the size.")
    append: bool = Field(default=False, description="Add the rows to a table that is there, in its own form.")
    apply: bool = Field(
        default=False,
        description="Make the table. Without it all is converted and compared in a temporary folder, and thrown away.",
    )

    def mapping(self) -> ColumnMapping:
        return ColumnMapping(
            user=self.user,
            request=self.request,
            item=self.item,
            time=self.time,
            time_unit=self.time_unit,
            history_time_unit=self.history_time_unit,
            labels=self.labels,
            levels={name: Level(level.value) for name, level in self.levels.items()},
            rename=self.rename,
            exclude=self.exclude,
        )


class HealthConfig(dg.Config):
    table: str = TABLE
    count_users: bool = Field(default=True, description="Open the data files to count users.")
    check_requests: bool = Field(default=False, description="Read all request-level columns: is each request one?")


class CompactConfig(dg.Config):
    table: str = TABLE
    buckets: list[int] = Field(default=[], description="Only these; empty: all.")
    apply: bool = APPLY


class ExpireConfig(dg.Config):
    table: str = TABLE
    older_than_days: float = Field(default=5.0, ge=0, description="Age of the snapshots that go, in days.")
    keep_last: int = Field(
        default=1, ge=1, description="Newest snapshots of every branch that stay whatever their age."
    )
    apply: bool = APPLY


class SweepConfig(dg.Config):
    table: str = TABLE
    older_than_days: float = Field(default=3.0, ge=0, description="In days; longer than any write takes.")
    apply: bool = APPLY


class BackfillConfig(dg.Config):
    """Which namespace's timeline, and whether readers are to see the new version."""

    namespace: str = Field(description="Of the tables raw_events and user_events.")
    since: str = Field(default="", description="First day of arrival to make anew, like 2026-11-01; empty: all.")
    until: str = Field(default="", description="The day after the last; empty: to the watermark.")
    apply: bool = Field(default=False, description="Check the new version and make it what readers see.")


class DeleteUserConfig(dg.Config):
    user_ids: list[int] = Field(default=[], description="Ids as the tables have them.")
    keys: list[str] = Field(default=[], description="Original ids of a log with ids of text.")
    namespaces: list[str] = Field(default=[], description="All tables in them are searched.")
    tables: list[str] = Field(default=[], description="These tables, and what belongs to them.")
    store: str = Field(default="", description="A server's store, as `reqdedup serve` is told it.")
    impressions: str = Field(default="", description="A server's impression log.")
    user_states: str = Field(default="", description="User states that a server starts with.")
    online: str = Field(default="", description="Folder of an online store of sequences.")
    drop_refs: bool = Field(default=False, description="Remove branches and tags that hold the users.")
    erase: bool = Field(default=False, description="Expire all old snapshots at once; their readers fail.")
    apply: bool = APPLY


@dg.op(name="audit_table")
def audit_op(config: AuditConfig, own_lake: OwnLake) -> dg.Output:
    """Reads the table; what every column repeats, what that costs, what to set."""
    is_files = "/" in config.source or Path(config.source).exists()
    found = own_lake.open().audit(
        Path(config.source) if is_files else config.source,
        request_key=config.request_key,
        user_key=config.user_key,
        item_key=config.item_key,
        sample_bytes=config.sample_mb * 2**20,
        num_buckets=config.num_buckets,
    )
    return _output({"verdict": dg.MetadataValue.md("\n\n".join(map(mask, found.verdict)))}, mask(render(found)))


@dg.op(name="convert_table", pool=TABLE_POOL)
def convert_op(config: ConvertConfig, own_lake: OwnLake) -> dg.Output:
    """Converts and compares row for row; the table is there afterwards only with `apply`."""
    lake = own_lake.open()
    is_files = "/" in config.source or Path(config.source).exists()
    source: Any = config.source if is_files else lake.table(config.source).iceberg
    options: dict[str, Any] = {"layout": Layout(config.layout.value), "num_buckets": config.num_buckets}
    if config.apply:
        append = {"append": True, "num_buckets": None, "layout": None} if config.append else {}
        report = lake.convert(source, config.table, config.mapping(), **{**options, **append})
    else:
        with tempfile.TemporaryDirectory(prefix="reqdedup-") as folder:
            report = Lake(find_lake(folder)).convert(source, config.table, config.mapping(), **options)
    glance = facts(
        rows=f"{report.rows:,}",
        requests=f"{report.requests:,}",
        before=format_bytes(report.source_bytes),
        after=format_bytes(report.bytes),
        table=config.table if config.apply else "not made: apply",
    )
    return _output({GLANCE: glance, "bytes": report.bytes, "rows": report.rows}, format_conversion(report))


@dg.op(name="health")
def health_op(config: HealthConfig, own_lake: OwnLake) -> dg.Output:
    """Reads files and manifests; what is out of shape, and what to do about it, most pressing first."""
    found = storage.table_health(
        own_lake.open().table(config.table).iceberg,
        count_users=config.count_users,
        check_requests=config.check_requests,
    )
    choice = storage.choose_num_buckets(stored_bytes=found.bytes, rows=found.rows, users=found.users)
    advice = dg.MetadataValue.md("\n".join(f"- {one}" for one in found.advice or ["nothing to do"]))
    return _output(
        {"to do": advice, "bytes": found.bytes, "files": found.files, "small_files": found.small_files},
        format_health(found, choice if found.num_buckets else None),
    )


@dg.op(name="compact", pool=TABLE_POOL)
def compact_op(config: CompactConfig, own_lake: OwnLake) -> dg.Output:
    """Makes the files that appends left into those of one write, one commit for up to 32 buckets."""
    one = own_lake.open().table(config.table)
    if not config.apply:
        rows = storage.table_health(one.iceberg, count_users=False).buckets.to_pylist()
        chosen = [row for row in rows if not config.buckets or row["partition"] in config.buckets]
        open_ones = [row for row in chosen if not row["is_compact"]]
        return _output(
            {
                GLANCE: facts(
                    would_be_rewritten=f"{len(open_ones):,} of {len(chosen):,}",
                    files=f"{sum(row['files'] for row in open_ones):,}",
                    stored=format_bytes(sum(row["bytes"] for row in open_ones)),
                )
            }
        )
    with counted() as totals:
        report = one.compact(buckets=config.buckets or None)
    glance = facts(
        rewritten=f"{len(report.buckets):,}",
        left_alone=f"{report.left_alone:,}",
        files=f"{report.old_files:,} -> {report.files:,}",
        stored=f"{format_bytes(report.old_bytes)} -> {format_bytes(report.bytes)}",
    )
    return _output({GLANCE: glance, "bytes": report.bytes, "files": report.files, **totals.figures})


@dg.op(name="expire", pool=TABLE_POOL)
def expire_op(config: ExpireConfig, own_lake: OwnLake) -> dg.Output:
    """Forgets old snapshots and frees the files that only they need; features by position are aligned first."""
    one, age = own_lake.open().table(config.table).iceberg, timedelta(days=config.older_than_days)
    report = storage.expire_snapshots(one, older_than=age, keep_last=config.keep_last, dry_run=True)
    if config.apply:
        for side in storage.to_realign(one, report.expired):
            storage.realign(one, side)
        report = storage.expire_snapshots(one, older_than=age, keep_last=config.keep_last)
    glance = facts(
        snapshots=f"{len(report.expired):,} {'gone' if config.apply else 'would go'}",
        kept=f"{report.kept:,}",
        files=f"{sum(report.files.values()):,}",
        freed=format_bytes(report.bytes),
    )
    return _output({GLANCE: glance, "bytes_freed": report.bytes, "snapshots_expired": len(report.expired)})


@dg.op(name="sweep", pool=TABLE_POOL)
def sweep_op(config: SweepConfig, own_lake: OwnLake) -> dg.Output:
    """Removes files that nothing points at, as killed writers leave them."""
    report = storage.sweep_orphans(
        own_lake.open().table(config.table).iceberg,
        older_than=timedelta(days=config.older_than_days),
        dry_run=not config.apply,
    )
    glance = facts(
        orphans=f"{report.files.num_rows:,} {'gone' if config.apply else 'would go'}",
        freed=format_bytes(report.bytes),
        younger=f"{report.young:,}",
        needed=f"{report.kept:,}",
    )
    return _output({GLANCE: glance, "bytes_freed": report.bytes, "orphans": report.files.num_rows})


@dg.op(name="delete_user", pool=TABLE_POOL)
def delete_user_op(config: DeleteUserConfig, own_lake: OwnLake) -> dg.Output:
    """Deletes users from all tables that are named and from what serving keeps; what was not searched is named."""
    with counted() as totals:
        done = own_lake.open().delete_user(
            config.user_ids,
            keys=config.keys,
            namespaces=config.namespaces,
            tables=config.tables,
            store=config.store or None,
            impressions=config.impressions or None,
            user_states=config.user_states or None,
            online=config.online or None,
            apply=config.apply,
            drop_refs=config.drop_refs,
            erase=config.erase,
        )
    rows = [
        {
            "table": one.table,
            "rows": f"{one.rows:,} {'would go' if done.dry_run else 'gone'}",
            "files": f"{one.files:,} of {one.files + one.untouched:,}",
            "held by": ", ".join(one.held_by) or "-",
        }
        for one in done.reports
    ]
    others = [
        {"table": one.place, "rows": f"{one.num_records:,} records", "files": "-", "held by": "-"}
        for one in done.places
    ]
    found = {GLANCE: table([*rows, *others]), "rows": sum(one.rows for one in done.reports)}
    return _output(found | totals.figures, str(done))


@dg.op(name="backfill_sequences", pool=TABLE_POOL)
def backfill_sequences_op(config: BackfillConfig, own_lake: OwnLake) -> dg.Output:
    """Makes the timeline anew, or some days of it, from delivered events, as a version beside what readers see."""
    sequences = own_lake.open().sequences(config.namespace)
    since, until = (date.fromisoformat(day) if day else None for day in (config.since, config.until))
    if since is not None:
        report = sequences.backfill_days(since, until, publish=config.apply)
    elif until is not None:
        raise ValueError(f"backfill_sequences: since required with until, found until {config.until} alone")
    else:
        report = sequences.backfill(publish=config.apply)
    glance = facts(
        version=f"{report.version} {'published' if config.apply else 'staged'}",
        kept=f"{report.counts.num_kept:,} of {report.counts.num_delivered:,}",
        files=f"{report.num_files:,}",
        written=format_bytes(report.num_bytes),
    )
    return _output({GLANCE: glance, "bytes": report.num_bytes, "events": report.counts.num_kept})


def _output(metadata: dict[str, Any], report: str = "") -> dg.Output:
    text = {"report": dg.MetadataValue.md(f"```\n{report}\n```")} if report else {}
    return dg.Output(None, metadata={**metadata, **text})


def _job(name: str, op: Any, description: str) -> dg.JobDefinition:
    @dg.graph(name=f"{name}_steps")
    def steps() -> None:
        op()

    return steps.to_job(name=name, description=description)


JOBS = [
    _job("audit_table", audit_op, "What a table of yours would save, and what to set. Changes nothing."),
    _job("convert_table", convert_op, "A table of yours in one of our layouts, compared row for row. Dry by default."),
    _job("health", health_op, "Files, skew and users of a table, and what to do. Changes nothing."),
    _job("compact", compact_op, "The files of many appends become those of one write. Dry by default."),
    _job("expire", expire_op, "Old snapshots go, with the files that only they need. Dry by default."),
    _job("sweep", sweep_op, "Files that nothing points at go, as killed writers leave them. Dry by default."),
    _job("backfill_sequences", backfill_sequences_op, "The timeline of events anew, staged; published if `apply`."),
    _job("delete_user", delete_user_op, "Users leave tables and what serving keeps of them. Dry by default."),
]
