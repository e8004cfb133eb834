"""What is claimed of training, from the rows of `benchmarks.training`, of `training_by_hand` and of the study."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from benchmarks.claim import Claim


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


def study(rows: Mapping[str, tuple[str, str]], text: str, ours: str, article: str = "") -> Claim:
    """A claim about quality beside IID; see docs/study.md."""
    return Claim(file="study", rows=rows, text=text, ours=ours, article=article, command="make study")


def movielens(task: str, by: str, metric: str, words: str, *rivals: str, histories: str = "all") -> Claim:
    """A claim about quality on MovieLens-100K, four seeds. by: what is held out, time or user.  words: what the metric
    is.  rivals: baselines beside it; by user each seed has its own users.  histories: a slice of them."""
    held_out = {"time": "the last fifth by time", "user": "a fifth of the users, another for each seed"}[by]
    claim = f"MovieLens-100K, {task}, split by {by}, {histories}: {metric}"
    rows = {f"s{seed}": (claim, f"seed {seed}") for seed in range(4)}
    places = MOVIELENS_PLACES[task]
    ours = [", ".join(f"{{{name}[value]:.{places}f}}" for name in rows)]
    text = f"MovieLens-100K, each rating a request, {held_out}, {words}: four seeds"
    if by == "time":
        beside = rivals[0] if task == "ranking" else "EASE"
        text += "; the mean of their scores" if task == "ranking" else "; the four side by side"
        ours += [f"{{mean[value]:.{places}f}} ({{mean[spread][0]:.{places}f}} to {{mean[spread][1]:.{places}f}})"]
        over = f"mean[gain_over][{beside}]"
        text += f", and what it is above {beside}"
        ours += [f"{{{over}[0]:+.{places}f}} ({{{over}[1]:+.{places}f}} to {{{over}[2]:+.{places}f}})"]
        rows |= {"mean": (claim, "mean of 4 seeds")}
    for rival in rivals:
        seeds = list(rows)[: 4 if by == "user" else 1]
        ours.append(", ".join(f"{{{name}[baselines][{rival}]:.{places}f}}" for name in seeds))
    return Claim(
        file="movielens_quality",
        rows=rows,
        text="; ".join((text, *rivals)),
        ours="; ".join(ours),
        command=f".venv/bin/python -m benchmarks.movielens_quality ml-100k --by {by} --task {task}"
        + (" --python sasrec/bin/python" if "GBM" in rivals else ""),
    )


def sasrec(by: str) -> Claim:
    """A claim about NDCG and the CPU that it took, beside an independent SASRec. by: what is held out, time or user."""
    claim = f"MovieLens-100K, beside an independent SASRec, split by {by}, all: ndcg_at_10_unseen"
    variants = {
        "two-tower": [f"two-tower, {epochs} epochs" for epochs in (5, 10, 30)],
        "SASRec from all ratings": [f"SASRec, all ratings, {epochs} epochs" for epochs in (10, 20, 40, 80)],
        "from those of 3 and more": [f"SASRec, ratings of 3 and more, {epochs} epochs" for epochs in (10, 20, 40, 80)],
    }
    names = {variant: f"v{number}" for number, variant in enumerate(chain(*variants.values()))}
    ours = [
        ", ".join(f"{{{names[one]}[value]:.3f}} after {{{names[one]}[cpu_s]:.0f}} s" for one in of)
        for of in variants.values()
    ]
    held_out = {"time": "the last fifth by time", "user": "a fifth of the users"}[by]
    return Claim(
        file="movielens_sasrec",
        rows={name: (claim, variant) for variant, name in names.items()},
        text=f"MovieLens-100K, each rating a request, {held_out}, NDCG at 10 of items not seen before and the CPU of the "
        f"training: {'; '.join(variants)}",
        ours="; ".join(ours),
        command=f".venv/bin/python -m benchmarks.movielens_sasrec ml-100k --python sasrec/bin/python --by {by}",
    )


MOVIELENS_PLACES = {"ranking": 4, "retrieval": 3}
FASTEST = "against the fastest by hand"
SPREAD = "{a[value]:.3g}x less CPU ({a[spread][0]:.3g} to {a[spread][1]:.3g})"
TWO_RATIOS = "{a[value]:.3g}x; {b[value]:.3g}x less CPU"
BESIDE = "loader beside {} training, wall time"
RANKING, RETRIEVAL = "large catalogue: ranking, 4 ranks", "large catalogue: retrieval, 4 ranks"

CLAIMS = (
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
        "retrieval end to end, table on disk and loader included, history 512, fan-out 64, against reading and "
        "training row by row",
        SPREAD,
        "4x",
    ),
    training(
        "retrieval_and_ranking_end_to_end",
        {
            "a": ("ranking end to end, fan-out 10", "reqdedup"),
            "b": ("ranking end to end, fan-out 128", "reqdedup"),
        },
        "ranking end to end, against reading and training row by row, history 512: fan-out 10; 128",
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
        "throughput with the loader, of that of the trainer alone: retrieval at fan-out 256; ranking at 10; the "
        "loader by itself",
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
    training(
        "last_event",
        {
            "a": ("last layer at the last event, 1 layers, 128 histories of 64", "reqdedup"),
            "b": ("last layer at the last event, 1 layers, 16 histories of 512", "reqdedup"),
            "c": ("last layer at the last event, 2 layers, 128 histories of 64", "reqdedup"),
            "d": ("last layer at the last event, 2 layers, 16 histories of 512", "reqdedup"),
            "e": ("last layer at the last event, 2 layers, 32 requests a history", "reqdedup"),
        },
        'user tower with `pooling = "last"`, its last layer at these events, against at all of them: one layer, '
        "histories of 64 events; of 512; two layers; of 512; 32 requests that share a history",
        "{a[value]:.2f}x; {b[value]:.2f}x; {c[value]:.2f}x; {d[value]:.2f}x; {e[value]:.2f}x less CPU",
    ),
    study(
        {
            "a": (RANKING, "sorted"),
            "b": (RANKING, "sorted + sync"),
            "c": (RANKING, "default: sync + shuffle"),
        },
        "ranking (DCAT), AUC against IID at equal rows, {a[sizes][ranks]} ranks ([docs/study.md](docs/study.md)): sorted; "
        "with SyncBatchNorm; the default, shuffled requests too",
        "{a[value]:+.1f}%; {b[value]:+.2f}%; {c[value]:+.2f}% ({c[spread][0]:+.2f} to {c[spread][1]:+.2f})",
        "recovered by SyncBatchNorm",
    ),
    study(
        {
            "a": (RETRIEVAL, "sorted"),
            "b": (RETRIEVAL, "sorted + mask"),
            "c": (RETRIEVAL, "default: sync + mask + shuffle + gather"),
        },
        "retrieval (two-tower), mean log-rank against IID at equal rows, nats, less is better: sorted; with the user "
        "mask alone; the default",
        "{a[value]:+.2f}; {b[value]:+.2f}; {c[value]:+.3f} ({c[spread][0]:+.3f} to {c[spread][1]:+.3f})",
        "recovered by the user mask",
    ),
    study(
        {
            "a": (
                "large catalogue: retrieval, 64 passes per step",
                "default: sync + mask + shuffle + gather, rates x 10",
            )
        },
        "the same at equal user-tower passes, the default, both at the best of three rates",
        "{a[value]:+.2f} ({a[spread][0]:+.2f} to {a[spread][1]:+.2f})",
    ),
    *(
        movielens("ranking", by, "auc_click", words, "item + user mean", "kNN on residuals", "GBM", histories=histories)
        for by in ("time", "user")
        for histories, words in (("all", "AUC of a good rating"), ("history under 5", "AUC, histories under 5 events"))
    ),
    Claim(
        file="model_order_order",
        rows={
            name: ("a log whose order says what is liked now, seed 0: AUC", variant)
            for name, variant in (("a", "DCAT"), ("b", "early ranker"), ("c", "bag of items"))
        },
        text="a synthetic log whose order says what is liked now, AUC of a click: DCAT; early ranker; the same with a bag "
        "of items for its transformer; the first less the last",
        ours="{a[value]:.3f}; {b[value]:.3f}; {c[value]:.3f}; {a[gain][1]:.3f} ({a[gain][2]:.3f} to {a[gain][3]:.3f})",
        command=".venv/bin/python -m benchmarks.model_order --only order --seeds 1",
    ),
    Claim(
        file="model_order_labels",
        rows={
            name: ("labels of a tenth of the users, seed 0: AUC", variant)
            for name, variant in (
                ("a", "foundation"),
                ("b", "from scratch"),
                ("c", "foundation, its part at a tenth of the rate"),
            )
        },
        text="the same log, labels of a tenth of the users: DCAT that begins with a foundation model; from random weights; "
        "the first less the second; with the foundation's part at a tenth of the rate",
        ours="{a[value]:.3f}; {b[value]:.3f}; {a[gain][1]:.3f} ({a[gain][2]:.3f} to {a[gain][3]:.3f}); {c[value]:.3f}",
        command=".venv/bin/python -m benchmarks.model_order --only labels --seeds 1 --users 2000",
    ),
    Claim(
        file="model_variants_context",
        rows={
            name: ("clicks of requests about a category, seed 0: recall@100 among 2,000 items", variant)
            for name, variant in (
                ("a", "with the logged one"),
                ("b", "without a context"),
                ("c", "with the logged one, no context"),
                ("d", "with the logged one, shuffled context"),
            )
        },
        text="retrieval for requests about one category, synthetic, recall at 100 of 2,000 items: two-tower with a "
        "context; trained without one; the first with none; with another request's",
        ours="{a[value]:.3f}; {b[value]:.3f}; {c[value]:.3f}; {d[value]:.3f}",
        command=".venv/bin/python -m benchmarks.model_variants --only context --seeds 1 --users 2000 --steps 300",
    ),
    *(
        Claim(
            file="model_variants_conversions",
            rows={
                name: (f"purchases of held-out users, seed {seed}: recall@100 among 2,000 items", variant)
                for name, variant in (
                    ("a", "purchases alone"),
                    ("b", "with clicks"),
                    ("c", "with clicks, a head each"),
                    ("d", "with advertisers"),
                    ("e", "with both"),
                    ("f", "with both and own negatives"),
                    ("g", "with both, parallel"),
                )
            },
            text=f"purchases, 2% of the clicks, synthetic, seed {seed}, recall at 100 of 2,000 items, equal parameters: "
            "purchases alone; with clicks by duration; those with a head each; a loss over advertisers; both; with the "
            "request's own negatives; with cross layers",
            ours="; ".join(f"{{{name}[value]:.3f}}" for name in "abcdefg"),
            command=".venv/bin/python -m benchmarks.model_variants --only conversions",
        )
        for seed in range(2)
    ),
    Claim(
        file="model_variants_int8",
        rows={
            name: ("tables of items and events in 8 bits, seed 0", variant)
            for name, variant in (("a", "error of a logit"), ("b", "AUC that is lost"), ("c", "bytes of the tables"))
        },
        text="DCAT that began with a foundation model, its tables of items and events in 8 bits: error of a logit in its "
        "standard deviations; AUC that is lost; bytes of the tables in those of float32",
        ours="{a[value]:.4f}; {b[value]:.5f}; {c[value]:.2f}",
        command=".venv/bin/python -m benchmarks.model_variants --only int8 --seeds 1",
    ),
    *(
        movielens("retrieval", by, metric, words, "item-kNN", "EASE", "iALS", "EASE with decay")
        for by in ("time", "user")
        for metric, words in (
            ("ndcg_at_10_unseen", "NDCG at 10 of items not seen before"),
            ("recall_at_100_unseen", "recall at 100 of the same"),
        )
    ),
    sasrec("time"),
    Claim(
        file="compiled",
        rows={
            f"w{width}": (f"torch.compile of a layer's token-wise half, width {width}", "compiled")
            for width in (32, 64, 128)
        },
        text="the token-wise half of a transformer layer on ragged batches, `torch.compile` against eager, forward and "
        "backward: width 32; 64; 128",
        ours="; ".join(
            f"{{w{width}[value]:.2f}}x less CPU ({{w{width}[spread][0]:.2f}} to {{w{width}[spread][1]:.2f}})"
            for width in (32, 64, 128)
        ),
        command=".venv/bin/python -m benchmarks.compiled",
    ),
    Claim(
        file="whole_run_full",
        rows={
            name: ("whole run, recipe full", variant)
            for name, variant in (
                ("wall", "wall time"),
                ("cpu", "CPU time"),
                ("memory", "peak memory, all processes"),
                ("auc", "ranking_model: auc_click"),
                ("rank", "retrieval_model: mean_log_rank"),
            )
        },
        text="`make run RECIPE=full`, histories of up to 16,384 events, two ranks on two cores: time; CPU; most memory "
        "of all processes together; AUC of a click, beside {auc[best_baseline]}; mean log-rank, beside "
        "{rank[best_baseline]}",
        ours="{wall[value]:,.0f} s; {cpu[value]:,.0f} s; {memory[value]:,.0f} bytes; {auc[value]:.3f} "
        "({auc[spread][0]:.3f} to {auc[spread][1]:.3f}), {auc[baseline]:.3f}; {rank[value]:.2f}, {rank[baseline]:.2f}",
        command=".venv/bin/python -m benchmarks.whole_run --folder full",
    ),
)
