"""docs/study.md from the result rows: text whose every figure is looked up, and tables.

python -m benchmarks.study.report
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import RESULTS
from benchmarks.study import tables
from benchmarks.study.arms import RANKING_ALL, RETRIEVAL_ALL, RETRIEVAL_WHOLE
from benchmarks.study.found import Study, no_worse, says
from benchmarks.study.plan import MOVIELENS, TUNED
from benchmarks.study.tables import Row

WHOLE_RANKING = "sorted + sync + shuffle"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "study.md"


def report(rows: Sequence[Row], windows: Sequence[Row] = ()) -> str:
    """The whole document. windows: the rows of `benchmarks.study.windows`."""
    study = Study(rows)
    parts = [
        _head(study),
        _setup(study),
        _ranking(study),
        _retrieval(study),
        _equal_compute(study),
        _why(study),
        _both_tuned(study),
        _movielens(study) if study.has(MOVIELENS) else _NO_MOVIELENS,
        *([_windows(windows)] if windows else []),
        _recipe(study),
        _LIMITS,
    ]
    paragraphs = "\n\n".join(part.strip() for part in parts).split("\n\n")
    return "\n\n".join(map(_filled, paragraphs)) + "\n"


def _filled(paragraph: str) -> str:
    """Prose and list items in even lines; tables and headings as they are."""
    if paragraph.startswith("- "):
        return "\n".join(_even(item, indent="  ") for item in re.split(r"\n(?=- )", paragraph))
    return paragraph if paragraph.startswith(("|", "#")) else _even(paragraph)


def _even(text: str, *, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _head(study: Study) -> str:
    eight, many, retrieval = "ranking, 8 ranks", "ranking, 32 ranks", "retrieval, 8 ranks"
    sync, whole = study.row(eight, "sorted + sync"), study.row(eight, WHOLE_RANKING)
    lines = [
        [
            "SyncBatchNorm recovers ranking",
            f"it recovers most: sorted {says(study.row(eight, 'sorted'))}, with it {says(sync)}; 32 ranks "
            f"{says(study.row(many, 'sorted + sync'))}",
            "partly: the rest is noise of few users per step, which models without norm layers have too",
        ],
        [
            "with all fixes ranking is within 0.1% of IID at equal rows",
            f"8 ranks {says(study.row(eight, RANKING_ALL.name))}; 32 ranks {says(study.row(many, RANKING_ALL.name))}",
            f"8 ranks: {no_worse(study.row(eight, RANKING_ALL.name), 0.1)}; "
            f"32 ranks: {no_worse(study.row(many, RANKING_ALL.name), 0.1)}",
        ],
        [
            "the user mask recovers retrieval",
            f"alone it makes sorted batches worse: {says(study.row(retrieval, 'sorted + sync'))} without, "
            f"{says(study.row(retrieval, 'sorted + sync + mask'))} with it; with negatives of all ranks "
            f"{says(study.row(retrieval, 'sorted + sync + mask + gather'))}",
            "differs: the mask needs negatives of many users",
        ],
        [
            "with all fixes retrieval is as good as IID at equal rows",
            f"whole requests {says(study.row(retrieval, RETRIEVAL_WHOLE.name))}, "
            f"chunks of 4 {says(study.row(retrieval, RETRIEVAL_ALL.name))}",
            f"within 0.02 nats: {no_worse(study.row(retrieval, RETRIEVAL_ALL.name), 0.02)}",
        ],
        [
            "nearly the quality of IID for a fraction of the user-tower passes",
            f"whole requests, shuffled: ranking {says(whole)} {_passes(whole)}, 32 ranks "
            f"{says(study.row(many, WHOLE_RANKING))} {_passes(study.row(many, WHOLE_RANKING))}; retrieval "
            f"{says(study.row(retrieval, RETRIEVAL_WHOLE.name))} {_passes(study.row(retrieval, RETRIEVAL_WHOLE.name))}",
            f"yes, as far as these intervals say: about 1/{10 * round(_rows_per_pass(whole) / 10):.0f} of the passes in "
            "ranking; less saved in retrieval, which learns from clicks alone",
        ],
        [
            "sharing passes buys more rows (goal: ahead at equal compute)",
            f"retrieval, 64 passes a step: {says(study.best('retrieval, 64 passes per step', 'whole requests'))}; ranking "
            f"{says(study.best('ranking, 64 passes per step', 'whole requests'))}",
            "ahead, by more than anything sorting costs",
        ],
    ]
    return f"""# Does training on deduplicated batches cost quality?

