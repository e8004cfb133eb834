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
# # A feature after the fact, and a join without a shuffle
#
# The log is written, and now somebody has a new feature of each request. Here it is computed, written beside the main
# table (one value per request, no row of the main table touched), and read together with it: both tables have the
# same buckets of users in the same order, so they are merged bucket by bucket.
#
# Needs no tables: a synthetic log goes into a temporary folder. To execute this notebook: `make notebooks`.

# %% tags=["parameters"]
num_users = 300

# %%
import sys
import tempfile
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists())
sys.path.insert(0, str(root))

import polars as pl

import reqdedup as rd
from reqdedup import plots
from reqdedup.display import format_bytes
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.storage import Layout, bucket_join, create_table, recent_event_counts, write

# %% [markdown]
# ## The main table
#
# Four buckets of users; within each, users and their requests in order.

# %%
folder = tempfile.TemporaryDirectory(prefix="reqdedup-")
lake = rd.open(folder.name)
config = SyntheticLogConfig(
    seed=0, num_users=num_users, num_items=5_000, mean_fan_out=20, max_fan_out=64, max_history=256
)
table = create_table(lake.make(), "own.engagements", synthetic_schema(config), Layout.BY_REQUEST, num_buckets=4)
written = write(table, synthesize(config))
print(f"{written.rows:,} rows, {written.requests:,} requests, {format_bytes(written.bytes)}")

# %% [markdown]
# ## The backfill
#
# How many events a user had in the day before the request: read from the history, once per request. By position the
# feature table holds no keys, only the values in the order of the main table.

# %%
main = lake.table("own.engagements")
before = main.iceberg.current_snapshot().snapshot_id
feature = recent_event_counts(86_400)
report = main.feature("own.features", feature.column, feature, by_position=True)
assert lake.table("own.engagements").iceberg.current_snapshot().snapshot_id == before  # not a row of it was touched
plots.points(
    {"stored": {"main table": written.bytes, "written by the backfill": report.bytes}},
    limits={"stored": report.minimum_bytes},
    limit_name="the values alone",
    title=f"a new feature of {report.requests:,} requests, against the table that it belongs to",
)

# %% [markdown]
# ## The join
#
# Read like any table, by the loader too. What it met is known after a pass.

# %%
joined = bucket_join(main.iceberg, lake.table("own.features").iceberg)
rows = pl.from_arrow(joined.to_arrow(["user_id", "request_id", "item_id", feature.column.name]))
print(joined.counts)
rows.head()

# %% [markdown]
# ## By the definition
#
# The same count by a plain loop over each request's own events, and looked up for every row by its request.

# %%
requests = pl.from_arrow(main.to_arrow(["request_id", "request_ts", "history_ts"])).unique("request_id")
by_hand = {
    row["request_id"]: sum(0 < 1e3 * row["request_ts"].timestamp() - event <= 86_400_000 for event in row["history_ts"])
    for row in requests.iter_rows(named=True)
}
assert [by_hand[request] for request in rows["request_id"]] == rows[feature.column.name].to_list()
print(f"{len(rows):,} rows, each with the count of its own request")
folder.cleanup()
