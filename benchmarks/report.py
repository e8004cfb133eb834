"""The tables of claims, written from `benchmarks/results`, so that no figure is typed by hand.

    python -m benchmarks.report           prints all claims
    python -m benchmarks.report --write   puts them into docs/claims.md, those of HEADLINES into README.md

A claim names its rows by file, claim and variant; its texts are format strings over them. A claim whose rows were not
measured yet is left out and named on stderr.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claim import Claim
from benchmarks.record import RESULTS

README = Path(__file__).resolve().parents[1] / "README.md"
PAGE = README.parent / "docs" / "claims.md"
BEGIN, END = "<!-- claims: .venv/bin/python -m benchmarks.report --write -->", "<!-- end of claims -->"
HEAD = (
    "| claim | ours | hand-written, once per request | the article | measure again | result |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def storage(part: str, rows: Mapping[str, tuple[str, str]], text: str, ours: str, article: str = "") -> Claim:
    """A claim about storage. part: of `benchmarks.storage`."""
    command = f".venv/bin/python -m benchmarks.storage --only {part}"
    return Claim(file=f"storage_{part}", rows=rows, text=text, ours=ours, article=article, command=command)


def training(
    name: str, rows: Mapping[str, tuple[str, str]], text: str, ours: str, article: str = "", **by_hand: Any
) -> Claim:
    """A claim about training. name: of `benchmarks.training`.  by_hand: that field and `hand`."""
    command = f".venv/bin/python -m benchmarks.training --only {name}"
    return Claim(file="training", rows=rows, text=text, ours=ours, article=article, command=command, **by_hand)


def against_by_hand(task: str, *equal: str) -> dict[str, Any]:
    """The fields `by_hand` and `hand` of one task. equal: shapes of equal lengths, in the order of the claim's text."""
    shapes = [*equal, "ragged, news", "ragged, long"]
    shapes += [f"{shape}, length-bucketed" for shape in shapes[-2:]]
    ratios = [f"{{s{number}[value]:.3g}}x" for number in range(len(shapes))]
    return {
        "by_hand": f"{'; '.join(ratios[:-4])}. Ragged: {ratios[-4]} news, {ratios[-3]} long; in length buckets: "
        f"{ratios[-2]}, {ratios[-1]}",
        "hand": {f"s{number}": (f"{task}, {shape}", FASTEST) for number, shape in enumerate(shapes)},
    }


def urls(text: str, ours: str, **rows: tuple[str, str]) -> Claim:
    """A claim about items that are named by URLs."""
    return Claim(file="urls", rows=rows, text=text, ours=ours, command=".venv/bin/python -m benchmarks.urls")


def study(rows: Mapping[str, tuple[str, str]], text: str, ours: str, article: str = "") -> Claim:
    """A claim about quality beside IID; see docs/study.md."""
    return Claim(file="study", rows=rows, text=text, ours=ours, article=article, command="make study")


def serving(text: str, ours: str, *rows: tuple[str, str], module: str = "serving", only: str = "") -> Claim:
    """A claim about serving, its rows named a, b, ... in order.  module: of the benchmarks.  only: a part of it."""
    command = f"OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.{module}" + (only and f" --only {only}")
    return Claim(file=module, rows=dict(zip("abc", rows, strict=False)), text=text, ours=ours, command=command)


FASTEST = "against the fastest by hand"
RATIO = "{a[value]:.3g}x, {a[fraction_of_limit]:.0%} of the store-once limit"
SPREAD = "{a[value]:.3g}x less CPU ({a[spread][0]:.3g} to {a[spread][1]:.3g})"
TWO_RATIOS = "{a[value]:.3g}x; {b[value]:.3g}x less CPU"
BESIDE = "loader beside {} training, wall time"
SORTING = "10-50x, from sorting"
READ = "read one sequence column, {}: {}"
JOIN = "bucket join, 5M x 5M rows, {}: {}"
WRITE = "write BY_REQUEST, {} tokens: {}"
RETRIEVAL = "large catalogue: retrieval, 8 ranks"
APPEND = "by_request against append_one_commit"