Made from `benchmarks/results/study.jsonl` by `make study`; do not edit. AUC differences are in % of the AUC, so higher is
better; mean log-rank's are in nats, so lower is better. Intervals are 95%, over paired seeds; bold ones leave out 0. An arm's
own figure is the mean over its seeds, so arms of other numbers of seeds compare by their differences alone.

{tables.markdown(["the article says, or the goal", "what we see", "verdict"], lines)}"""


def _rows_per_pass(row: Row) -> float:
    """Rows that one pass of the user tower serves."""
    return float(row["sizes"]["rows_per_step"] / row["meters"]["passes"])


def _passes(row: Row) -> str:
    """The row's passes beside IID's, one per row."""
    return (
        f"with 1/{_rows_per_pass(row):.0f} of the passes ({row['meters']['passes']:.0f} of "
        f"{row['sizes']['rows_per_step']:,} a step)"
    )


def _item_work(study: Study) -> str:
    """How many times IID's item-tower work whole requests do at equal user-tower passes."""
    ratios = []
    for task in ("retrieval", "ranking"):
        block = f"{task}, 64 passes per step"
        whole, iid = (study.best(block, arm)["sizes"]["rows_per_step"] for arm in ("whole requests", "iid"))
        ratios.append(f"{whole / iid:.0f} times IID's for whole requests in {task}")
    return " and ".join(ratios)


def _setup(study: Study) -> str:
    sizes = study.rows[0]["sizes"]
    tuned = tables.markdown(
        ["log", "task", "learning rate", "table rate", "temperature"],
        [
            [
                log,
                task,
                f"{t.learning_rate:g}",
                f"{t.table_rate:g}",
                f"{t.temperature:g}" if task == "retrieval" else "",
            ]
            for (task, log), t in TUNED.items()
            if study.has(log)
        ],
    )
    return f"""## Setup

- Log: the project's generator, {sizes["users"]:,} users (a quarter held out), {sizes["items"]:,} items, about 3 requests per user,
  64 rows per request; ranking learns from all rows, retrieval from clicks. Each seed has its own log, weights and order,
  shared by all arms of the seed: differences are paired. One epoch. Of the generator only sizes and the popularity exponent
  (0.6, for an IID false-negative rate near 0) were set.
- Models: two-tower and a ranking head with user-item product, BatchNorm in the heads, AdamW, row-wise Adagrad for the item
  table, linear warm-up and decay to 0. Ranks are simulated in one process; tests compare them with real ranks.
- These models are the study's own, small enough for hundreds of runs: the library's own `TwoTower` and `DCAT`, which read the
  history with a transformer, are not trained here, but in the section on windows. What is said of norms, masks and orders holds
  for them as far as their heads and losses are the same.
- Orders: `iid`, rows at random; `sorted`, each rank reads its share of the table in order; `shuffle`, whole requests in a
  window of 2,048, as `RequestLoader` does; `chunks of m`, the requests cut into pieces of at most m rows first.
- `sync`: norm statistics over all ranks. `mask`: negatives of the row's own user left out. `gather`: negatives of all ranks.
- Reference: IID with the same fixes. Every run measures users, effective users (1 / sum of squared shares), passes and false
  negatives (negatives that the user clicked anywhere), and stops where they are not what the arm's name says.

Hyper-parameters were tuned on IID with all fixes, on a seed of its own (`benchmarks/results/study_tuning.jsonl`), and are the
same for all arms except where a name says `rates x`:

{tuned}"""


def _ranking(study: Study) -> str:
    few, many = (study.block(f"ranking, {ranks} ranks") for ranks in (8, 32))
    return f"""## Ranking at equal rows

8 ranks x 128 rows, and what their steps hold:

{tables.comparison(few)}
{tables.batches(few)}
32 ranks x 128 rows:

{tables.comparison(many)}"""


def _retrieval(study: Study) -> str:
    few, many = (study.block(f"retrieval, {ranks} ranks") for ranks in (8, 32))
    return f"""## Retrieval at equal rows

8 ranks x 64 rows, and what their steps hold:

{tables.comparison(few)}
{tables.batches(few)}
32 ranks x 32 rows:

{tables.comparison(many)}"""


