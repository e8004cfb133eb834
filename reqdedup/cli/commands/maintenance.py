"""`reqdedup compact`, `expire`, `sweep` and `rebucket`: what keeps a table in shape."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from reqdedup.cli.catalog import load_table, load_tables, open_catalog
from reqdedup.cli.options import (
    AGE,
    BUCKETS,
    POSITIVE,
    Checked,
    Options,
    apply_option,
    engine_option,
    option,
    spill_option,
    subcommand,
    table_option,
    tables_option,
)
from reqdedup.cli.output import (
    ProgressLine,
    counted,
    format_bytes,
    format_table,
    interruptible,
    print_json,
    say,
)
from reqdedup.cli.values import whole

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from reqdedup.storage import CompactReport, ExpireReport, SweepReport

SHOWN_FILES = 10


@subcommand(
    help="make the files that appends left into those of one write",
    description="Rewrite every bucket (or day) whose files are several and small, or out of order. Rows are verified "
    "by checksum; the old files stay readable in their snapshot until `reqdedup expire`. One commit for up to 32 "
    "buckets: a run that was ended goes on where it was. The table items becomes one file.",
    examples=[
        "reqdedup compact --table movies.engagements_by_request",
        "reqdedup compact --table a.b --engine processes:4",
    ],
)
@tables_option()
@option("--bucket", type=Checked(whole, least=0), multiple=True, metavar="N", help="only this one; repeat it for more")
@option("--one-commit", is_flag=True, help="one for all buckets instead of one for up to 32")
@option("--force", is_flag=True, help="those too that need it not")
@spill_option()
@engine_option()
def compact(arguments: Options) -> int:
    """Compact the named tables."""
    from reqdedup import storage
    from reqdedup.storage.iceberg.vocabulary import is_vocabulary

    reports: dict[str, CompactReport] = {}
    parts: dict[str, str] = {}
    figures: dict[str, dict[str, Any]] = {}
    for table in load_tables(open_catalog(arguments), arguments.table):
        name = ".".join(table.name())
        parts[name] = "table" if is_vocabulary(table) else _part(table)
        known = {snapshot.snapshot_id for snapshot in table.metadata.snapshots}
        kept = partial(_kept_of_compact, table, known, list(reports), parts[name])
        with ProgressLine() as progress, interruptible(kept):
            reports[name] = storage.compact(
                table,
                arguments.bucket or None,
                one_commit=arguments.one_commit,
                force=arguments.force,
                progress=partial(_show_progress, progress, name),
                spill_dir=arguments.spill_dir,
                engine=arguments.engine,
            )
        figures[name] = progress.totals.figures
    if arguments.json:
        print_json([{"table": name, **vars(report), **figures[name]} for name, report in reports.items()])
        return 0
    for name, report in reports.items():
        if not report.buckets:
            say(f"{name}: nothing to do, {report.left_alone:,} of {counted(report.left_alone, parts[name])} compact")
            continue
        say(
            f"{name}: {counted(len(report.buckets), parts[name])} rewritten, {report.left_alone:,} left alone; "
            f"{report.rows:,} rows, {counted(report.old_files, 'file')} ({format_bytes(report.old_bytes)}) became "
            f"{counted(report.files, 'file')} ({format_bytes(report.bytes)}). The old ones go with `reqdedup expire`"
        )
    return 0


@subcommand(
    help="forget old snapshots and free the files that only they need",
    description="Old snapshots go, with every file that no other needs; heads of branches and tags stay. Readers of an "
    "expired snapshot fail. Features by position that were made from one are first aligned with the present requests.",
    examples=["reqdedup expire --table a.b --older-than 7d", "reqdedup expire --table a.b --older-than 7d --apply"],
)
@tables_option()
@option("--older-than", type=AGE, metavar="AGE", help="age of what goes: 5d (default), 36h, 90m")
@option(
    "--keep-last", type=POSITIVE, default=1, metavar="N", help="newest of every branch that stay whatever their age"
)
@apply_option()
def expire(arguments: Options) -> int:
    """Expire snapshots of the named tables, or say which would go."""
    from reqdedup.storage import expire_snapshots, realign, to_realign
    from reqdedup.storage.maintenance.expire import DEFAULT_AGE

    older_than = DEFAULT_AGE if arguments.older_than is None else arguments.older_than
    reports: list[tuple[str, ExpireReport, list[str]]] = []
    for table in load_tables(open_catalog(arguments), arguments.table):
        report = expire_snapshots(table, older_than=older_than, keep_last=arguments.keep_last, dry_run=True)
        sides = to_realign(table, report.expired)
        if arguments.apply:
            for side in sides:
                realign(table, side)
            report = expire_snapshots(table, older_than=older_than, keep_last=arguments.keep_last)
        reports.append((".".join(table.name()), report, [".".join(side.name()) for side in sides]))
    if arguments.json:
        print_json([{"table": name, **vars(report), "realigned": aligned} for name, report, aligned in reports])
        return 0
    for name, report, aligned in reports:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.files.items()))
        would = "would go" if report.dry_run else "gone"
        say(
            f"{name}: {counted(len(report.expired), 'snapshot')} {would}, {report.kept:,} "
            f"{'stays' if report.kept == 1 else 'stay'}; {counted(sum(report.files.values()), 'file')}"
            f"{f' ({kinds})' if kinds else ''}, {format_bytes(report.bytes)}"
        )
        if report.outside:
            say(f"  {counted(report.outside, 'file')} outside the table's folder left where they are")
        for one in aligned:
            say(f"  {one} {'would be' if report.dry_run else 'was'} aligned with the present requests first")
    _say_dry_run(report.dry_run for _, report, _ in reports)
    return 0


@subcommand(
    help="remove files that nothing points at, as killed writers leave them",
    description="Files under the table's location that no snapshot, branch, tag or metadata needs. Younger ones than "
    "--older-than may belong to a write that has not committed yet, and stay.",
    examples=["reqdedup sweep --table a.b", "reqdedup sweep --table a.b --older-than 3d --apply"],
)
@tables_option()
@option("--older-than", type=AGE, metavar="AGE", help="longer than any write takes: 3d (default), 36h, 90m")
@option("--dropped", multiple=True, metavar="UUID", help="id of a table that was in this folder before")
@apply_option()
def sweep(arguments: Options) -> int:
    """Remove orphan files of the named tables, or say which would go."""
    from reqdedup.storage import sweep_orphans
    from reqdedup.storage.maintenance.sweep import DEFAULT_GUARD

    older_than = DEFAULT_GUARD if arguments.older_than is None else arguments.older_than
    reports: dict[str, SweepReport] = {}
    for table in load_tables(open_catalog(arguments), arguments.table):
        reports[".".join(table.name())] = sweep_orphans(
            table, older_than=older_than, dry_run=not arguments.apply, dropped=arguments.dropped
        )
    if arguments.json:
        print_json([{"table": name, **vars(report)} for name, report in reports.items()])
        return 0
    for name, report in reports.items():
        say(
            f"{name}: {counted(report.files.num_rows, 'orphan')} {'would go' if report.dry_run else 'gone'}, "
            f"{format_bytes(report.bytes)}; {report.young:,} younger ({format_bytes(report.young_bytes)}) and "
            f"{report.unknown:,} of unknown kind stay; the table needs {report.kept:,}"
        )
        rows = report.files.slice(0, SHOWN_FILES).to_pylist()
        if rows:
            cells = [[row["kind"], format_bytes(row["bytes"]), row["path"]] for row in rows]
            say(format_table(["kind", "bytes", "path"], cells))
        if report.files.num_rows > len(rows):
            say(f"  ... {report.files.num_rows - len(rows):,} more; --json has all")
    _say_dry_run(report.dry_run for report in reports.values())
    return 0


@subcommand(
    help="another number of buckets for a table",
    description="Write all rows into another number of buckets, in one commit. Tables that are joined need counts that "
    "divide each other. docs/buckets.md says how many.",
    examples=["reqdedup rebucket --table movies.engagements_by_request --buckets 64"],
)
@table_option()
@option("--buckets", type=BUCKETS, required=True, metavar="N", help="the new number")
@spill_option()
@engine_option()
def rebucket(arguments: Options) -> int:
    """Change the bucket count of a table, and name the feature tables that it no longer fits."""
    from reqdedup import storage

    table = load_table(open_catalog(arguments), arguments.table)
    with ProgressLine() as progress:
        report = storage.rebucket(
            table,
            arguments.buckets,
            progress=lambda done, total: progress("rebucket", done, total),
            spill_dir=arguments.spill_dir,
            engine=arguments.engine,
        )
    unfit = _features_of_other_buckets(table, report.num_buckets)
    if arguments.json:
        print_json({"table": arguments.table, **vars(report), "feature_tables": unfit, **progress.totals.figures})
        return 0
    say(
        f"{arguments.table}: {counted(report.old_buckets, 'bucket')} became {report.num_buckets}; "
        f"{report.rows:,} rows in {counted(report.files, 'file')}, {format_bytes(report.bytes)}, {report.seconds:.1f} s"
    )
    for name, advice in unfit.items():
        say(f"  {name}: {advice}")
    return 0


COMMANDS = (compact, expire, sweep, rebucket)


def _features_of_other_buckets(table: Table, num_buckets: int) -> dict[str, str]:
    """Feature tables of this table that have another bucket count, and what to do."""
    from reqdedup.storage import feature_tables_of
    from reqdedup.storage.read.feature_table import feature_buckets, is_by_position, is_feature_table

    if is_feature_table(table):
        return {}
    return {
        ".".join(side.name()): (
            "by position, with other buckets: create it again and compute its features"
            if is_by_position(side)
            else f"has {feature_buckets(side)} buckets; rebucket it too before the next backfill"
        )
        for side in feature_tables_of(table)
        if feature_buckets(side) != num_buckets
    }


def _part(table: Table) -> str:
    from reqdedup.storage import table_layout

    return "bucket" if table_layout(table).is_bucketed else "day"


def _say_dry_run(is_dry_run: Iterable[bool]) -> None:
    if any(is_dry_run):
        say("nothing was changed: --apply does it")


def _show_progress(line: ProgressLine, name: str, done: int, total: int) -> None:
    line(f"compact {name}", done, total)


def _kept_of_compact(table: Table, known: set[int], done: list[str], part: str) -> str:
    """What an interrupt left: tables before this one are done, and of this one what it has committed since.

    known: ids of its snapshots before.
    """
    from reqdedup.storage.iceberg.same_requests import OPERATION

    name = ".".join(table.name())
    table.refresh()
    new = [one for one in table.metadata.snapshots if one.snapshot_id not in known]
    commits = sum(one.summary is not None and one.summary.get(OPERATION) == "compact" for one in new)
    kept = f"{name}: {counted(commits, 'commit')} landed and stay, of up to 32 {part}s each; all else"
    finished = "".join(f"{one} is done; " for one in done)
    return f"{finished}{kept if commits else name} is as it was. The same command goes on there"
