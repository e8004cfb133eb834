"""`reqdedup sequences`: definitions, the timeline, and what a user's sequence is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reqdedup.cli.catalog import lake_of, open_catalog
from reqdedup.cli.options import BUCKETS, Checked, Group, Options, option, subcommand
from reqdedup.cli.output import counted, format_bytes, format_table, note, print_json, say
from reqdedup.cli.values import share, user_of_events, whole

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

    from reqdedup.sequences.sources import EventSource

VERSION, SHARE = Checked(whole), Checked(share)
NAMESPACE = {"required": True, "metavar": "NAME", "help": "of the tables"}


@subcommand(
    help="say what publishing definitions would change, and refuse a silent change",
    description="FILE is Python with an EventLog and SequenceDefinitions. What decides a sequence's values changes "
    "with a new version alone.",
    examples=[
        "reqdedup sequences check sequences.py --namespace lake",
        "reqdedup sequences check s.py --namespace lake --publish",
    ],
)
@click.argument("file", metavar="FILE")
@option("--namespace", **NAMESPACE)
@option("--publish", is_flag=True, help="make them the definitions that hold")
def check(arguments: Options) -> int:
    """Print the differences; 1 if one of them is refused."""
    from reqdedup.sequences.published import (
        check_definitions,
        log_changes,
        publish_definitions,
        published_definitions,
        read_definitions,
    )
    from reqdedup.sequences.tables import check_log

    found, lake = read_definitions(arguments.file), lake_of(arguments, make=arguments.publish)
    if (database := lake.place.database) is not None and not (database.exists() or arguments.publish):
        note(f"{arguments.command}: no catalog at {database} yet, where nothing is published")
        changes = check_definitions(found.definitions, {})
    else:
        catalog = lake.make()
        changes = log_changes(check_log(catalog, arguments.namespace, found.log))
        changes += check_definitions(found.definitions, published_definitions(catalog, arguments.namespace))
        if arguments.publish and all(change.ok for change in changes):
            changes = publish_definitions(catalog, arguments.namespace, found.log, found.definitions)
    if arguments.json:
        print_json([{**vars(change), "ok": change.ok} for change in changes])
        return int(not all(change.ok for change in changes))
    for change in changes:
        for line in change.differences or (f"{change.name}: as published",):
            say(line)
        if change.refused:
            say(f"  refused: {change.refused}")
    return int(not all(change.ok for change in changes))


@subcommand(
    help="append delivered events to the timeline",
    description="Everything that was delivered since the last run, once, filtered, enriched and in the order of "
    "arrival, in one commit; run again, it finds nothing to do. With --events, files of JSON Lines or Parquet are "
    "delivered first, or the messages of a topic; what was delivered before is left out.",
    examples=[
        "reqdedup sequences advance --namespace lake",
        "reqdedup sequences advance --namespace lake --events events/ --definitions sequences.py",
        "reqdedup sequences advance --namespace lake --events kafka://127.0.0.1:9092/events --definitions sequences.py",
    ],
)
@option("--namespace", **NAMESPACE)
@option(
    "--events", metavar="PATH|URL", help="to deliver first: a file, a folder of them, or kafka://HOST:PORT[,...]/TOPIC"
)
@option("--client", metavar="FILE", help="JSON of settings for Kafka's client, as librdkafka names them")
@option("--definitions", metavar="FILE", help="Python with the EventLog of these files (see check)")
@option("--buckets", type=BUCKETS, default=16, metavar="N", help="of a timeline that is made now (default: 16)")
def advance(arguments: Options) -> int:
    """Run and print what became of the events."""
    from reqdedup.sequences import batch
    from reqdedup.sequences.intake import deliver
    from reqdedup.sequences.published import read_definitions

    if bool(arguments.events) != bool(arguments.definitions):
        raise ValueError("--events and --definitions belong together; give both or neither")
    log = read_definitions(arguments.definitions).log if arguments.events else None
    catalog = open_catalog(arguments, make=bool(arguments.events))
    sources = _sources(catalog, arguments) if arguments.events else []
    taken: list[dict[str, Any]] = []
    if log is not None:
        for source in sources:
            found = deliver(catalog, arguments.namespace, log, source)
            taken.append({"source": source.name, **vars(found)})
    report = batch.advance(catalog, arguments.namespace, num_buckets=arguments.buckets)
    if arguments.json:
        print_json({"delivered": taken, **report.plain()})
        return 0
    new = [one for one in taken if not one["is_known"]]
    for one in new:
        say(f"{one['source']}: {counted(one['num_events'], 'event')}, {one['num_rejected']:,} rejected")
        if one["reasons"]:
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in one["reasons"].items())
            say(f"  {arguments.namespace}.rejected_events: {reasons}")
    if len(new) < len(taken):
        say(f"{len(taken) - len(new):,} of {counted(len(taken), 'source')} delivered before")
    _say_report(arguments.namespace, report)
    return 0


def _sources(catalog: Catalog, arguments: Options) -> Sequence[EventSource]:
    from reqdedup.sequences.sources import event_files

    place, topic = str(arguments.events).removeprefix("kafka://"), ""
    if place == arguments.events:
        return event_files(Path(place))
    from reqdedup.sequences.kafka import KafkaSource  # an extra of its own

    servers, _, topic = place.partition("/")
    if not servers or not topic:
        raise ValueError(f"--events: kafka://HOST:PORT/TOPIC required, found {arguments.events}")
    settings = json.loads(Path(arguments.client).read_text()) if arguments.client else {}
    return [KafkaSource(catalog, arguments.namespace, servers, topic, settings=settings)]


@subcommand(
    help="make the timeline anew, or a part of it, as a version that nobody sees yet",
    description="For a changed definition, a new one, new types or columns of events, or enrichments that were wrong. "
    "With --enrichment one is looked up again and only files whose values change are written; with --since the events "
    "that arrived on these days are made anew. With --publish the version is checked and becomes what readers see; the "
    "old one keeps a tag, and requests of it find their events.",
    examples=[
        "reqdedup sequences backfill --namespace lake",
        "reqdedup sequences backfill --namespace lake --publish",
        "reqdedup sequences backfill --namespace lake --enrichment item --publish",
        "reqdedup sequences backfill --namespace lake --since 2026-11-01 --until 2026-11-08",
    ],
)
@option("--namespace", **NAMESPACE)
@option("--enrichment", metavar="NAME", help="this one alone, of all events")
@option("--since", metavar="DAY", help="first day of arrival, UTC")
@option("--until", metavar="DAY", help="the day after the last (default: to the watermark)")
@option("--publish", is_flag=True, help="check it and make it the one that readers see")
def backfill(arguments: Options) -> int:
    """Stage a version, and publish it if that is asked for."""
    from reqdedup.sequences import batch
    from reqdedup.sequences.corrections import backfill_days, correct_enrichment

    since, until = (_day(name, getattr(arguments, name)) for name in ("since", "until"))
    if (arguments.enrichment and since) or (until and not since):
        raise ValueError("backfill: --enrichment or --since required, and --until with --since alone")
    catalog, namespace = open_catalog(arguments), arguments.namespace
    if arguments.enrichment:
        correction = correct_enrichment(catalog, namespace, arguments.enrichment)
        is_staged, version, plain = correction.num_files > 0, correction.version, vars(correction)
    else:
        report = (
            backfill_days(catalog, namespace, since, until) if since is not None else batch.backfill(catalog, namespace)
        )
        is_staged, version, plain = True, report.version, report.plain()
    if arguments.publish and is_staged:
        batch.publish_timeline(catalog, namespace)
    if arguments.json:
        print_json({**plain, "published": arguments.publish and is_staged})
        return 0
    if arguments.enrichment:
        say(
            f"{namespace}.user_events: {counted(correction.num_events, 'event')} with other values of "
            f"{arguments.enrichment}; {counted(correction.num_files, 'file')} of {format_bytes(correction.num_bytes)} "
            f"in place of {format_bytes(correction.touched_bytes)}, {counted(correction.num_kept_files, 'file')} kept"
        )
    else:
        _say_report(namespace, report)
    if is_staged:
        say(f"version {version} is " + ("published" if arguments.publish else "staged: --publish makes it seen"))
    return 0


@subcommand(
    help="clear events that no definition keeps any longer",
    description="What arrived longer ago than the longest retention of the definitions: of an event of the timeline "
    "its user, its numbers and its arrival stay, delivered events go. One definition without a retention keeps all. "
    "Bytes are free after `reqdedup expire`. Without --apply nothing is changed.",
    examples=["reqdedup sequences retain --namespace lake", "reqdedup sequences retain --namespace lake --apply"],
)
@option("--namespace", **NAMESPACE)
@option("--apply", is_flag=True, help="clear them")
def retain(arguments: Options) -> int:
    """Clear them, or print what would be."""
    from reqdedup.sequences.retention import apply_retention

    found = apply_retention(open_catalog(arguments), arguments.namespace, apply=arguments.apply)
    if arguments.json:
        print_json({**vars(found), "kept_from": found.kept_from and found.kept_from.isoformat()})
        return 0
    if found.kept_from is None:
        say("all events are kept: a definition has no retention")
        return 0
    say(
        f"events are kept from {found.kept_from:%Y-%m-%d} on: {counted(found.num_events, 'event')} of the timeline and "
        f"{counted(found.num_delivered, 'delivered event')} {'cleared' if arguments.apply else 'would go'}"
    )
    if found.held_by:
        say(f"  earlier versions that hold them until their requests are as old: {', '.join(map(str, found.held_by))}")
    return 0


@subcommand(
    help="print a user's sequence as the timeline has it",
    description="The last events of the sequence that had arrived before --at, oldest first. USER_ID is as the events "
    "say it, a whole number or text.",
    examples=[
        "reqdedup sequences fetch 7 engaged --namespace lake",
        "reqdedup sequences fetch 7 engaged --namespace lake --columns item_id --at 2026-11-27T12:00:00+00:00",
    ],
)
@click.argument("user", type=Checked(user_of_events), metavar="USER_ID")
@click.argument("sequence", metavar="SEQUENCE")
@option("--namespace", **NAMESPACE)
@option("--columns", metavar="A,B", help="of the sequence (default: all)")
@option("--at", metavar="TIME", help="with its zone (default: now)")
@option("--version", type=VERSION, metavar="N", help="of the timeline (default: the current one)")
def fetch(arguments: Options) -> int:
    """Print the events."""
    from reqdedup.sequences.ends import fetch_sequence

    at = _time(arguments.at) if arguments.at else None
    columns = arguments.columns.split(",") if arguments.columns else None
    found = fetch_sequence(
        open_catalog(arguments),
        arguments.namespace,
        arguments.user,
        arguments.sequence,
        columns,
        at=at,
        version=arguments.version,
    )
    if arguments.json:
        print_json(found.to_pylist())
        return 0
    say(f"user {arguments.user}, {arguments.sequence}: {counted(found.num_rows, 'event')}")
    if found.num_rows:
        rows = [[str(value) for value in row.values()] for row in found.to_pylist()]
        say(format_table(found.column_names, rows))
    return 0


@subcommand(
    help="compare a sequence with how it was made before",
    description="Field by field on matched events, then whole sequences, of every user; figures go to the table "
    "sequence_shadow. The old table is of events (user_id, event_id, columns) or of users (user_id, a list for each "
    "column, oldest event first). The exit code is 1 if a figure is beyond its limit.",
    examples=[
        "reqdedup sequences shadow engaged --namespace lake --old legacy.sequences --tolerance price=0.01",
        "reqdedup sequences shadow engaged --namespace lake --old 1 --exact 0.999",
    ],
)
@click.argument("sequence", metavar="SEQUENCE")
@option("--namespace", **NAMESPACE)
@option("--old", required=True, metavar="TABLE|N", help="a table of events or of users, or a version of the timeline")
@option("--columns", metavar="A,B", help="to compare (default: those that both have)")
@option("--tolerance", multiple=True, metavar="COLUMN=X", help="numbers this far apart are alike; repeat it")
@option("--unmatched", type=SHARE, metavar="X", help="most events that one side lacks, a share (default: 0.001)")
@option("--differing", type=SHARE, metavar="X", help="most events with another value in a column (default: 0.001)")
@option("--exact", type=SHARE, metavar="X", help="least users with the same sequence (default: 0.99)")
@option("--overlap", type=SHARE, metavar="X", help="least mean overlap of sequences (default: 0.999)")
def shadow(arguments: Options) -> int:
    """Compare, print the figures, and say the verdict."""
    from reqdedup.sequences.shadow import ShadowLimits
    from reqdedup.sequences.shadow import shadow as compare

    names = ("unmatched", "differing", "exact", "overlap")
    found = compare(
        open_catalog(arguments),
        arguments.namespace,
        arguments.sequence,
        int(arguments.old) if arguments.old.isdecimal() else arguments.old,
        columns=arguments.columns.split(",") if arguments.columns else None,
        tolerance=dict(_tolerance(text) for text in arguments.tolerance),
        limits=ShadowLimits(**{n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}),
    )
    if arguments.json:
        print_json(found.plain())
        return int(not found.passed)
    rows = [
        [one.figure, one.of, f"{one.compared:,}", f"{one.share:.4%}", _limit(one.limit), "" if one.ok else "BEYOND"]
        for one in found.rows
    ]
    say(format_table(["figure", "of", "compared", "share", "limit", ""], rows))
    for one in found.rows:
        if one.examples:
            say(f"{one.figure} {one.of}: {one.examples}")
    say(f"{found.sequence} against {found.old}: {'passed' if found.passed else 'not passed'}")
    return int(not found.passed)


@subcommand(
    help="where the timeline stands",
    description="Delivered events, the watermark, what waits, versions, definitions, files.",
    examples=["reqdedup sequences status --namespace lake"],
)
@option("--namespace", **NAMESPACE)
def status(arguments: Options) -> int:
    """Print it."""
    from reqdedup.sequences.status import timeline_status

    found = timeline_status(open_catalog(arguments), arguments.namespace)
    if arguments.json:
        print_json(found)
        return 0
    say(f"delivered: {counted(found['delivered'], 'event')}, the last arrived {found['last_arrival']}")
    say(
        f"timeline: version {found['version']} of {found['versions']}, {counted(found['events'], 'event')} in "
        f"{counted(found['files'], 'file')} of {format_bytes(found['bytes'])}"
    )
    say(f"watermark: {counted(found['waiting'], 'event')} waiting")
    for one in found["definitions"]:
        say(f"  {one['name']}: version {one['version']}, {one['stage']}, owner {one['owner']}, last {one['last_n']}")
    return 0


def _say_report(namespace: str, report: Any) -> None:
    counts = report.counts
    say(
        f"{namespace}.user_events: {counted(counts.num_kept, 'event')} of {counts.num_delivered:,} delivered kept, "
        f"{counts.num_duplicates:,} delivered again ({counts.num_conflicts:,} with other content), "
        f"{counts.num_late:,} late; {counted(report.num_files, 'file')}, {format_bytes(report.num_bytes)}"
    )
    for name, count in counts.unmatched.items():
        if count:
            say(f"  {counted(count, 'event')} without a row of the enrichment {name}")


def _limit(limit: float | None) -> str:
    return "" if limit is None else f"{limit:.4%}"


def _tolerance(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ValueError(f"--tolerance: COLUMN=X with a number X required, found {text!r}") from None


def _day(name: str, text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ValueError(f"--{name}: a day like 2026-11-01 required, found {text!r}") from None


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError(f"--at: a time with its zone like 2026-11-27T12:00:00+00:00 required, found {text!r}")
    return found.astimezone(UTC)


COMMANDS = (
    Group(
        "sequences",
        help="User sequences: definitions, the timeline of events, and windows of it.",
        short_help="define user sequences, bring their timeline up to date, fetch one",
        commands={str(one.name): one for one in (check, advance, backfill, retain, fetch, shadow, status)},
    ),
)
