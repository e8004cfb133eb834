"""`reqdedup delete-user`: users leave every table of a namespace, and what could not be searched is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reqdedup.cli.arguments import Commands, add_apply, add_command, checked
from reqdedup.cli.catalog import load_tables, open_catalog
from reqdedup.cli.output import ProgressLine, counted, format_bytes, format_table, print_json
from reqdedup.cli.values import key, user_id

if TYPE_CHECKING:
    import argparse

    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

    from reqdedup.storage import DeletionReport

ELSEWHERE = (
    "the log files that were ingested, which bring the users back with the next ingest",
    "models that were trained on the users' rows, and files that were exported",
)


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


@dataclass
class _Scope:
    """tables: to search, by name.  not_searched: names of what else lies beside them, or elsewhere in the catalog."""

    tables: dict[str, Table] = field(default_factory=dict)
    not_searched: list[str] = field(default_factory=list)


def run_delete_user(arguments: argparse.Namespace) -> int:
    """Delete the users, or say what would go."""
    from reqdedup.logs.ids import hash_string
    from reqdedup.storage import delete_user

    if not (arguments.namespace or arguments.table):
        raise ValueError("--namespace or --table required, found neither; name where the users are to be deleted")
    if not (arguments.users or arguments.key):
        raise ValueError("USER_ID or --key required, found neither; name at least one user")
    scope = _scope(open_catalog(arguments), arguments.namespace, arguments.table)
    with ProgressLine() as progress:
        reports = delete_user(
            list(scope.tables.values()),
            [*arguments.users, *map(hash_string, arguments.key)],
            keys=arguments.key,
            dry_run=not arguments.apply,
            drop_refs=arguments.drop_refs,
            erase=arguments.erase,
            progress=lambda name: progress(f"delete-user: {name}"),
        )
    is_found = any(report.rows or report.held_by for report in reports)
    is_erased = arguments.erase and arguments.apply
    if arguments.json:
        print_json(
            {
                "dry_run": not arguments.apply,
                "erased": is_erased,
                "found": is_found,
                "tables": reports,
                "not_searched": [*scope.not_searched, *ELSEWHERE],
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
    for one in [*scope.not_searched, *ELSEWHERE]:
        print(f"  {one}")
    return 0


def _scope(catalog: Catalog, namespaces: list[str], names: list[str]) -> _Scope:
    """All tables of the namespaces, and the named ones with what belongs to them."""
    from reqdedup.storage import feature_tables_of, tables_of
    from reqdedup.storage.read.feature_table import MAIN_TABLE_PROPERTY, is_feature_table

    scope = _Scope()
    beside: set[str] = set()
    for namespace in dict.fromkeys(namespaces):
        found = tables_of(catalog, namespace)
        scope.tables |= {".".join(table.name()): table for table in found.with_users}
        beside |= set(found.others)
    for table in load_tables(catalog, names):
        together = [table]
        if is_feature_table(table):  # its rows follow its main table
            together += load_tables(catalog, [table.properties[MAIN_TABLE_PROPERTY]])
        together += [side for main in together if not is_feature_table(main) for side in feature_tables_of(main)]
        around = tables_of(catalog, ".".join(table.name()[:-1]))
        together += around.rejects
        scope.tables |= {".".join(one.name()): one for one in together}
        beside |= {".".join(one.name()) for one in around.with_users} | set(around.others)
    scope.not_searched = [f"table {name}" for name in sorted(beside - set(scope.tables))]
    searched = {name.rpartition(".")[0] for name in scope.tables} | set(namespaces)
    others = sorted({".".join(name) for name in catalog.list_namespaces()} - searched)
    scope.not_searched += [f"namespace {name}" for name in others]
    return scope


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
