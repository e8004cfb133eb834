"""`reqdedup delete-user`: users leave every table of a namespace, and what could not be searched is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reqdedup.cli.arguments import Commands, add_apply, add_command, checked
from reqdedup.cli.catalog import lake_of
from reqdedup.cli.output import ProgressLine, counted, format_bytes, format_table, print_json
from reqdedup.cli.values import key, user_id

if TYPE_CHECKING:
    import argparse

    from reqdedup.storage import DeletionReport


def add_commands(commands: Commands) -> None:
    command = add_command(
        commands,
        "delete-user",
        run_delete_user,
        help="delete users from every table, feature table and rejected row",
        description="Rewrite the files that hold the users, and no other, without them: engagement tables of any layout, "
        "feature tables, and the texts of rejected rows. Old snapshots hold the users until they expire; --erase expires "
        "them at once, so that no byte is left on disk. Tables that could not be searched are named.",
        examples=[
            "reqdedup delete-user 4711 --namespace movies",
            "reqdedup delete-user --key U13740 --namespace news --apply --erase --drop-refs",
        ],
    )
    command.add_argument(
        "users", nargs="*", type=checked(user_id), metavar="USER_ID", help="user_id as the tables have it"
    )
    command.add_argument(
        "--key",
        type=checked(key),
        action="append",
        default=[],
        metavar="TEXT",
        help="original id of a log with ids of text; repeat it",
    )
    command.add_argument(
        "--namespace", action="append", default=[], metavar="NAME", help="all tables in it; repeat it for more"
    )
    command.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAMESPACE.NAME",
        help="this table, its feature tables and the rejected rows beside it; repeat it for more",
    )
    command.add_argument("--erase", action="store_true", help="expire all old snapshots at once; their readers fail")
    command.add_argument("--drop-refs", action="store_true", help="remove branches and tags that hold the users")
    add_apply(command)


def run_delete_user(arguments: argparse.Namespace) -> int:
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
    print(_format(reports))
    for report in reports:
        if report.held_by:
            print(f"  {report.table}: held by {', '.join(report.held_by)}; --drop-refs removes these branches and tags")
    snapshots = sum(report.snapshots for report in reports)
    if not is_found:
        users = [*map(str, arguments.users), *(f"--key {key}" for key in arguments.key)]
        print(f"no table holds {'this user' if len(users) == 1 else 'any of these users'}: {', '.join(users)}")
    if is_found and not arguments.apply:
        print("nothing was changed: --apply does it, --apply --erase also frees the bytes")
    elif snapshots and not is_erased:
        hold = "hold them still" if is_found else "may hold them, and were not searched"
        print(f"up to {counted(snapshots, 'old snapshot')} {hold}: `reqdedup expire`, or again with --apply --erase")
    print("not searched:")
    for one in done.not_searched:
        print(f"  {one}")
    return 0


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
