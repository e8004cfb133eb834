"""`reqdedup score`: the logits of every row of a table, by a ranking model's bundle."""

from __future__ import annotations

import click

from reqdedup.cli.catalog import load_table, open_catalog
from reqdedup.cli.options import Options, option, subcommand
from reqdedup.cli.output import print_json, say


@subcommand(
    help="score every row of a table with a ranking model",
    description="A context is computed once per request, or extended from the user's earlier one; the logits have the "
    "bits that a server gives. TABLE must have the columns of the bundle's signature. The file, or the new table, "
    "holds user_id, request_id, item_id and a logit for each label, and stands there whole or not at all.",
    examples=[
        "reqdedup score laptop.training_sample --bundle bundles/ranking --out scores.parquet",
        "reqdedup score laptop.training_sample --bundle bundles/ranking --to laptop.scores",
    ],
)
@click.argument("table", metavar="NAMESPACE.NAME")
@option(
    "--bundle", required=True, metavar="FOLDER", help="of the ranking model, as training or `reqdedup export` wrote it"
)
@option("--out", metavar="FILE", help="the Parquet file to write; one that is there is replaced")
@option("--to", metavar="NAMESPACE.NAME", help="the table to create instead, in one commit; one that is there stays")
def score(arguments: Options) -> int:
    """Score the table and say how much."""
    from pathlib import Path

    from reqdedup.models import Bundle
    from reqdedup.serving.ranking.ranker import Ranker
    from reqdedup.serving.ranking.scoring import score as score_table
    from reqdedup.serving.ranking.scoring import score_into
    from reqdedup.storage import TableSource

    if (arguments.out is None) == (arguments.to is None):
        found = "none" if arguments.out is None else "both"
        raise ValueError(f"either --out FILE or --to NAMESPACE.NAME required, found {found}")
    catalog = open_catalog(arguments)
    source, ranker = TableSource(load_table(catalog, arguments.table)), Ranker.of(Bundle.load(arguments.bundle))
    if arguments.to is not None:
        out, scored = arguments.to, score_into(ranker, source, catalog, arguments.to)
    else:
        out, scored = arguments.out, score_table(ranker, source, Path(arguments.out))
    if arguments.json:
        print_json({"table": arguments.table, "bundle": arguments.bundle, "out": out, **vars(scored)})
    else:
        say(
            f"{out}: {scored.rows:,} rows of {scored.requests:,} requests, "
            f"{scored.reuse:.0%} of the contexts kept or extended"
        )
    return 0


COMMANDS = (score,)
