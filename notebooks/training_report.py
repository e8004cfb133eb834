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
# # How the training runs went
#
# Every run leaves `metrics.csv` (one row per step) and `result.json` (its figures) in its folder. Shown side by side: the
# loss, what the batches held, how fast they went through, and the memory of rank 0.
#
# Made from the folders under `warehouse/data/models/`: run `make run` first, or name folders of your own below. To execute
# this notebook: `make notebooks`.

# %% tags=["parameters"]
runs = None  # {"name": "folder with metrics.csv", ...}; None: the newest namespace of the embedded warehouse

# %%
import json
import sys
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists())
sys.path.insert(0, str(root))

import polars as pl
from IPython.display import display

from pipelines.environment import Environment
from reqdedup import plots
from reqdedup.training import read_metrics

# %%
if runs is None:
    models = Environment.from_os().data_dir / "models"
    files = sorted(models.glob("*/*/metrics.csv"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no training runs under {models}: run `make run` first")
    newest = files[-1].parent.parent
    runs = {file.parent.name: file.parent for file in files if file.parent.parent == newest}
    print(f"namespace {newest.name}")
metrics = {name: read_metrics(Path(folder) / "metrics.csv") for name, folder in runs.items()}
for name, steps in metrics.items():
    rows, seconds = steps["rows"].sum(), steps["seconds"][-1]
    print(f"{name}: {len(steps['loss']):,} steps, {rows:,.0f} rows in {seconds:,.1f} s")

# %% [markdown]
# ## Loss and speed
#
# By step. Light: every step. Dark: the mean over a twentieth of the steps. The needles are the ends of epochs, whose last
# batches hold fewer requests: a loss over the batch's own negatives is lower with fewer of them.

# %%
plots.steps(
    metrics, [("loss", "loss [nats]", 1), ("rows_per_s", "rows per second", 1), ("learning_rate", "learning rate", 1)]
)

# %% [markdown]
# ## What a step held
#
# *Effective users* are 1 / sum of squared shares of the rows: what a step's gradient averages over. *Deduplication* is the
# bytes that a batch with every value once per row would have, per byte that moved. *False negatives* are in-batch
# negatives that the same user engaged with, before the user mask takes them out.

# %%
plots.steps(
    metrics,
    [
        ("effective_users", "effective users", 1),
        ("dedup_factor", "deduplication, x", 1),
        ("false_negative_rate", "false negatives, %", 100),
    ],
)

# %% [markdown]
# ## Memory
#
# Resident memory of rank 0 after each step. It rises while the loader's windows fill and the allocator finds the largest
# batches, and may rise once more with a later epoch; the lines below say by how much it did over the second half of this
# run. A short run ends while it rises, and a longer one then needs more than is shown here.

# %%
for name, steps in metrics.items():
    memory = steps["memory_bytes"] / 1e6
    middle = len(memory) // 2
    print(
        f"{name}: {memory[0]:,.0f} MB after the first step, {memory[middle]:,.0f} MB at half the run, "
        f"{memory[-1]:,.0f} MB at its end: {memory[-1] - memory[middle]:+,.0f} MB over the second half"
    )
plots.steps(metrics, [("memory_bytes", "memory [MB]", 1e-6), ("moved_bytes", "batches [MB], all ranks", 1e-6)])

# %% [markdown]
# ## Held-out figures
#
# Beside chance. The asset `training_report` and the summary of `make run` have the best baseline too.

# %%
rows = []
for name, folder in runs.items():
    path = Path(folder) / "result.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    rows += [
        {"model": name, "figure": key, "value": f"{value:.4g}", "chance": f"{figures[f'{key}_chance']:.4g}"}
        for key, value in figures.items()
        if f"{key}_chance" in figures
    ]
with pl.Config(tbl_rows=-1, tbl_width_chars=120, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
    display(pl.DataFrame(rows) if rows else "no run has ended yet")