CLAIMS = (
    storage(
        "layouts",
        {"a": ("shared_16k", "by_request")},
        "sequence columns, {a[sizes][max_history]:,} tokens, fan-out {a[sizes][fan_out]:.0f}, 3 requests a user that share "
        "history: `BY_REQUEST` against shuffled",
        RATIO,
        SORTING,
    ),
    storage(
        "layouts",
        {"a": ("shared_16k", "sorted")},
        "the same, the published layout (`SORTED`, writer's defaults)",
        "{a[value]:.3g}x",
        SORTING,
    ),
    storage(
        "layouts",
        {"a": ("shared_16k", "sorted_large_pages")},
        "the same, plain lists that any engine reads (`SORTED_LARGE_PAGES`)",
        "{a[value]:.3g}x",
    ),
    storage(
        "layouts",
        {"a": ("one_request_16k", "by_request"), "b": ("one_request_16k", "sorted_large_pages")},
        "one request per user, fan-out {a[sizes][fan_out]:.0f}: `BY_REQUEST`; plain lists",
        RATIO + "; {b[value]:.3g}x",
    ),
    storage(
        "layouts",
        {"a": ("short_history", "by_request")},
        "short histories ({a[sizes][max_history]} tokens), fan-out {a[sizes][fan_out]:.0f}: `BY_REQUEST`",
        RATIO,
    ),
    storage(
        "features",
        {
            "a": ("count of every request, ids in order", "by position"),
            "b": ("count of every request, ids in order", "stored keys"),
        },
        "one integer feature for all of {a[sizes][requests]:,} requests, bytes written over bytes of the values",
        "{a[value]:.4g}x by position, {b[value]:.2g}x with stored keys",
    ),
    storage(
        "read",
        {
            "a": (READ.format("whole", "CPU time"), "by_request_whole against sorted_whole"),
            "b": (READ.format("whole", "peak memory"), "by_request_whole against sorted_whole"),
        },
        "reading one {a[sizes][max_history]:,}-token sequence column whole, against the sorted list table",
        SPREAD + ", {b[value]:.3g}x less peak memory",
    ),
    *(
        storage(
            "write",
            {
                "a": (WRITE.format(name, "CPU time"), APPEND),
                "b": (WRITE.format(name, "peak memory"), APPEND),
            },
            "writing `BY_REQUEST`, {a[sizes][max_history]:,} tokens, fan-out {a[sizes][fan_out]:.0f}, against pyiceberg's "
            "`append` of the same rows as sorted lists",
            SPREAD + ", {b[value]:.2g}x less peak memory",
        )
        for name in ("16k", "2k", "64")
    ),
    *(
        storage(
            "join",
            {
                "t": (JOIN.format(content, "wall time"), "reqdedup against best_full"),
                "c": (JOIN.format(content, "CPU time"), "reqdedup against best_full"),
                "m": (JOIN.format(content, "peak memory"), "reqdedup against best_full"),
                "k": (JOIN.format(content, "wall time"), "reqdedup_compact against best_full"),
                "b": (JOIN.format(content, "wall time"), "reqdedup against best_per_bucket"),
                "bm": (JOIN.format(content, "peak memory"), "reqdedup against best_per_bucket"),
            },
            "bucket join of {t[sizes][rows]:,} rows with as many, " + content + ", against the best full hash join of "
            "DuckDB, Polars and Acero",
            "{t[value]:.3g}x less time ({t[spread][0]:.3g} to {t[spread][1]:.3g}; {k[value]:.3g}x with compact encodings), "
            "{c[value]:.3g}x less CPU, {m[value]:.3g}x less peak memory; against the best of them run per bucket "
            "{b[value]:.3g}x less time, where the least peak memory is {bm[value]:.2g}x ours",
        )
        for content in ("scalars only", "histories of 64 events")
    ),
    storage(
        "write",
        {"a": ("write BY_REQUEST, a log 10 times as long: peak memory", "buckets in proportion")},
        "peak memory of writing a log 10 times as long, buckets in proportion",
        "{a[value]:.3g}x",
    ),
    storage(
        "maintenance",
        {"a": ("one user deleted: files rewritten", "main table")},
        "one user deleted: files rewritten, of {a[table_files]} in {a[sizes][buckets]} buckets",
        "{a[files]}, all of the user's bucket; {a[value]:.1%} of the bytes",
    ),
    training(
        "retrieval_step",
        {
            "a": ("retrieval step, fan-out 8, 2048 rows", "reqdedup"),
            "b": ("retrieval step, fan-out 256, 4096 rows", "reqdedup"),
        },
        "retrieval step (forward, backward, optimiser), history 64, against the duplicated model: fan-out 8; 256",
        TWO_RATIOS,
        **against_by_hand("retrieval step", "equal, fan-out 8", "equal, fan-out 256"),
    ),
    training(
        "ranking_step",
        {"a": ("ranking step, 10 candidates", "reqdedup"), "b": ("ranking step, 128 candidates", "reqdedup")},
        "ranking step, DCAT at L = 512, against the sensible duplicated model: 10 candidates; 128",
        TWO_RATIOS,
        "2x",
        **against_by_hand("ranking step", "equal, 10 candidates", "equal, 128 candidates"),
    ),
    training(
        "retrieval_and_ranking_end_to_end",
        {"a": ("retrieval end to end, fan-out 64", "reqdedup")},
        "retrieval end to end, table on disk and loader included, history 512, fan-out 64, against reading and training row "
        "by row",
        SPREAD,
        "4x",
    ),
    training(
        "retrieval_and_ranking_end_to_end",
        {
            "a": ("ranking end to end, fan-out 10", "reqdedup"),
            "b": ("ranking end to end, fan-out 128", "reqdedup"),
        },
        "ranking end to end, the same, history 512: fan-out 10; 128",
        TWO_RATIOS,
        "2.8x",
    ),
    training(
        "scoring",
        {"a": ("scoring 500, context kept", "reqdedup")},
        "scoring 500 candidates with a kept context, against the duplicated model",
        SPREAD,
        "7x",
        **against_by_hand("scoring", "equal, 500 candidates"),
    ),
    training(
        "loader",
        {
            "a": (BESIDE.format("retrieval"), "with the loader"),
            "b": (BESIDE.format("ranking"), "with the loader"),
            "c": ("loader alone, retrieval columns", "loader alone"),
        },
        "throughput with the loader, of that of the trainer alone: retrieval at fan-out 256; ranking at 10; the loader by itself",
        "{a[value]:.0%}; {b[value]:.0%}; {c[rows_per_s]:,.0f} rows/s on one core",
    ),
    training(
        "break_even",
        {
            "a": ("break-even, ranking, fan-out 1", "reqdedup"),
            "b": ("break-even, retrieval, fan-out 1", "reqdedup"),
            "c": ("break-even, ranking, fan-out 2", "reqdedup"),
            "d": ("break-even, ranking, fan-out 40", "reqdedup"),
            "e": ("break-even, ranking, fan-out 1000", "reqdedup"),
        },
        "break-even, one row a request: ranking; retrieval. Ranking step at fan-out 2; 40; 1,000",
        "{a[value]:.2f}x; {b[value]:.2f}x. {c[value]:.2g}x; {d[value]:.2g}x; {e[value]:.0f}x",
    ),
    training(
        "share_context",
        {
            "a": ("shared context, 5 requests a user", "reqdedup"),
            "b": ("shared context, 20 requests a user", "reqdedup"),
            "c": ("shared context, whole step, 20 a user", "step"),
        },
        '`share_context="user"`, context pass against one per request: 5 requests a user; 20; the whole step at 20',
        "{a[value]:.2g}x; {b[value]:.2g}x; {c[value]:.2g}x less CPU",
    ),
    *(
        study(
            {"a": (ranks, "sorted"), "b": (ranks, "sorted + sync"), "c": (ranks, "all: sync + shuffle + chunks of 8")},
            "ranking, AUC against IID at equal rows, {a[sizes][ranks]} ranks ([docs/study.md](docs/study.md)): sorted; with "
            "SyncBatchNorm; with shuffled chunks of 8 too",
            "{a[value]:+.1f}%; {b[value]:+.2f}%; {c[value]:+.2f}% ({c[spread][0]:+.2f} to {c[spread][1]:+.2f})",
            "recovered by SyncBatchNorm",
        )
        for ranks in ("large catalogue: ranking, 8 ranks", "large catalogue: ranking, 32 ranks")
    ),
    study(
        {
            "a": (RETRIEVAL, "sorted"),
            "b": (RETRIEVAL, "sorted + mask"),
            "c": (RETRIEVAL, "all: sync + mask + shuffle + gather + chunks of 4"),
        },
        "retrieval, mean log-rank against IID at equal rows, nats, less is better: sorted; with the user mask alone; all fixes",
        "{a[value]:+.2f}; {b[value]:+.2f}; {c[value]:+.3f} ({c[spread][0]:+.3f} to {c[spread][1]:+.3f})",
        "recovered by the user mask",
    ),
    study(
        {"a": ("large catalogue: retrieval, 64 passes per step", "whole requests, rates x 1")},
        "the same at equal user-tower passes, whole requests shuffled, all fixes",
        "{a[value]:+.2f} ({a[spread][0]:+.2f} to {a[spread][1]:+.2f})",
    ),
    *(
        serving(
            f"ranking, {shape}, users that come back: kept contexts against one per request, fast; deterministic",
            TWO_RATIOS,
            *((f"kept, {shape}", f"{mode}{step}") for mode in ("fast", "deterministic")),
        )
        for length in (512, 2048)
        for shape, step in ((f"L {length}, 10 candidates", ", 8 a step"), (f"L {length}, 100 candidates", ""))
    ),
    serving(
        "ranking, L 512, 100 candidates, against the core of a server by hand that keeps contexts: one request a step; 8",
        "{a[value]:.2f}x; {b[value]:.2f}x",
        *(("by hand, L 512, 100 candidates", f"fast{step}") for step in ("", ", 8 a step")),
    ),
    serving(
        "retrieval, {a[sizes][items]:,} items of {a[sizes][width]} dimensions against exact search; recall@100; index opened",
        "{a[value]:.3g}x less CPU; {b[value]:.2f}; {c[value]:.2g} ms",
        ("retrieval, clustered vectors, beside faiss flat", "approximate"),
        *(("retrieval, clustered vectors", variant) for variant in ("recall@100", "index opened")),
        module="serving_retrieval",
    ),
    serving(
        "a kept user state against the whole user tower, 64; 512 events",
        TWO_RATIOS,
        *((f"user state kept, {events} events: head", "head") for events in (64, 512)),
        module="serving_retrieval",
        only="state",
    ),
    serving(
        "windowed SSD, {a[sizes][candidates]} candidates of {a[sizes][width]} dimensions, {a[sizes][picks]} picks: "
        "against pyversity; against a QR at every pick",
        TWO_RATIOS,
        *((f"windowed SSD, beside {rival}", "reqdedup") for rival in ("pyversity", "its definition")),
        module="rerank",
    ),
    urls(
        "items by URL per true page, {a[sizes][urls]:,} URLs of {a[sizes][domains]} sites: rules learned with stable "
        "fingerprints; with 5% unstable ones; w3lib; w3lib without utm_",
        "{a[value]:.3f}, {a[false_merges]} false merges; {b[value]:.3f}, {b[false_merges]}; {c[value]:.2f}, "
        "{c[false_merges]}; {d[value]:.2f}, {d[false_merges]}",
        a=("items per page, stable fingerprints", "reqdedup"),
        b=("items per page, 5% unstable fingerprints", "reqdedup"),
        c=("items per page, others", "w3lib"),
        d=("items per page, others", "w3lib without utm_"),
    ),
    urls(
        "pages looked at to learn them, against tests without an early end, which give the same rules; look-ups",
        "{a[value]:.2f}x; {b[value]:,.0f} URLs/s a core",
        a=("renders, stable fingerprints", "reqdedup"),
        b=("look-ups", "reqdedup"),
    ),
)

