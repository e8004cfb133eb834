"""`reqdedup delete-user`: users leave every table of a namespace, and what could not be searched is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reqdedup.cli.catalog import lake_of
from reqdedup.cli.options import Checked, Options, apply_option, option, subcommand
from reqdedup.cli.output import ProgressLine, counted, format_bytes, format_table, print_json, say
from reqdedup.cli.values import key, user_id

if TYPE_CHECKING:
    from reqdedup.storage import DeletionReport


@subcommand(
    "delete-user",
    help="delete users from every table, feature table and rejected row",
    description="Rewrite the files that hold the users, and no other, without them: engagement tables of any layout, "
    "feature tables, and the texts of rejected rows. Old snapshots hold the users until they expire; --erase expires "
    "them at once, so that no byte is left on disk. Tables that could not be searched are named.",
    examples=[
        "reqdedup delete-user 4711 --namespace movies",
        "reqdedup delete-user --key U13740 --namespace news --apply --erase --drop-refs",
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
@option("--erase", is_flag=True, help="expire all old snapshots at once; their readers fail")
@option("--drop-refs", is_flag=True, help="remove branches and tags that hold the users")
@apply_option()
def delete_user(arguments: Options) -> int:
    """Delete the users, or say what would go."""
    if not (arguments.namespace or arguments.table):
        raise ValueError("--namespace or --table required, found neither; name where the users are to be deleted")
    if not (arguments.users or arguments.key):
        raise ValueError("USER_ID or --key required, found neither; name at least one user")
    with ProgressLine() as progress:
        done = lake_of(arguments).delete_user(
            arguments.users,
            keys=arguments.key,
            namespaces=arguments.namespace,
            tables=arguments.table,
            apply=arguments.apply,
            drop_refs=arguments.drop_refs,
            erase=arguments.erase,
            progress=lambda name: progress(f"delete-user: {name}"),
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
                "not_searched": done.not_searched,
            }
        )
        return 0
    say(_format(reports))
    for report in reports:
        if report.held_by:
            say(f"  {report.table}: held by {', '.join(report.held_by)}; --drop-refs removes these branches and tags")
    snapshots = sum(report.snapshots for report in reports)
    if not is_found:
        users = [*map(str, arguments.users), *(f"--key {key}" for key in arguments.key)]
        say(f"no table holds {'this user' if len(users) == 1 else 'any of these users'}: {', '.join(users)}")
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
