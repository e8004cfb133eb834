"""`reqdedup delete-user`: users leave every table of a namespace, and what could not be searched is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reqdedup.cli.catalog import lake_of, snapshot_of
from reqdedup.cli.options import Checked, Options, apply_option, engine_option, option, subcommand
from reqdedup.cli.output import (
    ProgressLine,
    counted,
    format_bytes,
    format_table,
    interruptible,
    print_json,
    say,
)
from reqdedup.cli.values import key, user_id

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

    from reqdedup.storage import DeletionReport


@subcommand(
    "delete-user",
    help="delete users from every table, rejected row, and what serving keeps",
    description="Rewrite the files that hold the users, and no other, without them: engagement tables of any layout, "
    "feature tables, the texts of rejected rows, and what serving keeps: impressions, clicks, user states. What "
    "servers keep outside the catalog is named by the options of `reqdedup serve`. Old snapshots hold the users until "
    "they expire; --erase expires them at once, so that no byte is left on disk. What was not searched is named.",
    examples=[
        "reqdedup delete-user 4711 --namespace movies",
        "reqdedup delete-user --key U13740 --namespace news --apply --erase --drop-refs",
        "reqdedup delete-user 4711 --namespace movies --store movies.sqlite --impressions log",
    ],
)
@click.argument("users", nargs=-1, type=Checked(user_id), metavar="[USER_ID]...")
@option(
    "--key",
    multiple=True,
    type=Checked(key),
    metavar="TEXT",
    help="original id of a log with ids of text; repeat it",
)
@option("--namespace", multiple=True, metavar="NAME", help="all tables in it; repeat it for more")
@option(
    "--table",
    multiple=True,
    metavar="NAMESPACE.NAME",
    help="this table, its feature tables and the rejected rows beside it; repeat it for more",
)
@option("--store", metavar="PLACE", help="a server's store, as `reqdedup serve` is told it")
@option("--impressions", metavar="DIR", help="a server's impression log")
@option("--user-states", metavar="FILE", help="user states that a server starts with")
@option("--online", metavar="DIR", help="folder of an online store of sequences")
@option("--erase", is_flag=True, help="expire all old snapshots at once; their readers fail")
@option("--drop-refs", is_flag=True, help="remove branches and tags that hold the users")
@engine_option()
@apply_option()
def delete_user(arguments: Options) -> int:
    """Delete the users, or say what would go."""
    if not (arguments.namespace or arguments.table):
        raise ValueError("--namespace or --table required, found neither; name where the users are to be deleted")
    if not (arguments.users or arguments.key):
        raise ValueError("USER_ID or --key required, found neither; name at least one user")
    lake = lake_of(arguments)
    begun: dict[str, int | None] = {}

    def next_table(name: str) -> None:
        begun[name] = snapshot_of(lake.catalog, name)
        progress(f"delete-user: {name}")

    with ProgressLine() as progress, interruptible(lambda: _kept(lake.catalog, begun, apply=arguments.apply)):
        done = lake.delete_user(
            arguments.users,
            keys=arguments.key,
            namespaces=arguments.namespace,
            tables=arguments.table,
            store=arguments.store,
            impressions=arguments.impressions,
            user_states=arguments.user_states,
            online=arguments.online,
            apply=arguments.apply,
            drop_refs=arguments.drop_refs,
            erase=arguments.erase,
            engine=arguments.engine,
            progress=next_table,
        )
    reports, is_found = done.reports, done.is_found
    is_erased = arguments.erase and arguments.apply
    if arguments.json:
        print_json(
            {
                "dry_run": not arguments.apply,
                "erased": is_erased,
                "found": is_found,
                "tables": reports,
                "places": done.places,
                "not_searched": done.not_searched,
                **progress.totals.figures,
            }
        )
        return 0
    say(_format(reports))
    for report in reports:
        if report.held_by:
            say(f"  {report.table}: held by {', '.join(report.held_by)}; --drop-refs removes these branches and tags")
    for place in done.places:
        say(f"{place.place}: {counted(place.num_records, 'record')} {'gone' if arguments.apply else 'would go'}")
        if place.num_held:
            say(f"  {place.num_held:,} of them stay, a server has them open: again in a minute, or when it has ended")
    snapshots = sum(report.snapshots for report in reports)
    if not is_found:
        users = [*map(str, arguments.users), *(f"--key {key}" for key in arguments.key)]
        where = "table or place" if done.places else "table"
        say(f"no {where} holds {'this user' if len(users) == 1 else 'any of these users'}: {', '.join(users)}")
    if is_found and not arguments.apply:
        say("nothing was changed: --apply does it, --apply --erase also frees the bytes")
    elif snapshots and not is_erased:
        hold = "hold them still" if is_found else "may hold them, and were not searched"
        say(f"up to {counted(snapshots, 'old snapshot')} {hold}: `reqdedup expire`, or again with --apply --erase")
    say("not searched:")
    for one in done.not_searched:
        say(f"  {one}")
    return 0


COMMANDS = (delete_user,)


def _kept(catalog: Catalog, begun: dict[str, int | None], *, apply: bool) -> str:
    """What an interrupt left. begun: snapshots of the tables whose turn it was, before it, in order."""
    if not apply:
        return "nothing was changed, since --apply was not given"
    names = list(begun)
    done = [name for name in names if name != names[-1] or snapshot_of(catalog, name) != begun[name]]
    left = [name for name in names if name not in done]
    said = [f"the users are gone from {', '.join(done)}"] if done else []
    said += [f"{', '.join(left)} is as it was"] if left else []
    said = said or ["no table was changed"]
    return f"{'; '.join(said)}; other tables and old snapshots hold them still. The same command goes on there"


def _format(reports: list[DeletionReport]) -> str:
    would = "would go" if any(report.dry_run for report in reports) else "gone"
    head = ["table", f"rows {would}", "requests", "files rewritten", "bytes", "untouched"]
    rows = [
        [
            report.table,
            report.rows,
            report.requests,
            report.files,
            format_bytes(report.old_bytes),
            report.untouched,
        ]
        for report in reports
    ]
    return format_table(head, rows, indent="")