def _equal_compute(study: Study) -> str:
    blocks = [f"{task}, {passes} passes per step" for task in ("retrieval", "ranking") for passes in (64, 256)]
    epochs = study.block("retrieval, epochs")
    iid_again, all_again = (study.row("retrieval, epochs", f"{name}, 1.5 epochs") for name in ("iid", "all"))
    epochs_steps = study.block("retrieval, 256 passes per step")[0]["sizes"]["steps"]
    return f"""## At equal compute

Equal user-tower passes per step, as nearly as the columns say, and equal steps; a shared pass serves all rows of its piece, so deduplicated arms see more rows
for the same cost of the user tower. The item tower (in ranking: the candidate's embedding and the head) runs once per row, so
that its work grows with the rows: it stands beside the passes, {_item_work(study)}. Both sides get the same three factors on
the tuned rates; the reference is IID's best. No arm sees a row twice.

{chr(10).join(f"{name}:{chr(10)}{chr(10)}{tables.comparison(study.block(name), short=True, work=True)}" for name in blocks)}
That no row is seen twice matters. An arm that shares passes runs through the log sooner, and here half a second epoch hurts
whatever the order of the rows (the one-epoch phenomenon, [Zhang et al. 2022](https://arxiv.org/abs/2209.06053)):
IID {says(iid_again)}, all fixes {says(all_again)}, both against IID's one epoch. 256 steps of 256 passes are 1.4 epochs for chunks of 4 and 0.4 for IID: compared there,
retrieval looks worse than IID for that reason alone. So these comparisons stop after {epochs_steps} steps.

{tables.comparison(epochs, short=True)}"""


def _why(study: Study) -> str:
    mask = study.row("retrieval, negatives", "sorted + sync + mask")
    few = study.row("retrieval, negatives", "iid + sync, negatives of 16 rows")
    steps = tables.of_gradients(study.rows, "ranking")[0]["sizes"]["steps"]
    noise, kept, gathered, shuffled = (
        study.gradient("retrieval", f"sorted + sync{fix}")
        for fix in (" + mask", "", " + mask + gather", " + mask + shuffle")
    )
    gradients = [
        f"{task}:\n\n{tables.gradients(tables.of_gradients(study.rows, task))}" for task in ("ranking", "retrieval")
    ]
    return f"""## Why

Gradients of one model, trained on IID for a quarter of a run, over steps of each arm. Bias is the distance of the mean gradient
from IID's in lengths of IID's; noise is the variance around it beside IID's; effective rows is what the noise leaves of a
step's rows. A bias that {steps} steps cannot tell from noise comes out as 0. The reference, drawn twice, shows the method's own
error.

{chr(10).join(gradients)}
Users per step, one reader, everything else fixed (windows hold 2,048 requests, so even small pieces have fewer users than IID):

{tables.sweep(study.block("ranking, users per step"))}
{tables.sweep(study.block("retrieval, users per step"))}
No norm layer, so nothing for SyncBatchNorm to mend:

{tables.comparison(study.block("ranking, no norm"), short=True)}
{tables.comparison(study.block("retrieval, no norm"), short=True)}
### What the mask does to sorted batches

A rank's sorted rows belong to very few users. The mask takes the row's own user out, and what is left are
{mask["meters"]["negatives"]:.0f} negatives of {mask["meters"]["negative_users"]:.1f} effective users: {says(mask)}. With SyncBatchNorm the
masked gradient has no bias that shows ({noise["bias"]:.2f}), but {noise["value"]:.1f} times IID's noise, as if a step of
{mask["sizes"]["rows_per_step"]} rows had {noise["effective_rows"]}. The number of negatives is not the cause: IID rows with
{few["meters"]["negatives"]:.0f} negatives of {few["meters"]["negative_users"]:.0f} users lose {says(few)}. Negatives of one or two users are
items of one or two tastes, and a whole rank's rows share them, so their errors do not cancel. Without the mask sorted batches
are biased ({kept["bias"]:.2f}) but calm ({kept["value"]:.1f}x), and lose less. Negatives of all ranks bring the noise to
{gathered["value"]:.1f}x, shuffling to {shuffled["value"]:.1f}x.

{tables.negatives(study.block("retrieval, negatives"))}
### A weight instead of the mask

`same_user_share` lets same-user negatives count for at most a share of all (see `info_nce`). On shuffled whole requests with
negatives of all ranks it makes no difference that shows, so the mask stays the default:

{tables.comparison(study.block("retrieval, same-user weight"), short=True)}"""


def _both_tuned(study: Study) -> str:
    return f"""## Both sides tuned

Equal rows, 8 ranks, both sides at the same three factors on the rates that were tuned on IID; the reference is IID's best:

{tables.comparison(study.block("ranking, rates"), short=True)}
{tables.comparison(study.block("retrieval, rates"), short=True)}"""


