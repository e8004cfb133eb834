"""`reqdedup ingest`: a log into an Iceberg table, and what could not be read beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from reqdedup.cli.catalog import kept_of_write, lake_of, snapshot_of
from reqdedup.cli.options import (
    BUCKETS,
    NUMBER,
    POSITIVE,
    SHARE,
    OneOf,
    Options,
    engine_option,
    layout_option,
    option,
    subcommand,
    table_option,
)
from reqdedup.cli.output import ProgressLine, counted, interruptible, print_json, say

PRESETS = (
    *("amazon_reviews", "criteo_attribution", "eb_nerd", "kuairand", "kuairec", "lastfm", "mind", "movielens"),
    *("movielens_ratings", "open_bandit", "taobao", "yambda", "yelp"),
)


@subcommand(
    help="read your own log into an Iceberg table",
    description="Read a log (Parquet, CSV/TSV, JSON Lines) into an Iceberg table, sorted and deduplicated by request. "
    "Rejected rows go to the table rejected_engagements of the same namespace, with reason, file and line.",
    examples=["reqdedup ingest ratings.csv --preset movielens --table movies.engagements_by_request"],
)
@click.argument("log", type=click.Path(path_type=Path))
@option("--preset", type=OneOf(PRESETS), metavar="NAME", help=f"a known log format: {', '.join(PRESETS)}")
@option("--mapping", type=click.Path(path_type=Path), metavar="FILE", help="TOML file that names the log's columns")
@table_option("table to replace")
@layout_option()
@option(
    "--buckets", type=BUCKETS, metavar="N", help="partitions by user (default: as the table has, or what fits the size)"
)
@option(
    "--session-gap",
    type=NUMBER,
    metavar="SECONDS",
    help="for logs without request ids: a longer gap starts one; 0: every row is one",
)
@option("--max-history", type=POSITIVE, metavar="EVENTS", help="cut longer user histories")
@option("--replace", is_flag=True, help="also replace a table of this name that has another form")
@option(
    "--max-rejects",
    type=SHARE,
    metavar="SHARE",
    help="write nothing and fail if more of the rows are rejected (default: 0.1)",
)
@engine_option()
@option("--strict", is_flag=True, help="write nothing and fail if a row is rejected")
def ingest(arguments: Options) -> int:
    """Read, write, commit, then say what was taken and what was not."""
    if bool(arguments.preset) == bool(arguments.mapping):
        raise click.UsageError("one of --preset and --mapping required", click.get_current_context())
    from reqdedup.logs import read_log
    from reqdedup.logs.checks import REASONS
    from reqdedup.storage.write.rejects import rejects_identifier

    rejects_identifier(arguments.table)
    with ProgressLine() as progress:
        log = read_log(
            arguments.log,
            preset=arguments.preset,
            mapping=arguments.mapping,
            session_gap_s=arguments.session_gap,
            strict=arguments.strict,
            progress=lambda counts: progress("parse", counts.rows_read) if not counts.rows else None,
            **({} if arguments.max_rejects is None else {"max_rejects": arguments.max_rejects}),
            **({"max_history": arguments.max_history} if arguments.max_history else {}),
        )
        lake = lake_of(arguments, make=True)
        catalog = lake.make()
        before = snapshot_of(catalog, arguments.table)
        with interruptible(lambda: kept_of_write(catalog, arguments.table, before)):
            report = lake.ingest(
                log,
                arguments.table,
                layout=arguments.layout,
                num_buckets=arguments.buckets,
                replace=arguments.replace,
                progress=progress,
                engine=arguments.engine,
            )
    if arguments.json:
        counts = {name: getattr(report.written, name) for name in ("rows", "requests", "users", "bytes")}
        said = {"table": report.table, "layout": report.layout, **counts}
        said |= {} if report.urls is None else {"urls": {**asdict(report.urls), "merged": report.urls.merged}}
        said |= {} if report.leaking is None else {"leaking_requests": report.leaking}
        said |= {"skipped": log.skipped, "rejected": report.rejected, "rejects_table": report.rejects_table}
        print_json({**said, **progress.totals.figures})
        return 0
    say(report)
    if report.leaking is not None:
        share = report.leaking / max(1, report.written.requests)
        say(f"histories in the order of time would show {share:.1%} of the requests a row that had not arrived")
    if (urls := report.urls) is not None:
        say(
            f"{urls.urls:,} distinct URLs are {urls.items:,} items: {urls.merged:,} ids merged by rules {urls.rules}; "
            f"{urls.not_urls:,} texts are no URLs, kept as they are"
        )
        if urls.rows_merged:
            say(f"{urls.rows_merged:,} rows had another URL of a page that their request has already: the first stays")
        if urls.labels_differ:
            say(f"{urls.labels_differ:,} items of requests had rows with different labels: the largest stay")
    if log.skipped:
        shown = ", ".join(log.skipped[:10]) + (f" and {len(log.skipped) - 10:,} more" if len(log.skipped) > 10 else "")
        say(f"no log, not read: {shown}")
    say(f"{report.rejects_table}: {counted(sum(report.rejected.values()), 'rejected row')}")
    for reason, count in report.rejected.items():
        say(f"  {count:,} {reason}: {REASONS[reason]}")
    return 0


COMMANDS = (ingest,)
