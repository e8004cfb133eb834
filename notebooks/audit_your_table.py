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
# # Audit a table of your own
#
# What would a table that you have save, and what does it save once it is converted? Its files are read, a sample is
# laid down in other layouts, and the whole is estimated with an interval; nothing is changed. Then the table is
# converted and the estimate is compared with what was written.
#
# Without a folder a table of 16,000 rows is made: one row per candidate, the history repeated in each, in no order.
# Name a folder of Parquet files and its columns below for your own. To execute this notebook: `make notebooks`.

# %% tags=["parameters"]
folder = None  # of Parquet files
columns = {"user": "member", "request": "session", "item": "shown", "time": "at", "time_unit": "s", "labels": ["click"]}

# %%
import sys
import tempfile
from pathlib import Path

root = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "pyproject.toml").exists())
sys.path.insert(0, str(root))

import numpy as np
import polars as pl
from IPython.display import display

import reqdedup as rd
from reqdedup import plots
from reqdedup.display import format_bytes

# %%
work = tempfile.TemporaryDirectory(prefix="reqdedup-")
if folder is None:
    rng, sessions = np.random.default_rng(0), []
    for session in range(800):
        member, at = session % 160, 1_760_000_000 + 40 * session
        seen = np.random.default_rng(member).integers(50_000, size=200)[: 100 + session // 16]  # grows
        for shown in rng.integers(50_000, size=20).tolist():
            row = {"member": member, "session": session, "shown": shown, "at": at, "click": shown % 9 == 0}
            sessions.append({**row, "seen": seen.tolist()})
    folder = Path(work.name) / "impressions"
    folder.mkdir()
    pl.DataFrame(sessions).sample(fraction=1.0, shuffle=True, seed=0).write_parquet(folder / "part.parquet")

# %% [markdown]
# ## The audit
#
# Which columns are the same in all rows of a request is found out, not asked for.

# %%
lake = rd.open(Path(work.name) / "lake")
audit = lake.audit(folder, request_key=columns["request"], user_key=columns["user"])
print(*audit.verdict, sep="\n")
estimates = {one.layout: one for one in audit.layouts}
limit = estimates.pop("STORE_ONCE").bytes
stored = {"today": float(audit.table.compressed_bytes), **{name: one.bytes for name, one in estimates.items()}}
display(
    plots.bars(
        stored,
        title="the whole table: today, and estimated in each layout",
        limits=dict.fromkeys(stored, limit),
        intervals={name: (one.low, one.high) for name, one in estimates.items()},
    )
)

# %% [markdown]
# ## Column by column

# %%
chosen = ["name", "level", "repeat_ratio", "compressed_bytes", "SORTED_LARGE_PAGES_bytes", "BY_REQUEST_bytes"]
with pl.Config(tbl_rows=-1, tbl_width_chars=120, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
    display(audit.to_polars()[chosen])

# %% [markdown]
# ## Converted
#
# Every row is compared with the source; a difference would be an error and no table.

# %%
made = lake.convert(folder, "own.engagements", columns)
estimate = estimates["BY_REQUEST"]
print(f"{made.rows:,} rows of {made.requests:,} requests, equal value by value")
print(
    f"estimated {format_bytes(estimate.bytes)} ({format_bytes(estimate.low)} to {format_bytes(estimate.high)}),",
    end=" ",
)
print(f"written {format_bytes(made.bytes)}")
display(
    plots.bars(
        {"today": audit.table.compressed_bytes, "estimated": estimate.bytes, "written": made.bytes},
        title="stored bytes",
        intervals={"estimated": (estimate.low, estimate.high)},
    )
)
work.cleanup()
