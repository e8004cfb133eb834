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
# # What a kept context saves
#
# A server ranks candidates in two steps: the *context*, an encoding of the user's history, and the *crossing* of the
# candidates with it. The context does not depend on the candidates, so a server keeps it: when the user comes back, only
# the crossing is left. New events extend a kept context; its whole blocks of 64 events stay as they are.
#
# Made from what the assets `serving_bundle` and `serving_store` left: run `make run` first. To execute this notebook:
# `make notebooks`. In process, one thread: no network and no queue. Times are those of this machine.

# %% tags=["parameters"]
namespace = None  # None: that of the newest bundle
data_dir = None  # None: the folder of the environment, by default warehouse/data
num_users = 20
num_candidates = (1, 10, 100, 500)

# %%
import sys
import time
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists())
sys.path.insert(0, str(root))

import numpy as np
import polars as pl
from IPython.display import display

import reqdedup as rd
from pipelines.environment import Environment
from reqdedup import plots
from reqdedup.display import format_bytes
from reqdedup.models import Bundle
from reqdedup.schema import Level
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.serving.bundles.places import find_bundles
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import RankRequest
from reqdedup.serving.threads import one_thread
from warehouse import load_table

# %%
folder = Path(data_dir or Environment.from_os().data_dir)
if namespace is None:
    places = sorted((folder / "serving").glob("*/bundle"), key=lambda place: place.stat().st_mtime)
    if not places:
        raise FileNotFoundError(f"no bundles under {folder / 'serving'}: run `make run` first")
    namespace = places[-1].parent.name
bundles = {bundle.task: bundle for bundle in map(Bundle.load, find_bundles(folder / "serving" / namespace / "bundle"))}
bundle, store = bundles["ranking"], SqliteStore(folder / "stores" / f"{namespace}.sqlite")
ranker = Ranker.of(bundle, store=store)
main = load_table(rd.open(data_dir).catalog, namespace, "engagements_by_request")
user_ids = np.unique(main.scan(selected_fields=("user_id",)).to_arrow()["user_id"].to_numpy())
users = user_ids[:: max(1, len(user_ids) // num_users)][:num_users].tolist()
print(f"namespace {namespace}: model {bundle.fingerprint}, {len(users)} of {len(user_ids):,} users are asked for")


# %%
def request(user_id, count):
    """Of the first items of the bundle; the store has history and features, the bundle the items' own columns."""
    items = bundle.items.item_id_V
    columns = {"item_id": np.resize(items, count)}
    for column in bundle.transforms.columns:
        if column.level is Level.ITEM and column.name not in bundle.items.columns:
            columns[column.name] = np.zeros(count, np.int64)  # the position in the slate, for example: not known yet
    return RankRequest(user_id=user_id, candidates=columns)


def milliseconds(asked):
    started = time.perf_counter()
    answer = ranker.rank(asked)
    return 1e3 * (time.perf_counter() - started), answer


# %% [markdown]
# ## Computed and kept
#
# Each user is asked for twice: the first request computes the context, the second finds it. The median over the users.
# The answers must be equal to the last bit, or nothing is shown.

# %%
rows, lengths = [], []
with one_thread():
    ranker.rank(request(users[0], max(num_candidates)))  # warm
    for count in num_candidates:
        times = {"computed": [], "kept": []}
        ranker.cache.forget()
        for user_id in users:
            first, second = milliseconds(request(user_id, count)), milliseconds(request(user_id, count))
            for took, answer in (first, second):
                times[answer.context].append(took)
            assert all(np.array_equal(first[1].logits[name], second[1].logits[name]) for name in first[1].logits)
            lengths.append(first[1].end - first[1].start)
        computed, kept = (float(np.median(times[name])) for name in ("computed", "kept"))
        rows.append({"candidates": count, "computed": computed, "kept": kept})
print(f"median history: {np.median(lengths):.0f} events; every answer equal to the last bit")
plots.points(
    {f"{row['candidates']:,} candidates": {name: row[name] for name in ("computed", "kept")} for row in rows},
    title="one request in process, one thread, median [ms]",
    format_value=lambda value: f"{value:.3g} ms",
)

# %%
figures = pl.DataFrame(rows).with_columns((pl.col("computed") / pl.col("kept")).alias("times less"))
with pl.Config(tbl_rows=-1, float_precision=2, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
    display(figures)

# %% [markdown]
# What is kept pays for long histories and few candidates: the context costs the same for one candidate as for a thousand,
# the crossing grows with them. With the small model and short histories of the default recipe most of a request is fixed
# cost, which no cache saves; `python -m benchmarks.serving` measures a larger model.
#
# ## What a user costs in memory

# %%
ranker.cache.forget()
sizes = []
for user_id in users:
    before = ranker.cache.num_bytes
    ranker.rank(request(user_id, 1))
    sizes.append(ranker.cache.num_bytes - before)
print(f"a kept context: {format_bytes(np.median(sizes))} in the median, {format_bytes(max(sizes))} at most")
print(f"1 GB holds some {1e9 / np.mean(sizes):,.0f} users; the one not asked for longest leaves first")
