"""`reqdedup impressions`: from what servers logged to labelled rows."""

from __future__ import annotations

from pathlib import Path

from reqdedup.cli.catalog import lake_of, load_table, open_catalog
from reqdedup.cli.options import AGE, Group, Options, option, subcommand
from reqdedup.cli.output import counted, print_json, say


@subcommand(
    help="move closed files of the impression log into tables",
    description="What servers wrote becomes the tables impressions and impression_clicks; the files go when their "
    "records are there. Files that a server is writing are left alone.",
    examples=["reqdedup impressions collect --namespace movies"],
)
@option("--namespace", required=True, metavar="NAME", help="of the tables")
@option("--log", metavar="DIR", help="folder of the log (default: impressions/NAMESPACE in that of the embedded lake)")
def collect(arguments: Options) -> int:
    """Collect log files and print how many records they had."""
    from reqdedup.serving.impressions.attribution import collect_impressions

    folder = (
        Path(arguments.log) if arguments.log else _data_dir(arguments, "--log") / "impressions" / arguments.namespace
    )
    report = collect_impressions(folder, open_catalog(arguments), arguments.namespace)
    if arguments.json:
        print_json(report.counts())
        return 0
    records = f"{counted(report.num_impressions, 'impression')}, {counted(report.num_clicks, 'click')}"
    say(f"{folder}: {counted(report.num_files, 'file')}, {records}")
    if report.num_dropped or report.num_damaged:
        say(f"servers dropped {counted(report.num_dropped, 'record')}; {counted(report.num_damaged, 'line')} damaged")
    return 0


@subcommand(
    help="append mature impressions, labelled, to the table of engagements as they arrive",
    description="Mature is what was shown longer ago than the window in which a click counts and the time that a click "
    "may need to arrive. A request enters the table once, however often this runs.",
    examples=["reqdedup impressions mature --namespace movies --window 24h --lateness 1h"],
)
@option("--namespace", required=True, metavar="NAME", help="of the tables")
@option("--table", metavar="NAMESPACE.NAME", help="that gets the rows (default: NAMESPACE.raw_engagements)")
@option("--store", metavar="FILE", help="that the server read (default: stores/NAMESPACE.sqlite of the embedded lake)")
@option(
    "--window",
    type=AGE,
    default="24h",
    metavar="AGE",
    help="after an impression in which a click counts (default: 24h)",
)
@option("--lateness", type=AGE, default="1h", metavar="AGE", help="that a click may need to be collected (default: 1h)")
def mature(arguments: Options) -> int:
    """Append what is mature and print what came of every impression."""
    from reqdedup.sequences.sqlite_store import SqliteStore
    from reqdedup.serving.impressions.attribution import mature_impressions

    catalog, namespace = open_catalog(arguments), arguments.namespace
    target = load_table(catalog, arguments.table or f"{namespace}.raw_engagements")
    path = arguments.store or _data_dir(arguments, "--store") / "stores" / f"{namespace}.sqlite"
    store = SqliteStore(path)
    report = mature_impressions(
        catalog,
        namespace,
        target,
        store,
        window_s=arguments.window.total_seconds(),
        lateness_s=arguments.lateness.total_seconds(),
    )
    store.close()
    if arguments.json:
        print_json({"table": ".".join(target.name()), **report.counts(), "missing": report.missing})
        return 0
    rows = f"{counted(report.num_rows, 'row')} of {counted(report.num_requests, 'request')}"
    say(f"{'.'.join(target.name())}: {rows} added, {report.num_clicked:,} with a label; {report.num_young:,} too young")
    said = {
        "already there": report.num_known,
        "logged again": report.num_repeated,
        "late clicks": report.num_late,
        "clicks of nothing that was shown": report.num_unknown,
        "clicks by another user than it was shown to": report.num_foreign,
        "without their history in the store": report.num_forgotten,
        "whose history has changed": report.num_changed,
        "with a history of the request's own, which the store does not have": report.num_own,
        f"without a column that the table requires ({report.missing})": report.num_incomplete,
    }
    for name, count in said.items():
        if count:
            say(f"  {count:,} {name}")
    return 0


def _data_dir(arguments: Options, option_name: str) -> Path:
    data_dir = lake_of(arguments).place.data_dir
    if data_dir is None:
        raise ValueError(f"{option_name} required, since the lake is no embedded one; found none")
    return data_dir


COMMANDS = (
    Group(
        "impressions",
        help="What servers showed, and the labels that came of it.",
        short_help="collect the impression log, and label what is mature",
        commands={str(one.name): one for one in (collect, mature)},
    ),
)
