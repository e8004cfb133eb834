"""`reqdedup rerank`: what a slate configuration gives up in relevance and gains in variety, over scored candidates."""

from __future__ import annotations

from dataclasses import asdict

from reqdedup.cli.catalog import load_table, open_catalog
from reqdedup.cli.options import NUMBER, Group, OneOf, Options, option, subcommand, table_option
from reqdedup.cli.output import format_table, print_json, say

WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)


@subcommand(
    help="the relevance-diversity curve of a slate configuration",
    description="Slates of all requests at each weight of one term, beside the order of the scores: mean score and "
    "discounted gain that are left, mean distance and distinct values of a column in a window that are won. The table "
    "holds scored candidates (user_id, request_id, item_id, score, vector and the configuration's columns), as "
    "`scored_candidates` of the graph does.",
    examples=[
        "reqdedup rerank sweep --table laptop.scored_candidates --slate slate.toml --term volume --weight 0 0.5 1"
    ],
)
@table_option("scored candidates")
@option("--slate", required=True, metavar="FILE", help="configuration in TOML, see reqdedup.rerank.config")
@option(
    "--term",
    type=OneOf(("volume", "log_volume", "mmr", "soft_spacing", "prefix_overlap")),
    help="whose weight changes (default: the first of the configuration)",
)
@option(
    "--weight",
    variadic=True,
    type=NUMBER,
    metavar="NUMBER...",
    help=f"weights of the term (default: {' '.join(f'{weight:g}' for weight in WEIGHTS)})",
)
@option("--measure", variadic=True, metavar="COLUMN...", help="columns whose variety is told too")
def sweep(arguments: Options) -> int:
    """Print the curve."""
    from reqdedup.rerank.config import kind_of, load_slate_config
    from reqdedup.rerank.scored import ScoredCandidates
    from reqdedup.rerank.sweep import sweep as sweep_slates
    from reqdedup.rerank.sweep import weight_grid

    config = load_slate_config(arguments.slate)
    if not config.terms:
        raise ValueError(f"{arguments.slate}: a configuration with a term required, found none to change the weight of")
    configs = weight_grid(config, arguments.term or kind_of(config.terms[0]), arguments.weight or WEIGHTS)
    table = load_table(open_catalog(arguments), arguments.table)
    candidates = ScoredCandidates.of(table.scan().to_arrow())
    points = sweep_slates(configs, **candidates.arguments(), measured=arguments.measure or ())
    if arguments.json:
        print_json({"table": arguments.table, "points": [asdict(point) for point in points]})
        return 0
    say(f"{arguments.table}: {points[0].requests:,} requests, slates of at most {config.length}")
    names = list(dict.fromkeys(name for point in points for name in point.figures))
    say(
        format_table(
            ["", *names], [[p.name, *(f"{p.figures.get(n, float('nan')):.4f}" for n in names)] for p in points]
        )
    )
    return 0


COMMANDS = (
    Group(
        "rerank",
        help="Slates are composed of scored candidates by terms and rules from a TOML file.",
        short_help="weigh relevance against variety",
        commands={"sweep": sweep},
    ),
)
