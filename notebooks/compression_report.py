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

import polars as pl
from IPython.display import display

import reqdedup as rd
from reqdedup import plots
from reqdedup.display import format_bytes
from reqdedup.storage import table_schema
from warehouse import load_table

# %%
catalog = rd.open(data_dir).catalog
if namespace is None:
    reports = [".".join((*space, "compression_report")) for space in catalog.list_namespaces()]
    reports = [catalog.load_table(name) for name in reports if catalog.table_exists(name)]
    newest = max(reports, key=lambda table: table.metadata.last_updated_ms, default=None)
    namespace = newest.name()[0] if newest else "laptop"
report = load_table(catalog, namespace, "compression_report").scan().to_arrow()
schema = table_schema(load_table(catalog, namespace, "engagements_by_request"))
blobs = [column.name for column in schema.blobs]
layouts = list(dict.fromkeys(report.column("table").to_pylist()))
first = report.slice(0, 1).to_pylist()[0]
print(f"namespace {namespace}: {first['rows']:,} rows, {first['requests']:,} requests,", end=" ")
print(f"{first['fan_out']:.1f} rows per request")

# %% [markdown]
# ## All columns, and sequences and embeddings alone
#
# The line is the store-once limit with each layout's own codec and level. A ratio above the fan-out is not magic:
# requests of one user share most of their history, and a store that holds them side by side compresses that too.

# %%
display(plots.layouts(report))
display(plots.layouts(report, columns=blobs, title=f"the {len(blobs)} sequence and vector columns alone"))

# %% [markdown]
# ## Column by column
#
# Sequences gain most: they are the same for every row of a request and large. Item-level columns and labels differ per
# row; they cannot gain from deduplication and show what the order alone does to them, for better or worse.

# %%
display(plots.columns(report))

# %% [markdown]
# ## The figures
#
# Stored bytes per layout, the limit of the last one, how far it is below the first (*ratio*) and how close it comes to
# its limit (100%: nothing is stored twice; a little above is possible, as other row groups compress a little better).

# %%
rows = report.to_pylist()
stored = {(row["table"], row["column"]): format_bytes(row["compressed_bytes"]) for row in rows}
figures = pl.DataFrame(
    [
        {
            "column": row["column"],
            "level": row["level"],
            **{plots.layout_name(layout): stored[layout, row["column"]] for layout in layouts},
            "limit": format_bytes(row["store_once_bytes"]),
            "ratio": f"{row['ratio_to_control']:.1f}x",
            "of limit": f"{row['fraction_of_limit']:.0%}",
        }
        for row in sorted(rows, key=lambda row: -row["ratio_to_control"] * row["compressed_bytes"])
        if row["table"] == layouts[-1]
    ][: plots.SHOWN_COLUMNS]
)
with pl.Config(tbl_rows=-1, tbl_width_chars=120, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
    display(figures)