HEADLINES = (
    "sequence columns, ",
    "bucket join of {t[sizes][rows]:,} rows with as many, histories",
    "ranking end to end, ",
    "ranking, AUC against IID at equal rows, {a[sizes][ranks]} ranks",
    "ranking, L 512, 100 candidates, users that come back",
)
"""Beginnings of the texts of the claims that stand in README.md too; the first claim that begins so."""


def headlines() -> list[Claim]:
    """The claims of HEADLINES, in that order."""
    return [next(claim for claim in CLAIMS if claim.text.startswith(start)) for start in HEADLINES]


def table(folder: Path = RESULTS, claims: Sequence[Claim] = CLAIMS) -> str:
    """The table of these claims, of those that were measured, as Markdown."""
    lines = [HEAD]
    lines += [line for claim in claims if (line := claim.line(folder)) is not None]
    return "\n".join(lines)


def with_table(document: Path, folder: Path = RESULTS) -> str:
    """The document, README or PAGE, with its table between its two marks. Raises ValueError if they are not there."""
    found = document.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(found):
        raise ValueError(
            f"{document.name}: the marks {BEGIN} and {END} required, found none; put them where the table belongs"
        )
    if document == README:
        text = table(folder, headlines())
    else:  # its links begin in docs/
        text = table(folder).replace("](benchmarks/", "](../benchmarks/").replace("](docs/", "](")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into README.md and docs/claims.md, between their marks")
    if parser.parse_args(argv).write:
        for document in (README, PAGE):
            document.write_text(with_table(document))
    else:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
