# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What sorting does to training, and what mends it
#
# Deduplicated batches hold whole requests: many rows of few users. Training was made for rows drawn at random
# (*IID*). Three things break, and each has its remedy:
#
# | what breaks | why | remedy |
# |---|---|---|
# | statistics of a batch | BatchNorm sees few users | norms synchronised over the ranks |
# | negatives | a user's own other items become negatives | a mask of the user's own items, negatives of all ranks |
# | the gradient | the rows of a request say nearly the same | whole requests in a shuffled order, or cut into chunks |
#
# First the batches themselves, counted by a plain loop; then what each remedy is worth, from the repository's study.
# To execute this notebook: `make notebooks`.

# %% tags=["parameters"]
rows_per_step = 512

# %%
import json
import sys
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists())
sys.path.insert(0, str(root))

import numpy as np
import polars as pl
import pyarrow as pa
from IPython.display import display

from reqdedup import plots
from reqdedup.logs import SyntheticLogConfig, synthesize

# %% [markdown]
# ## What a step holds
#
# One log in three orders: rows at random, whole requests at random, and sorted by user. *Effective users* are one
# over the sum of squared shares: 512 rows of one user and one row of another are hardly two users. A *false negative*
# is another row of the step whose user is the same, as an in-batch loss without the mask takes it.

# %%
config = SyntheticLogConfig(seed=0, num_users=400, num_items=5_000, mean_fan_out=32, max_fan_out=64, max_history=16)
keys = pa.schema([("user_id", pa.int64()), ("request_id", pa.int64())])
parts = (pa.Table.from_batches([one.select(keys.names)]).cast(keys) for one in synthesize(config))
log = pl.concat(pl.from_arrow(part) for part in parts)
rng = np.random.default_rng(0)
of_request = dict(zip(requests := log["request_id"].unique().to_list(), rng.permutation(len(requests))))
orders = {
    "rows at random": rng.permutation(len(log)),
    "whole requests at random": np.argsort([of_request[one] for one in log["request_id"]], kind="stable"),
    "sorted by user": np.lexsort([log["request_id"], log["user_id"]]),
}
figures = {}
for name, order in orders.items():
    users, wrong = [], []
    for start in range(0, len(order) - rows_per_step + 1, rows_per_step):
        _, counts = np.unique(log["user_id"].to_numpy()[order[start : start + rows_per_step]], return_counts=True)
        share = counts / rows_per_step
        users.append(1 / (share**2).sum())
        wrong.append(100 * (counts * (counts - 1)).sum() / (rows_per_step * (rows_per_step - 1)))
    figures[name] = (float(np.mean(users)), float(np.mean(wrong)))
    print(
        f"{name}: {figures[name][0]:.0f} effective users, {figures[name][1]:.2f}% of the negatives are the user's own"
    )
display(
    plots.bars(
        {name: users for name, (users, _) in figures.items()},
        title=f"effective users in a step of {rows_per_step} rows",
        format_value=lambda value: f"{value:.0f}",
    )
)

# %% [markdown]
# ## What each remedy is worth
#
# `benchmarks/results/study.jsonl`, the library's models with 4 ranks, equal rows. AUC of ranking (DCAT) that is lost
# against IID, the mean over seeds with its 95% interval (shown from 0 on). [docs/study.md](../docs/study.md) has the rest.

# %%
study = [json.loads(line) for line in (root / "benchmarks" / "results" / "study.jsonl").open()]


def plain(value):
    return f"{value:.3g}"


def lost(claim, variants, sign):
    """value and interval of each variant; higher is worse."""
    found = {row["variant"]: row for row in study if row["claim"] == f"large catalogue: {claim}, 4 ranks"}
    values = {name: sign * found[name]["value"] for name in variants}
    intervals = {name: sorted(sign * edge for edge in found[name]["spread"]) for name in variants}
    shown = {name: max(value, 0.0) for name, value in values.items()}
    texts = {name: f"{value:.3f}" for name, value in values.items()}
    return shown, texts, {name: (max(low, 0.0), max(high, 0.0)) for name, (low, high) in intervals.items()}


values, texts, intervals = lost(
    "ranking",
    ["sorted", "sorted + sync", "sorted + shuffle", "default: sync + shuffle", "default, chunks of 8"],
    sign=-1,
)
display(
    plots.bars(values, text=texts, intervals=intervals, title="ranking: AUC lost against IID [%]", format_value=plain)
)

# %% [markdown]
# Retrieval (a two-tower): mean log-rank that is lost, in nats. The mask takes the user's own items out of the
# negatives; negatives of all ranks (*gather*) and shuffled requests bring those of more users.

# %%
values, texts, intervals = lost(
    "retrieval",
    [
        "sorted",
        "sorted + sync + mask",
        "sorted + sync + mask + gather",
        "default: sync + mask + shuffle + gather",
    ],
    sign=1,
)
display(
    plots.bars(
        values,
        text=texts,
        intervals=intervals,
        title="retrieval: mean log-rank lost against IID [nats]",
        format_value=plain,
    )
)
