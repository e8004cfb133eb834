"""`reqdedup sample`: whole users of a table, per stratum, as a report or into a table of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from reqdedup.cli.catalog import check_table_name, kept_of_write, load_table, open_catalog, snapshot_of
from reqdedup.cli.options import (
    BUCKETS,
    NUMBER,
    POSITIVE,
    Checked,
    OneOf,
    Options,
    engine_option,
    layout_option,
    option,
    subcommand,
    table_option,
)
from reqdedup.cli.output import (
    ProgressLine,
    counted,
    format_bytes,
    format_table,
    interruptible,
    plain,
    print_json,
    say,
)
from reqdedup.cli.values import MOST_SEED, whole
from reqdedup.cli.values import number as parse_number
from reqdedup.distributed import Totals

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog

    from reqdedup.storage import Activity, UserSample, WriteReport


PER_STRATUM = "for all strata, or STRATUM=NUMBER ('*' for all others); repeat it"


@subcommand(
    help="draw whole users of a table, per stratum",
    description="Users are drawn by a hash of their id: the same in every run, and nested in every larger sample of "
    "the same seed. Without --to nothing is written and the report alone is printed: users, requests, rows and their "
    "concentration before and after. Files without sampled users are not read.",
    examples=[
        "reqdedup sample --table movies.engagements --rate 0.1",
        "reqdedup sample --table movies.engagements --activity 3 10 --rate 'requests <= 3=1' --rate '*=0.2' \\\n"
        "      --max-requests-per-user 50 --to movies.training_sample",
    ],
)
@table_option("the table to draw from")
@option("--rate", multiple=True, metavar="NUMBER", help=f"part of the users, 0 to 1, {PER_STRATUM}")
@option("--target", multiple=True, metavar="NUMBER", help=f"users wanted, {PER_STRATUM}")
@option("--cap", multiple=True, metavar="NUMBER", help=f"users at most, {PER_STRATUM}")
@option(
    "--activity",
    variadic=True,
    type=Checked(whole, least=0),
    metavar="BOUND...",
    help="strata by a user's count, at these bounds",
)
@option("--quantiles", variadic=True, type=NUMBER, metavar="SHARE...", help="strata by shares of the users")
@option(
    "--measure",
    type=OneOf(("requests", "rows")),
    default="requests",
    help="what --activity and --quantiles count (default: requests)",
)
@option("--by", multiple=True, metavar="COLUMN", help="strata by a request-level column")
@option("--max-requests-per-user", type=POSITIVE, metavar="N", help="whole requests of the very active")
@option("--keep", type=OneOf(("hash", "latest")), default="hash", help="which of them (default: hash)")
@option("--seed", type=Checked(whole, least=0, most=MOST_SEED), default=0, metavar="N", help="of the draw (default: 0)")
@option("--to", metavar="NAMESPACE.NAME", help="write the sample into this table")
@option("--replace", is_flag=True, help="a table of that name is replaced")
@layout_option("of that table (default: by_request)")
@option("--buckets", type=BUCKETS, metavar="N", help="of that table (default: as the table's)")
@engine_option()
def sample(arguments: Options) -> int:
    """Draw the sample, write it where that is asked for, and print its report."""
    from reqdedup.storage import Activity, sample_users

    if arguments.activity and arguments.quantiles:
        raise click.UsageError("one of --activity and --quantiles required, found both", click.get_current_context())
    strata: list[Activity | str] = list(arguments.by)
    if arguments.activity or arguments.quantiles:
        bounds, quantiles = tuple(arguments.activity or ()), tuple(arguments.quantiles or ())
        strata.insert(0, Activity(bounds=bounds, quantiles=quantiles, measure=arguments.measure))
    catalog = open_catalog(arguments)
    table = load_table(catalog, arguments.table)
    if arguments.to:
        _check_target(catalog, arguments)
    count = partial(whole, least=0)
    drawn = sample_users(
        table,
        rate=_setting(arguments.rate, partial(parse_number, most=1), "rate"),
        target=_setting(arguments.target, count, "target"),
        cap=_setting(arguments.cap, count, "cap"),
        strata=strata,
        max_requests_per_user=arguments.max_requests_per_user,
        keep=arguments.keep,
        seed=arguments.seed,
    )
    written, totals = _write(catalog, drawn, arguments) if arguments.to else (None, Totals())
    if arguments.json:
        into = None if written is None else {"table": arguments.to, **vars(written), **totals.figures}
        print_json({"table": arguments.table, "strata": plain(drawn.report), "written": into})
        return 0
    say(format_sample(drawn.report))
    if written is not None:
        say(
            f"{arguments.to}: {counted(written.rows, 'row')}, {counted(written.requests, 'request')}, "
            f"{counted(written.users, 'user')}, "
            f"{format_bytes(written.bytes)}"
        )
    return 0


COMMANDS = (sample,)


def _check_target(catalog: Catalog, arguments: Options) -> None:
    check_table_name(arguments.to)
    if arguments.to == arguments.table:
        raise ValueError(f"--to: another table than {arguments.table} required, which the sample is drawn from")
    if catalog.table_exists(arguments.to) and not arguments.replace:
        raise ValueError(
            f"--to: a new table required, found {arguments.to} there; choose another name, or pass --replace"
        )


def _write(catalog: Catalog, sample: UserSample, arguments: Options) -> tuple[WriteReport, Totals]:
    from reqdedup.storage import Layout, replace_table
    from reqdedup.storage.iceberg.layout import table_buckets

    buckets = arguments.buckets or table_buckets(catalog.load_table(arguments.table))
    before = snapshot_of(catalog, arguments.to)
    with ProgressLine() as progress, interruptible(lambda: kept_of_write(catalog, arguments.to, before)):
        report = replace_table(
            catalog,
            arguments.to,
            sample.schema,
            Layout(arguments.layout),
            sample,
            num_buckets=buckets,
            progress=progress,
            engine=arguments.engine,
        )
    return report, progress.totals


def _setting(texts: Sequence[str], kind: Callable[[str], Any], name: str) -> Any:
    """None, one number for all strata, or numbers by stratum; strata have equals signs in their names."""
    if not texts:
        return None
    found: dict[str, Any] = {}
    for text in texts:
        stratum, equals, number = text.rpartition("=")
        stratum = stratum.strip()
        try:
            if equals and not stratum:
                raise ValueError("the name of a stratum required before '=', found none")
            if stratum in found:
                raise ValueError(f"a number once {f'for {stratum}' if stratum else 'for all strata'} required")
            found[stratum] = kind(number)
        except ValueError as error:
            raise ValueError(f"--{name}: NUMBER or STRATUM=NUMBER required, found {text!r}; {error}") from None
    if "" in found and len(found) > 1:
        raise ValueError(
            f"--{name}: one number for all strata, or one for each required, found both; '*' means all others"
        )
    return found.get("", found)


def format_sample(report: pa.Table) -> str:
    """One line per stratum, before -> after, and a last one of all of them."""
    rows = []
    for row in report.to_pylist():
        counts = [f"{row[f'{name}_before']:,} -> {row[f'{name}_after']:,}" for name in ("users", "requests", "rows")]
        shares = [
            f"{_share(row[f'{name}_before'], spec)} -> {_share(row[f'{name}_after'], spec)}"
            for name, spec in (("gini_rows", ".2f"), ("top1_percent_rows", ".1%"))
        ]
        rows.append([row["stratum"], *counts, *shares, row["users_cut"]])
    return format_table(["stratum", "users", "requests", "rows", "gini", "top 1%", "users cut"], rows, indent="")


def _share(value: float | None, spec: str) -> str:
    return "-" if value is None else f"{value:{spec}}"
