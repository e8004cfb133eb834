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
# # What storing a request once saves
#
# The same log, in several physical forms: *shuffled* (impressions in random order, plain lists: what people store
# today), *sorted* (by bucket, user and request, plain lists: the published layout) and *by request* (the same order,
# each sequence one binary value, dictionary-encoded: what training reads). Same rows, same values, different bytes.
#
# The **store-once limit** is what the distinct values take when each is written once, in the same order, with the same
# codec. No layout that keeps all values can be expected far below it.
#
# Made from the report that the asset `compression_report` wrote: run `make run` first. To execute this notebook:
# `make notebooks`.

# %% tags=["parameters"]
namespace = None  # None: that of the newest report
data_dir = None  # None: the lake of the environment, by default warehouse/data

# %%
import sys
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists())
sys.path.insert(0, str(root))

import matplotlib.pyplot as plt
import polars as pl
from IPython.display import display
from matplotlib.ticker import FuncFormatter

import reqdedup as rd
from reqdedup.storage import table_schema
from warehouse import load_table

# %%
catalog = rd.open(data_dir).catalog
if namespace is None:
    reports = [".".join((*space, "compression_report")) for space in catalog.list_namespaces()]
    reports = [catalog.load_table(name) for name in reports if catalog.table_exists(name)]
    newest = max(reports, key=lambda table: table.metadata.last_updated_ms, default=None)
    namespace = newest.name()[0] if newest else "laptop"
report = pl.from_arrow(load_table(catalog, namespace, "compression_report").scan().to_arrow())
schema = table_schema(load_table(catalog, namespace, "engagements_by_request"))
blobs = [column.name for column in schema.blobs]

order = {"engagements_shuffled": 0, "engagements_sorted": 1, "engagements_sorted_large_pages": 2}
layouts = sorted(report["table"].unique(), key=lambda name: order.get(name, 3))
colors = dict(zip(layouts, plt.get_cmap("viridis")([0.1, 0.5, 0.85, 0.65][: len(layouts)])))


def human(count, _position=None):
    """1536 -> '1.5 kB' (decimal units)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000


first = report.filter(pl.col("table") == layouts[-1]).row(0, named=True)
print(f"namespace {namespace}: {first['rows']:,} rows, {first['requests']:,} requests,", end=" ")
print(f"{first['fan_out']:.1f} rows per request")

# %% [markdown]
# ## Sequences and embeddings together, layout by layout
#
# Bytes on a logarithmic axis: one step of the grid is a factor of ten, so read the labels, not the lengths. The line is
# the store-once limit with each layout's own codec and level. A ratio above the fan-out is not magic: requests of one user share most of their history, and a
# store that holds them side by side compresses that too.

# %%
totals = (
    report.filter(pl.col("column").is_in(blobs))
    .group_by("table")
    .agg(pl.col("compressed_bytes", "store_once_bytes").sum())
    .sort(pl.col("table").replace_strict({name: i for i, name in enumerate(layouts)}))
)
control = totals["compressed_bytes"][0]

figure, axes = plt.subplots(figsize=(9, 0.7 * len(layouts) + 1.4), layout="constrained")
for y, row in enumerate(totals.iter_rows(named=True)):
    axes.barh(y, row["compressed_bytes"], height=0.62, color=colors[row["table"]])
    axes.vlines(
        row["store_once_bytes"],
        y - 0.5,
        y + 0.5,
        color="crimson",
        linewidth=2,
        label="store-once limit" if y == 0 else None,
    )
    label = f" {human(row['compressed_bytes'])}, {control / row['compressed_bytes']:.1f}x"
    axes.annotate(label, (row["compressed_bytes"], y), va="center")
axes.set(xscale="log", yticks=range(len(layouts)), yticklabels=layouts, xlabel="stored bytes (log scale)")
axes.set_xlim(min(totals["store_once_bytes"].min(), totals["compressed_bytes"].min()) / 2, control * 8)
axes.set_title(f"{len(blobs)} sequence and vector columns; ratios to {layouts[0]}", loc="left")
axes.xaxis.set_major_formatter(FuncFormatter(human))
axes.invert_yaxis()
axes.grid(axis="x", alpha=0.3)
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## Column by column
#
# Sequences gain most: they are the same for every row of a request and large. Item-level columns and labels differ per
# row; they cannot gain from deduplication and show what the order alone does to them, for better or worse.

# %%
largest = (
    report.filter(pl.col("table") == layouts[0]).sort("compressed_bytes", descending=True)["column"].head(12).to_list()
)
height = 0.8 / len(layouts)
figure, axes = plt.subplots(figsize=(9, 0.62 * len(largest) + 1.4), layout="constrained")
for i, layout in enumerate(layouts):
    by_column = {row["column"]: row for row in report.filter(pl.col("table") == layout).iter_rows(named=True)}
    positions = [y + (i - (len(layouts) - 1) / 2) * height for y in range(len(largest))]
    axes.barh(
        positions,
        [by_column[name]["compressed_bytes"] for name in largest],
        height=height,
        color=colors[layout],
        label=layout,
    )
    if layout == layouts[-1]:
        limits = [by_column[name]["store_once_bytes"] or float("nan") for name in largest]
        middles = range(len(largest))
        axes.vlines(
            limits,
            [y - 0.45 for y in middles],
            [y + 0.45 for y in middles],
            color="crimson",
            linewidth=2,
            label=f"store-once limit ({layout})",
        )
axes.set(xscale="log", yticks=range(len(largest)), yticklabels=largest, xlabel="stored bytes (log scale)")
axes.set_title(f"The {len(largest)} largest columns of {layouts[0]}", loc="left")
axes.xaxis.set_major_formatter(FuncFormatter(human))
axes.invert_yaxis()
axes.grid(axis="x", alpha=0.3)
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## The figures
#
# Stored bytes per layout, the limit of the last one, how far it is below the first (*ratio*) and how close it comes to
# its limit (100%: nothing is stored twice; a little above is possible, as other row groups compress a little better).

# %%
last = {row["column"]: row for row in report.filter(pl.col("table") == layouts[-1]).iter_rows(named=True)}
stored = {(row["table"], row["column"]): human(row["compressed_bytes"]) for row in report.iter_rows(named=True)}
figures = pl.DataFrame(
    [
        {
            "column": name,
            "level": last[name]["level"],
            **{layout.removeprefix("engagements_"): stored[layout, name] for layout in layouts},
            "limit": human(last[name]["store_once_bytes"]),
            "ratio": f"{last[name]['ratio_to_control']:.1f}x",
            "of limit": f"{last[name]['fraction_of_limit']:.0%}",
        }
        for name in largest
    ]
)
with pl.Config(tbl_rows=-1, tbl_width_chars=120, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
    display(figures)
