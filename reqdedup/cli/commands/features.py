"""`reqdedup features`: what is staged, published and tagged in feature tables, and the way on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reqdedup.cli.catalog import load_table, load_tables, open_catalog
from reqdedup.cli.options import Group, OneOf, Options, apply_option, engine_option, option, subcommand, table_option
from reqdedup.cli.output import ProgressLine, counted, format_bytes, format_table, print_json, say

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

    from reqdedup.storage import StagedFeature

SIDE = "the feature table"


@subcommand(
    "list",
    help="features, what is staged, and tags",
    description="Of a feature table, or of all feature tables of an engagement table.",
    examples=["reqdedup features list --table movies.engagements_by_request"],
)
@table_option("a feature table, or the table that the features are of")
def list_features(arguments: Options) -> int:
    """Print features, staged versions and tags."""
    from reqdedup.storage import feature_tables_of
    from reqdedup.storage.read.feature_table import is_feature_table

    table = load_table(open_catalog(arguments), arguments.table)
    sides = [table] if is_feature_table(table) else list(feature_tables_of(table))
    found = [_described(side) for side in sides]
    if arguments.json:
        print_json(found)
        return 0
    if not found:
        say(f"{arguments.table}: no feature tables beside it")
    for one in found:
        keys = "by position" if one["by_position"] else "with keys"
        say(f"{one['table']} (of {one['main_table']}, {keys}): {counted(one['buckets'], 'bucket')}")
        say(format_table(["feature", "type", "doc"], [[f["name"], f["type"], f["doc"]] for f in one["features"]]))
        say(f"  staged: {', '.join(one['staged']) or 'nothing'}; tags: {', '.join(one['tags']) or 'none'}")
    return 0


def _described(side: Table) -> dict[str, Any]:
    from reqdedup.storage import staged_features, tags
    from reqdedup.storage.read.feature_table import MAIN_TABLE_PROPERTY, feature_buckets, feature_schema, is_by_position

    current = side.current_snapshot()
    return {
        "table": ".".join(side.name()),
        "main_table": side.properties.get(MAIN_TABLE_PROPERTY),
        "by_position": is_by_position(side),
        "buckets": feature_buckets(side),
        "snapshot_id": current.snapshot_id if current is not None else None,
        "features": [
            {"name": one.name, "type": f"{one.kind.value} {one.dtype}", "doc": one.doc}
            for one in feature_schema(side).features
        ],
        "staged": staged_features(side),
        "tags": tags(side),
    }


@subcommand(
    help="check a staged feature and make it what readers see",
    description="One commit. If a check fails, or another version was published meanwhile, nothing changes.",
    examples=["reqdedup features publish --table movies.request_features --name daily --tag 2026-02-01"],
)
@table_option(SIDE)
@option("--name", required=True, metavar="NAME", help="under which it was staged")
@option("--tag", metavar="TAG", help="a name for this version")
def publish(arguments: Options) -> int:
    """Check and publish a staged feature."""
    staged = _staged(open_catalog(arguments), arguments)
    checks = staged.check()
    snapshot_id = staged.publish(tag=arguments.tag)
    if arguments.json:
        print_json({"table": arguments.table, "name": arguments.name, "snapshot_id": snapshot_id, "checks": checks})
        return 0
    say(format_table(["check", "found"], [[name, result.detail] for name, result in checks.items()]))
    say(f"{arguments.table}: {arguments.name} published as snapshot {snapshot_id}")
    return 0


@subcommand(
    help="forget a staged feature",
    description="The staged version is gone for good; readers never saw it.",
    examples=["reqdedup features drop --table movies.request_features --name daily --apply"],
)
@table_option(SIDE)
@option("--name", required=True, metavar="NAME", help="under which it was staged")
@apply_option()
def drop(arguments: Options) -> int:
    """Forget a staged feature, or say what would go."""
    staged = _staged(open_catalog(arguments), arguments)
    if arguments.apply:
        staged.drop()
    if arguments.json:
        said = {"name": arguments.name, "snapshot_id": staged.snapshot_id, "dry_run": not arguments.apply}
        print_json({"table": arguments.table, **said})
        return 0
    say(
        f"{arguments.table}: {arguments.name} (snapshot {staged.snapshot_id}) "
        f"{'gone' if arguments.apply else 'would go'}"
    )
    if not arguments.apply:
        say("nothing was changed: --apply does it")
    return 0


@subcommand(
    help="give the version that readers see a name",
    description="A tag keeps its version, files and all, from expiring.",
    examples=["reqdedup features tag --table movies.request_features --tag 2026-02-01"],
)
@table_option("any table")
@option("--tag", required=True, metavar="TAG", help="its name")
def tag(arguments: Options) -> int:
    """Tag the newest version of a table."""
    from reqdedup import storage

    return _say_version(
        arguments, storage.tag(load_table(open_catalog(arguments), arguments.table), arguments.tag), "is"
    )


@subcommand(
    help="make a tagged version what readers see",
    description="Rows and columns of that version, in one commit; the versions since stay until they expire.",
    examples=["reqdedup features rollback --table movies.request_features --tag 2026-02-01"],
)
@table_option("any table")
@option("--tag", required=True, metavar="TAG", help="of the version")
def rollback(arguments: Options) -> int:
    """Go back to a tagged version."""
    from reqdedup.storage import rollback_to

    table = load_table(open_catalog(arguments), arguments.table)
    return _say_version(arguments, rollback_to(table, arguments.tag), "back at")


@subcommand(
    help="carry values over to the requests that are there now",
    description="After requests came or went in the main table. `reqdedup expire` does it by itself where it must.",
    examples=["reqdedup features realign --table movies.request_features"],
)
@table_option(SIDE)
@engine_option()
def realign(arguments: Options) -> int:
    """Align a feature table with the requests of its main table."""
    from reqdedup import storage

    catalog = open_catalog(arguments)
    side = load_table(catalog, arguments.table)
    with ProgressLine() as progress:
        report = storage.realign(
            _main_table(catalog, side),
            side,
            progress=lambda done, total: progress("realign", done, total),
            engine=arguments.engine,
        )
    if arguments.json:
        print_json({"table": arguments.table, **vars(report), **progress.totals.figures})
    else:
        say(
            f"{arguments.table}: {report.requests:,} requests in {counted(report.files, 'file')}, "
            f"{format_bytes(report.bytes)}"
        )
    return 0


@subcommand(
    help="make features columns of the main table",
    description="The main table is written once for any number of features, bucket by bucket, and switched to in one "
    "commit. A run that was ended goes on where it was.",
    examples=["reqdedup features promote --table movies.engagements_by_request --from movies.request_features"],
)
@table_option("the table that gets the columns")
@option("--from", "sides", multiple=True, required=True, metavar="NAMESPACE.NAME", help=f"{SIDE}; repeat it")
@option("--columns", variadic=True, metavar="NAME...", help="of the feature tables (default: all)")
@option(
    "--missing", type=OneOf(("error", "null")), default="error", help="where a request has no features (default: error)"
)
@engine_option()
def promote(arguments: Options) -> int:
    """Fold features into the main table."""
    from reqdedup import storage

    catalog = open_catalog(arguments)
    main_table = load_table(catalog, arguments.table)
    with ProgressLine() as progress:
        report = storage.promote(
            main_table,
            load_tables(catalog, arguments.sides),
            columns=arguments.columns or None,
            missing=arguments.missing,
            progress=lambda done, total: progress("promote", done, total),
            engine=arguments.engine,
        )
    if arguments.json:
        told = {**vars(report), "checksum": str(report.checksum)}
        print_json({"table": arguments.table, **told, **progress.totals.figures})
    else:
        say(
            f"{arguments.table}: {counted(len(report.columns), 'new column')} ({', '.join(report.columns)}); "
            f"{report.rows:,} rows, {format_bytes(report.old_bytes)} became {format_bytes(report.bytes)}, "
            f"{report.seconds:.1f} s"
        )
    return 0


BELOW = (list_features, publish, drop, tag, rollback, realign, promote)
COMMANDS = (
    Group(
        "features",
        help="Features that are computed after the fact lie in tables of their own (docs/features.md).",
        short_help="list, publish, drop, tag, roll back, realign and promote features",
        commands={str(one.name): one for one in BELOW},
    ),
)


def _say_version(arguments: Options, snapshot_id: int, verb: str) -> int:
    if arguments.json:
        print_json({"table": arguments.table, "tag": arguments.tag, "snapshot_id": snapshot_id})
    elif verb == "is":
        say(f"{arguments.table}: {arguments.tag} is snapshot {snapshot_id}")
    else:
        say(f"{arguments.table}: {verb} {arguments.tag}, snapshot {snapshot_id}")
    return 0


def _staged(catalog: Catalog, arguments: Options) -> StagedFeature:
    from reqdedup.storage import staged_feature

    side = load_table(catalog, arguments.table)
    return staged_feature(_main_table(catalog, side), side, arguments.name)


def _main_table(catalog: Catalog, side: Table) -> Table:
    from reqdedup.storage.read.feature_table import MAIN_TABLE_PROPERTY, feature_schema

    feature_schema(side)  # a clear error where it is no feature table
    return load_table(catalog, side.properties[MAIN_TABLE_PROPERTY])