def _movielens(study: Study) -> str:
    rows = {task: study.block(f"{task}, 8 ranks", MOVIELENS) for task in ("ranking", "retrieval")}
    iid = study.row("retrieval, 8 ranks", "iid + sync + gather", MOVIELENS)
    return f"""## MovieLens 100K

A request is a sitting, a click a rating of 4 or more; 8 ranks x 32 rows, one epoch, which IID likes best; seeds split the
users. 1,682 items are few: under IID {100 * iid["meters"]["false_negatives"]:.0f}% of the negatives are already items that the user
liked, so this log cannot show what in-batch false negatives cost. The mask alone is as harmful as on the large catalogue, all
fixes recover retrieval too, and in ranking, uncertain with 943 users, SyncBatchNorm alone is enough.

{tables.comparison(rows["ranking"])}
{tables.comparison(rows["retrieval"])}
{tables.batches(rows["retrieval"])}"""


_NO_MOVIELENS = """## MovieLens 100K

Not run: `make study MOVIELENS=folder` was not given the log.
"""


def _windows(rows: Sequence[Row]) -> str:
    """Anchored windows beside last-S windows."""
    sizes = rows[0]["sizes"]
    parts = [
        f"""## Anchored windows beside the last S events

`share_context="user"` needs windows whose start moves in steps; they hold fewer events on average than the last S. The
library's own models (two layers, RoPE) and training loop, {sizes["steps"]} steps of {sizes["requests_per_step"]} requests,
against the last 32 events, and beside last-S with about as many events on average. Bold differences leave out 0. Measured by
`.venv/bin/python -m benchmarks.study.windows` (`benchmarks/results/study_windows.jsonl`)."""
    ]
    for claim in dict.fromkeys(row["claim"] for row in rows):
        lines = []
        for row in (row for row in rows if row["claim"] == claim):
            figure = f"{sum(row['figures']) / len(row['figures']):.4f}"
            low, high = row["spread"]
            text = f"{row['value']:+.3f} ± {(high - low) / 2:.3f}"
            is_reference = row["variant"] == row["unit"].rpartition("against ")[2]
            found = "reference" if is_reference else f"**{text}**" if low > 0 or high < 0 else text
            lines.append([row["variant"], f"{row['mean_events']:g}", str(row["runs"]), figure, found])
        unit = rows_unit(rows, claim)
        header = ["window", "events of a long history, mean", "seeds", unit[1], f"against the last 32, {unit[0]}"]
        parts.append(f"{claim.removeprefix('windows: ')}:\n\n{tables.markdown(header, lines).strip()}")
    return "\n\n".join(parts)


def rows_unit(rows: Sequence[Row], claim: str) -> tuple[str, str]:
    """(unit of the difference, name of the figure) of a comparison of windows."""
    text = next(row["unit"] for row in rows if row["claim"] == claim)
    unit, _, figure = text.partition(" against ")[0].partition(" of ")
    return unit, {"auc_click": "AUC", "mean_log_rank": "mean log-rank"}[figure]


def _recipe(study: Study) -> str:
    prices = []
    for task, arms in (("ranking", (WHOLE_RANKING, RANKING_ALL.name)), ("retrieval", _RETRIEVAL_PRICES)):
        for arm in arms:
            row = study.row(f"{task}, 8 ranks", arm)
            per_pass = row["sizes"]["rows_per_step"] / row["meters"]["passes"]
            prices.append([task, arm, f"{per_pass:.1f}", f"{row['meters']['effective_users']:.0f}", says(row)])
    return f"""## What to set

The defaults of `TrainingConfig` and `RequestLoader`: `shuffle="requests"`, `sync_batchnorm`, `mask_same_user`,
`gather_negatives`, whole requests. Compute is what deduplication saves, and at equal compute whole requests win in both tasks.
Where rows are scarce instead and a step holds few users, `chunk_rows` (8 for ranking, 4 for retrieval) brings more users into
a step and costs passes: rows per pass is the price.

{tables.markdown(["task", "arm, 8 ranks", "rows per pass", "effective users", "against IID at equal rows"], prices)}"""


_RETRIEVAL_PRICES = (RETRIEVAL_WHOLE.name, RETRIEVAL_ALL.name)

_LIMITS = """## Limits

- Small models, one generator, one small public log, one epoch of half a million to a million rows. Signs and mechanisms should
  carry over, sizes will not.
- Retrieval's candidates are 20,000 items drawn from the catalogue; its histories are given as shares of categories.
- Equal compute counts user-tower passes, the dear part of a model whose user side reads a history; item-tower passes stand
  beside them. Losses and loading are outside; `make bench-training` times those.
- Seeds are paired, and intervals are Student's, without a correction for the number of comparisons: of 20 true zeros one
  is bold by chance.
"""


def read_rows(name: str) -> list[Row]:
    """The rows of a result file; none where it was not measured."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> int:
    DOCUMENT.write_text(report(read_rows("study"), read_rows("study_windows")))
    print(DOCUMENT, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
