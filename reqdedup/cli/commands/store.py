"""`reqdedup store`: fill the embedded store that a server reads, and see what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reqdedup.cli.catalog import lake_of, load_table, load_tables, open_catalog
from reqdedup.cli.options import Checked, Group, Options, option, subcommand, table_option
from reqdedup.cli.output import counted, format_bytes, format_table, print_json, say
from reqdedup.cli.values import whole

STORE_HELP = "its file (default: stores/NAMESPACE.sqlite in the folder of the embedded lake)"
USER = Checked(whole, least=-(2**63), most=2**63 - 1)


@subcommand(
    help="fill a store from a table and the feature tables beside it",
    description="Each user's timeline and newest request features. Readers see the whole fill or nothing of it; events "
    "that were appended since stay. A second fill of the same tables changes nothing.",
    examples=["reqdedup store fill --table movies.engagements_by_request"],
)
@table_option("a bucketed, sorted engagement table")
@option("--features", multiple=True, metavar="NAMESPACE.NAME", help="a feature table (default: all of the table's)")
@option("--store", metavar="FILE", help=STORE_HELP)
def fill(arguments: Options) -> int:
    """Fill the store and print what changed."""
    from reqdedup.sequences.filling import event_columns, fill_store
    from reqdedup.sequences.sqlite_store import SqliteStore
    from reqdedup.storage import TableSource, feature_tables_of

    catalog = open_catalog(arguments)
    main = load_table(catalog, arguments.table)
    sides = load_tables(catalog, arguments.features) if arguments.features else feature_tables_of(main)
    path = _path(arguments, arguments.table.rpartition(".")[0])
    store = SqliteStore(path, event_columns(TableSource(main).schema))
    report = fill_store(store, main, sides)
    store.close()
    if arguments.json:
        print_json({"store": str(path), **report.counts(), "source": report.source})
        return 0
    said = [f"{report.num_new:,} new", f"{report.num_changed:,} changed", f"{report.num_same:,} as they were"]
    users = counted(report.num_users, "user")
    say(f"{path}: {users} ({', '.join(said)}), {report.num_deleted:,} deleted")
    if report.num_contradicted:
        say(
            f"{counted(report.num_contradicted, 'timeline')} of the store had other events than the table under the "
            f"same numbers and became the table's; {counted(report.num_events_dropped, 'later event')} dropped"
        )
    return 0


@subcommand(
    help="what a store holds, or what it knows of one user",
    description="Users, events, bytes, and the snapshots of the last fill.",
    examples=["reqdedup store show --namespace movies", "reqdedup store show --store s.sqlite --user 4711"],
)
@option("--namespace", default="", metavar="NAME", help="of the tables that it was filled from")
@option("--store", metavar="FILE", help=STORE_HELP)
@option("--user", type=USER, metavar="ID", help="this user's newest events and features")
def show(arguments: Options) -> int:
    """Print the store's counts, or a user's."""
    from reqdedup.sequences.sqlite_store import SqliteStore

    path = _path(arguments, arguments.namespace)
    store = SqliteStore(path)
    if arguments.user is None:
        found: dict[str, Any] = {
            "store": str(path),
            **store.counts(),
            "columns": dict(store.columns),
            "source": store.filled_from(),
        }
        if arguments.json:
            print_json(found)
            return 0
        say(
            f"{path}: {counted(found['users'], 'user')}, {counted(found['events'], 'event')}, "
            f"{format_bytes(found['bytes'])}"
        )
        say(f"columns: {', '.join(f'{name} {dtype}' for name, dtype in found['columns'].items())}")
        for table, snapshot in (found["source"] or {}).items():
            say(f"filled from {table}, snapshot {snapshot}")
        return 0
    window = store.window(arguments.user, list(store.columns), start_of=lambda end: max(0, end - 10))
    features = store.request_features(arguments.user, store.feature_names(arguments.user))
    if arguments.json:
        shown = None if window is None else {"start": window.start, "end": window.end, "version": window.version}
        events = {} if window is None else {name: array.tolist() for name, array in window.columns.items()}
        print_json({"user": arguments.user, "window": shown, "events": events, "features": features})
        return 0
    if window is None:
        say(f"{path}: user {arguments.user} has no timeline")
        return 0
    say(f"user {arguments.user}: {counted(window.end, 'event')}, version {window.version}; the newest:")
    rows = zip(range(window.start, window.end), *(array.tolist() for array in window.columns.values()))
    say(format_table(["number", *window.columns], [[str(value) for value in row] for row in rows]))
    say(format_table(["feature", "value"], [[name, _short(value)] for name, value in features.items()]))
    return 0


def _path(arguments: Options, namespace: str) -> Path:
    if arguments.store:
        return Path(arguments.store)
    data_dir = lake_of(arguments).place.data_dir
    if data_dir is None or not namespace:
        raise ValueError("a file of the store required, found neither --store nor a namespace of an embedded lake")
    return data_dir / "stores" / f"{namespace}.sqlite"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


COMMANDS = (
    Group(
        "store",
        help="The store that a server reads users from: timelines and request features.",
        short_help="fill and show the store that a server reads",
        commands={str(one.name): one for one in (fill, show)},
    ),
)
