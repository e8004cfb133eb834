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
# # User sequences
#
# Events become a timeline per user, in the order of their arrival; a sequence is a window of it, and a request is a
# number: how many events had arrived before it. Below: whether the timeline is fresh, how complete it is, one user
# drawn, what late events would do to histories that are made by event time, and what it costs.
#
# Made from the tables of the assets `raw_events`, `user_events` and `sequence_report`: run `make run` first. To execute
# this notebook: `make notebooks`. Your own events: docs/sequences.md.

# %% tags=["parameters"]
namespace = None  # None: that of the newest report
data_dir = None  # None: the lake of the environment, by default warehouse/data

# %%
import json
import sys
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists())
sys.path.insert(0, str(root))

import numpy as np
import polars as pl
from IPython.display import display

import reqdedup as rd
from reqdedup import plots
from reqdedup.sequences.quality import check_quality, shares
from reqdedup.sequences.timeline import each_bucket, open_timeline
from warehouse import load_table

# %%
lake = rd.open(data_dir)
catalog = lake.catalog
if namespace is None:
    reports = [".".join((*space, "sequence_quality")) for space in catalog.list_namespaces()]
    reports = [catalog.load_table(name) for name in reports if catalog.table_exists(name)]
    newest = max(reports, key=lambda table: table.metadata.last_updated_ms, default=None)
    namespace = newest.name()[0] if newest else "laptop"
report = load_table(catalog, namespace, "sequence_quality").scan().to_arrow()
status = lake.sequences(namespace).status()
for one in status["definitions"]:
    print(f"{one['name']}: version {one['version']}, {one['stage']}, last {one['last_n']}, owner {one['owner']}")

# %% [markdown]
# ## Freshness
#
# Delivered events that are not in the timeline yet wait; a server sees them all the same, since it puts them on top of
# its view as they come.

# %%
print(f"delivered        {status['delivered']:>12,} events, the last arrived {status['last_arrival']}")
print(f"in the timeline  {status['events']:>12,} events that a sequence takes, version {status['version']}")
print(f"waiting          {status['waiting']:>12,}")

# %% [markdown]
# ## Lag, coverage and nulls
#
# By day of arrival. The checks compare the last day with limits, and its shares of nulls with those of the days before.

# %%
plots.sequence_figures(report)

# %%
for finding in check_quality(report):
    print(f"{finding.name:<12}{'within the limits' if finding.ok else '; '.join(finding.wrong)}")
for enrichment, share in shares(report, "covered").items():
    print(f"{share:.1%} of the events of the last day have a value of the enrichment {enrichment}")
rows = pl.from_arrow(report)
last = rows.filter((pl.col("day") == rows["day"].max()) & (pl.col("of") == ""))
with pl.Config(tbl_rows=-1, float_precision=2, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
    display(last.pivot(on="figure", index="event_type", values="value"))

# %% [markdown]
# ## One user
#
# Each point is an event at the time of its arrival; a red line leads back to when it happened, long for late ones. The
# request at the dashed line sees what lies before it, the last events of the sequence. A late event that arrives after
# it is appended and changes nothing of what it saw.

# %%
timeline = open_timeline(catalog, namespace)
definition = timeline.definitions[-1]
names = ["event_type", "event_ts", "arrival_ts", definition.rank_column]
events = pl.concat([pl.from_arrow(found) for _, found in each_bucket(timeline, names)])
late = (pl.col("arrival_ts") - pl.col("event_ts")).dt.total_hours() >= 1
users = events.group_by("user_id").agg(pl.len(), late.sum().alias("late")).filter(pl.col("len").is_between(40, 90))
user = users.sort("late", "user_id", descending=True)["user_id"][0]
mine = events.filter(pl.col("user_id") == user).sort("timeline_index")
request_at = mine["arrival_ts"][len(mine) * 2 // 3]
end = int((mine["arrival_ts"] < request_at).sum())
plots.user_timeline(
    {
        "event_ts": mine["event_ts"].to_list(),
        "arrival_ts": mine["arrival_ts"].to_list(),
        "event_type": [timeline.log.types[code] for code in mine["event_type"]],
    },
    request_at=request_at,
    end=end,
    start=max(0, end - 20),
    title=f"user {user}: a request that sees the last 20 of its {end} events",
)

# %% [markdown]
# ## What late events do
#
# A history that is made later, by event time, holds events that had not arrived when the request was made: the model
# learns from what no server will see. Here a request is made at the arrival of each tenth event, and one is wrong if an
# event that happened before it arrived later.

# %%
in_order = events.sort("user_id", "timeline_index")
happened = in_order["event_ts"].dt.epoch("us").to_numpy()
arrived = in_order["arrival_ts"].dt.epoch("us").to_numpy()
user_of = in_order["user_id"].to_numpy()
ends = np.searchsorted(user_of, user_of, "right")
wrong = [bool((happened[place:end] < arrived[place]).sum() > 1) for place, end in enumerate(ends) if place % 10 == 0]
is_late = (arrived - happened) >= 3_600_000_000
print(f"{is_late.mean():.1%} of the events arrive an hour or more after they happened")
print(
    f"{np.mean(wrong):.1%} of {len(wrong):,} requests would see an event that had not arrived, by event time; here: none"
)

# %% [markdown]
# ## What it costs
#
# Measured by `python -m benchmarks.sequences` on Iceberg tables, one thread: each row is a ratio within one run.

# %%
results = root / "benchmarks" / "results" / "sequences.jsonl"
measured = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
costs = pl.DataFrame(
    [{name: row.get(name) for name in ("claim", "variant", "value", "unit", "target")} for row in measured],
    schema={"claim": pl.String, "variant": pl.String, "value": pl.Float64, "unit": pl.String, "target": pl.Float64},
    strict=False,
)
if measured:
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=90, tbl_width_chars=200, float_precision=1):
        display(costs)
else:
    print("no row yet: run `python -m benchmarks.sequences`")
