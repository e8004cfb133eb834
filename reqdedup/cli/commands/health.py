"""`reqdedup health`: files, small files, skew and users of a table, and what to do about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reqdedup.cli.catalog import load_tables, open_catalog
from reqdedup.cli.options import Options, option, subcommand, tables_option
from reqdedup.cli.output import counted, format_bytes, format_table, plain, print_json, say

if TYPE_CHECKING:
    from reqdedup.storage import BucketChoice, TableHealth

SHOWN_BUCKETS = 20


@subcommand(
    help="files, small files and skew of tables, and what to do about them",
    description="Per bucket (or day): files, small ones, rows, bytes, users, the largest user; the bucket count that "
    "fits the table's size; and what to do, most pressing first. It changes nothing. With --requests it fails if rows "
    "of one request differ in a request-level column. See docs/maintenance.md.",
    examples=[
        "reqdedup health --table movies.engagements_by_request",
        "reqdedup health --table a.b --no-users --json",
        "reqdedup health --table a.b --requests",
    ],
)
@tables_option()
@option("--no-users", is_flag=True, help="open no data file: leave users out")
@option("--requests", is_flag=True, help="read all request-level columns: does every request have one value in each?")
def health(arguments: Options) -> int:
    """Print the health of the named tables."""
    from reqdedup.storage import choose_num_buckets, table_health

    reports = []
    for table in load_tables(open_catalog(arguments), arguments.table):
        found = table_health(table, count_users=not arguments.no_users, check_requests=arguments.requests)
        choice = choose_num_buckets(stored_bytes=found.bytes, rows=found.rows, users=found.users)
        reports.append((found, choice if found.num_buckets else None))
    if arguments.json:
        print_json([{**plain(found), "fitting_buckets": plain(choice)} for found, choice in reports])
    else:
        say("\n\n".join(format_health(found, choice) for found, choice in reports))
    return 0 if all(found.requests_agree is None or found.requests_agree.ok for found, _ in reports) else 1


COMMANDS = (health,)


def format_health(health: TableHealth, choice: BucketChoice | None) -> str:
    """The figures of the table, those of its buckets (the worst where there are many), then what to do."""
    users = "" if health.users is None else f", {counted(health.users, 'user')}"
    lines = [
        f"{health.table} ({health.layout.value}): {counted(health.rows, 'row')}{users}, {format_bytes(health.bytes)} "
        f"in {counted(health.files, 'file')}, {health.small_files:,} small; {counted(health.snapshots, 'snapshot')}, "
        f"{counted(health.manifests, 'manifest')}"
    ]
    if health.num_buckets and choice is not None:
        skew = "" if health.skew is None else f", the largest {health.skew:.1f} times the mean"
        lines.append(
            f"  {counted(health.num_buckets, 'bucket')}{skew}; for this size {choice.num_buckets:,} fit "
            f"({choice.reason})"
        )
    if health.requests_agree is not None and health.requests_agree.ok:
        lines.append(f"  requests agree: {health.requests_agree.detail}")
    rows = health.buckets.to_pylist()
    shown = sorted(rows, key=lambda row: (row["is_compact"], -row["files"], -row["bytes"]))[:SHOWN_BUCKETS]
    if rows:
        lines.append(_format_buckets(health, shown))
    if len(rows) > len(shown):
        lines.append(f"  ... {len(rows) - len(shown):,} more; --json has all")
    nothing = "nothing"
    if health.small_files and health.num_buckets:
        nothing += "; small files are as large as their buckets, and so few buckets cost a table of this size nothing"
    return "\n".join([*lines, *(f"  to do: {one}" for one in health.advice or [nothing])])


def _format_buckets(health: TableHealth, rows: list[dict[str, Any]]) -> str:
    head = ["bucket" if health.num_buckets else "day", "files", "small", "rows", "stored"]
    names = ["files", "small_files", "rows"]
    cells = [[_partition(health, row), *(row[name] for name in names), format_bytes(row["bytes"])] for row in rows]
    if health.users is not None:
        head += ["users", "largest"]
        cells = [
            [*cell, row["users"], "-" if row["largest_user_share"] is None else f"{row['largest_user_share']:.0%}"]
            for cell, row in zip(cells, rows)
        ]
    return format_table(
        [*head, "is compact"], [[*cell, "yes" if row["is_compact"] else "no"] for cell, row in zip(cells, rows)]
    )


def _partition(health: TableHealth, row: dict[str, Any]) -> str:
    from datetime import date, timedelta

    if row["partition"] is None:
        return "all"
    if health.num_buckets:
        return str(row["partition"])
    return str(date(1970, 1, 1) + timedelta(days=row["partition"]))
