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
# # What variety costs
#
# A slate that follows the scores alone repeats itself. A term of the re-ranking (`reqdedup.rerank`) weighs how new a
# candidate is to the last picks; its weight decides how much of the scores is given up for that. The curve below shows
# both over the held-out requests: take the weight from which on more loss buys little more variety.
#
# Made from the tables that the assets `scored_candidates` and `rerank_report` wrote: run `make run` first. To execute
# this notebook: `make notebooks`. For another configuration: `reqdedup rerank sweep --help`.

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
from reqdedup.rerank import SlateConfig, rerank
from reqdedup.rerank.config import Volume
from reqdedup.rerank.scored import ScoredCandidates
from warehouse import load_table

# %%
catalog = rd.open(data_dir).catalog
if namespace is None:
    reports = [".".join((*space, "rerank_report")) for space in catalog.list_namespaces()]
    reports = [catalog.load_table(name) for name in reports if catalog.table_exists(name)]
    newest = max(reports, key=lambda table: table.metadata.last_updated_ms, default=None)
    namespace = newest.name()[0] if newest else "laptop"
report = load_table(catalog, namespace, "rerank_report").scan().to_arrow()
points = pl.from_arrow(report).pivot(on="figure", index=["point", "requests"], values="value")
print(f"namespace {namespace}: {points['requests'][0]:,} requests of held-out users")

# %% [markdown]
# ## The curve
#
# To the right: how far the picks within a window lie from one another (1 - cosine of the item vectors). Upwards: how much
# of the discounted gain of the best order is left.

# %%
plots.relevance_and_variety(report)

# %% [markdown]
# ## The figures

# %%
with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=140, float_precision=3, tbl_hide_dataframe_shape=True):
    display(points.drop("requests"))

# %% [markdown]
# ## One request, pick by pick
#
# The share of each term in the utility of a pick: what the scores said, and what being new was worth.

# %%
candidates = ScoredCandidates.of(load_table(catalog, namespace, "scored_candidates").scan().to_arrow())
sizes = candidates.row_offsets[1:] - candidates.row_offsets[:-1]
largest = int(sizes.argmax())
rows = slice(candidates.row_offsets[largest], candidates.row_offsets[largest + 1])
config = SlateConfig(length=10, window=5, standardise=True, terms=(Volume(weight=1.0),))
slate = rerank(config, candidates.scores[rows], item_id=candidates.item_id[rows], vectors=candidates.vectors[rows])
picks = pl.DataFrame({"item_id": candidates.item_id[rows][slate.row], **slate.contributions, "utility": slate.utility})
with pl.Config(tbl_rows=-1, float_precision=3, tbl_hide_dataframe_shape=True):
    display(picks)
