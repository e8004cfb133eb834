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
from benchmarks.study import arms, tables
from benchmarks.study.found import Study, no_worse, recovered, says, worse
from benchmarks.study.plan import FULL, MOVIELENS, TASKS
from benchmarks.study.tables import Row

DEFAULT = {"ranking": arms.RANKING_DEFAULT.name, "retrieval": arms.RETRIEVAL_DEFAULT.name}
CHUNKS = {"ranking": arms.RANKING_CHUNKS.name, "retrieval": arms.RETRIEVAL_CHUNKS.name}
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "study.md"


def report(rows: Sequence[Row], windows: Sequence[Row] = ()) -> str:
    """The whole document. windows: the rows of `benchmarks.study.windows`."""
    study = Study(rows)
    parts = [
        _head(study),
        _setup(study),
        *(_equal_rows(study, task) for task in TASKS),
        _equal_compute(study),
        _why(study),
        _optimisers(study),
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
    ranking = {arm: study.row("ranking", arm) for arm in ("sorted", "sorted + sync", DEFAULT["ranking"])}
    names = ("sorted + sync", "sorted + sync + mask", "sorted + sync + mask + gather", DEFAULT["retrieval"])
    retrieval = {arm: study.row("retrieval", arm) for arm in names}
    sync, mask = ranking["sorted + sync"], retrieval["sorted + sync + mask"]
    lines = [
        [
            "SyncBatchNorm recovers ranking",
            f"sorted {says(ranking['sorted'])}, with it {says(sync)}",
            recovered(ranking["sorted"], sync),
        ],
        [
            "with the default recipe ranking is within 0.1% of IID at equal rows",
            says(ranking[DEFAULT["ranking"]]),
            no_worse(ranking[DEFAULT["ranking"]], 0.1),
        ],
        [
            "the user mask recovers retrieval",
            f"sorted {says(retrieval['sorted + sync'])} without, {says(mask)} with it; with negatives of all ranks too "
            f"{says(retrieval['sorted + sync + mask + gather'])}",
            f"alone {recovered(retrieval['sorted + sync'], mask)}; with negatives of all ranks "
            f"{recovered(retrieval['sorted + sync'], retrieval['sorted + sync + mask + gather'])}",
        ],
        [
            "with the default recipe retrieval is within 0.02 nats of IID at equal rows",
            says(retrieval[DEFAULT["retrieval"]]),
            no_worse(retrieval[DEFAULT["retrieval"]], 0.02),
        ],
        [
            "that costs a fraction of the user-tower passes",
            "; ".join(f"{task} {_passes(study.row(task, DEFAULT[task]))}" for task in TASKS),
            "yes; less is saved in retrieval, which learns from clicks alone",
        ],
        [
            "sharing passes buys more rows (goal: ahead at equal compute)",
            "; ".join(f"{task} {says(study.best(_passes_block(task), 'default'))}" for task in TASKS),
            _ahead(study),
        ],
    ]
    return f"""# Does training on deduplicated batches cost quality?

The library's own models, loader, losses and ranks, in small. Made from `benchmarks/results/study.jsonl` by `make study`; do not
edit. AUC differences are in % of the AUC, so higher is better; mean log-rank's are in nats, so lower is better. Intervals are
95%, over paired seeds; bold ones leave out 0.

{tables.markdown(["the article says, or the goal", "what we see", "verdict"], lines)}"""


def _passes_block(task: str) -> str:
    return f"{task}, {FULL.equal_passes} passes per step"


def _ahead(study: Study) -> str:
    behind = []
    for task in TASKS:
        low, high = study.best(_passes_block(task), "default")["spread"]
        if (high if task == "retrieval" else -low) >= 0:
            behind.append(task)
    return f"not shown in {' and '.join(behind)}" if behind else "ahead in both"


def _passes(row: Row) -> str:
    """The row's passes beside IID's, one per row."""
    meters = row["meters"]
    return f"1/{meters['rows'] / meters['passes']:.0f} ({meters['passes']:.0f} for {meters['rows']:.0f} rows a step)"


def _setup(study: Study) -> str:
    sizes, one = study.rows[0]["sizes"], study.main("retrieval")[0]
    return f"""## Setup

- What is trained: `DCAT` (ranking) and `TwoTower` (retrieval) by `reqdedup.training`, with {study.ranks} ranks as processes of this
  machine. An arm is a handful of fields of `TrainingConfig`; the one called *default* changes none. Models are small: width 32,
  one layer, histories of 16 events.
- Log: the project's generator, {sizes["users"]:,} users (a quarter held out), {sizes["items"]:,} items, about 3 requests per user,
  64 rows per request; ranking learns from all rows, retrieval from clicks. Each seed has its own log, weights and order, shared by
  all arms of the seed: differences are paired. One epoch. Of the generator only sizes and the popularity exponent were set (0.6:
  {100 * one["false_negatives"]:.1f}% of an IID batch's negatives are items that the user clicked).
- Orders: `iid`, each row a request of its own, drawn from a rank's whole share; `sorted`, each rank reads its share of the table
  in order; `shuffle`, whole requests at random; `chunks of m`, the requests cut into pieces of at most m rows first.
- `sync`: norm statistics over all ranks. `mask`: negatives of the row's own user left out. `gather`: negatives of all ranks.
- Rows of a step are equal on average: whole requests differ in size, and a rank that is through before the others computes on
  empty batches, as everywhere in the library.
- Reference: IID with the same fixes, without the mask. Every run measures rows, passes, users, effective users (1 / sum of
  squared shares) and false negatives of its steps, and stops if they are not what the arm's name says.
- Learning rate {arms.LEARNING_RATE}, everything else as `TrainingConfig` has it, in every arm unless its name says otherwise."""


def _equal_rows(study: Study, task: str) -> str:
    rows = study.main(task)
    return f"""## {task.capitalize()} at equal rows

{study.ranks} ranks, {FULL.ranking_rows if task == "ranking" else FULL.retrieval_rows} rows a step, and what steps hold:

{tables.comparison(rows)}
{tables.batches(rows)}"""


def _equal_compute(study: Study) -> str:
    blocks = [
        f"{task}:\n\n{tables.comparison(study.block(_passes_block(task)), short=True, work=True)}" for task in TASKS
    ]
    steps = study.block(_passes_block("ranking"))[0]["steps"]
    return f"""## At equal compute

{FULL.equal_passes} user-tower passes a step and {steps} steps, one rank: a shared pass serves all rows of its request, so that the default recipe
sees more rows for the same cost of the user tower. The item tower (in ranking: the crossing and the head) runs once per row, so
its work grows with the rows and stands beside the passes. Both sides get the same three factors on both learning rates;
the reference is IID's best. No row is seen twice.

{chr(10).join(blocks)}"""


def _why(study: Study) -> str:
    gradients = [
        f"{task}:\n\n{tables.gradients(tables.of_gradients(study.rows, task))}" for task in ("ranking", "retrieval")
    ]
    noise, kept, gathered, shuffled = (
        study.gradient("retrieval", f"sorted + sync{fix}")
        for fix in (" + mask", "", " + mask + gather", " + mask + shuffle")
    )
    few, mask = study.row("retrieval", "iid + sync"), study.row("retrieval", "sorted + sync + mask")
    return f"""## Why

Gradients of one model, trained on IID for a quarter of a run, over {FULL.gradient_steps} steps of each arm, all parameters but the
tables. Bias is the distance of the mean gradient from IID's in lengths of IID's; noise is the variance around it beside IID's;
effective rows is what the noise leaves of a step's rows. A bias that cannot be told from noise comes out as 0. The reference,
drawn twice, shows the method's own error.

{chr(10).join(gradients)}
### What the mask does to sorted batches

A rank's sorted rows belong to {mask["meters"]["effective_users"] / study.ranks:.1f} effective users. The mask takes the row's own out,
and {100 * mask["meters"]["false_negatives"]:.0f}% of the negatives with it: {says(mask)}. Its gradient has bias {noise["bias"]:.2f} and
{noise["value"]:.1f} times IID's noise; without the mask the bias is {kept["bias"]:.2f} and the noise {kept["value"]:.1f} times. IID rows with
negatives of their own rank alone, as many as the sorted ones have before the mask: {says(few)}. Negatives of all ranks bring the
noise to {gathered["value"]:.1f} times, shuffling without them to {shuffled["value"]:.1f} times."""


def _optimisers(study: Study) -> str:
    tables_of = [tables.comparison(study.block(f"{task}, recipe"), short=True) for task in TASKS]
    better = [
        f"{row['variant']} in {task}"
        for task in TASKS
        for row in study.block(f"{task}, recipe")
        if row["variant"] != row["reference"] and worse(row)[2] < 0
    ]
    found = f"Better beyond its interval: {', '.join(better)}." if better else "None is better beyond its interval."
    return f"""## Optimisers, temperature and a second pass

The default recipe at equal rows, one rank, one of its other choices changed at a time. {found} `max_epochs` is 1 unless one says
otherwise (the one-epoch phenomenon, [Zhang et al. 2022](https://arxiv.org/abs/2209.06053)).

{chr(10).join(tables_of)}"""


def _movielens(study: Study) -> str:
    rows = {task: study.main(task, MOVIELENS) for task in TASKS}
    return f"""## MovieLens 100K

A request is a sitting, a click a rating of 4 or more; {study.ranks} ranks, 256 rows a step, one epoch; seeds split the users. 1,682 items
are few: {100 * rows["retrieval"][0]["false_negatives"]:.0f}% of an IID batch's negatives are items that the user liked, so this log
cannot show what in-batch false negatives cost.

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

`share_context="user"` needs windows whose start moves in steps; they hold fewer events on average than the last S. Models of two
layers with RoPE, {sizes["steps"]} steps of {sizes["requests_per_step"]} requests, one process,
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
        name = next(row["unit"] for row in rows if row["claim"] == claim).partition(" of ")[2].partition(" ")[0]
        header = ["window", "events of a long history, mean", "seeds", tables.TITLES[name]]
        header.append(f"against the last 32, {tables.unit(name)}")
        parts.append(f"{claim.removeprefix('windows: ')}:\n\n{tables.markdown(header, lines).strip()}")
    return "\n\n".join(parts)


def _recipe(study: Study) -> str:
    prices = []
    for task in TASKS:
        for arm in (DEFAULT[task], CHUNKS[task]):
            row = study.row(task, arm)
            per_pass = row["meters"]["rows"] / row["meters"]["passes"]
            prices.append([task, arm, f"{per_pass:.1f}", f"{row['meters']['effective_users']:.0f}", says(row)])
    return f"""## What to set

Nothing: the arm called *default* is `TrainingConfig` as it is (`shuffle="requests"`, `sync_batchnorm`, `mask_same_user`,
`gather_negatives`, whole requests, one epoch). `chunk_rows` brings more users into a step of as many rows and costs passes of
the user tower; rows per pass is the price.

{tables.markdown(["task", "arm", "rows per pass", "effective users", "against IID at equal rows"], prices)}"""


_LIMITS = """## Limits

- Small models, one generator, one small public log, one epoch. Signs and mechanisms should carry over, sizes will not.
- Ranks are few: what more of them do to statistics and negatives is not measured.
- IID rows are drawn inside each rank's share of the users, so that its batches hold fewer users than if all ranks drew from all.
- Equal compute counts user-tower passes, the dear part of a model whose user side reads a history; rows stand beside them.
  Losses and loading are outside; `make bench-training` times those.
- Seeds are paired, and intervals are Student's, without a correction for the number of comparisons: of 20 true zeros one
  is bold by chance.
"""


def read_rows(name: str) -> list[Row]:
    """The rows of a result file; none if it was not measured."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> int:
    DOCUMENT.write_text(report(read_rows("study"), read_rows("study_windows")))
    print(DOCUMENT, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
