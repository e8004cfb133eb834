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
# # From a batch to DCAT, in small tensors
#
# Two requests, six candidates. What belongs to a request is held once, and every step below says where it is
# computed: on R requests, on T events of their histories, or on B rows. At the end the logits are compared with those
# of the same model computed once per row: the deduplicated model is not an approximation.
#
# Needs no tables. To execute this notebook: `make notebooks`. Times are those of this machine.

# %% tags=["parameters"]
num_repetitions = 3  # of what is timed; the median is shown

# %%
import sys
import time
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists())
sys.path.insert(0, str(root))

import numpy as np
import torch

from reqdedup import plots
from reqdedup.batch import RequestBatch
from reqdedup.models import DCAT, DCATConfig
from reqdedup.models.dcat import naive
from reqdedup.models.duplicated import duplicate

_ = torch.manual_seed(0)

# %% [markdown]
# ## The batch
#
# Request 0 is of user 7, who has three events behind them and sees four candidates; request 1 of user 9, with one
# event and two candidates. Offsets say whose an event or a row is; nothing is padded and nothing is copied.

# %%
batch = RequestBatch(
    user_id_R=torch.tensor([7, 9]),
    history={"item_id": torch.tensor([101, 102, 103, 201])},
    history_offsets_R1=torch.tensor([0, 3, 4]),
    item_id_B=torch.tensor([11, 12, 13, 14, 21, 22]),
    row_offsets_R1=torch.tensor([0, 4, 6]),
    request_of_row_B=torch.tensor([0, 0, 0, 0, 1, 1]),
)
batch.validate()
print(batch)
rows = duplicate(batch)  # what a pipeline of one row per item would hold
print(f"events held: {batch.num_history_tokens}; with one row per item: {rows.num_history_tokens}")

# %% [markdown]
# ## R is not B
#
# A value of a request reaches its rows by `expand`, on the device, when a model asks for it.

# %%
user_RD = torch.tensor([[0.7, 0.1], [0.9, 0.2]])
print("user_RD", tuple(user_RD.shape), "-> user_BD", tuple(batch.expand(user_RD).shape))
print(batch.expand(user_RD))

# %% [markdown]
# ## The context, once per request
#
# `encode_context` sees the T events alone. What is left of them are keys and values of every layer, [T, heads, width
# of a head]: all that a candidate will look at, and all that a server has to keep of a user.

# %%
config = DCATConfig(width=8, num_heads=2, num_layers=2, ffn_width=16, item_table_rows=512, hidden_widths=(8,))
model = DCAT(config).eval()
context = model.encode_context(batch)
for layer, (key, value) in enumerate(context.keys_values):
    print(f"layer {layer}: keys {tuple(key.shape)}, values {tuple(value.shape)}")
print("offsets of the two histories", context.offsets_G1.tolist(), f"- {context.num_bytes} bytes")

# %% [markdown]
# ## The crossing, once per row
#
# Each candidate stands right after its request's history: its query meets that history's keys, and itself. Other
# candidates it does not see, so their number and order change nothing.

# %%
with torch.no_grad():
    crossed_BD = model.cross(context, batch)
    logits = model.score(context, batch)
print("crossed_BD", tuple(crossed_BD.shape), "-> logits", tuple(logits.shape))

# %% [markdown]
# ## The same as once per row
#
# The law: a plain causal transformer over [history ; candidate], a sequence for every row, the same weights.

# %%
law = naive.DCAT(config).eval()
law.load_state_dict(model.state_dict())
with torch.no_grad():
    difference = float((model(batch) - law(batch)).abs().max())
assert difference < 1e-5, difference
print(f"largest difference of a logit: {difference:.1e}")

# %% [markdown]
# ## What it saves
#
# Eight requests of 128 events each, with more and more candidates. The context costs the same for one candidate as
# for a hundred; computed once per row it costs a hundred times as much.


# %%
def requests_with(fan_out, *, num_requests=8, length=128):
    row_offsets_R1 = torch.arange(num_requests + 1) * fan_out
    return RequestBatch(
        user_id_R=torch.arange(num_requests),
        history={"item_id": torch.randint(512, (num_requests * length,))},
        history_offsets_R1=torch.arange(num_requests + 1) * length,
        item_id_B=torch.randint(512, (num_requests * fan_out,)),
        row_offsets_R1=row_offsets_R1,
        request_of_row_B=torch.arange(num_requests).repeat_interleave(fan_out),
    )


def milliseconds(compute, batch):
    """CPU time, which other programs of the machine leave alone; after a first pass that is not counted."""
    took = []
    for _ in range(num_repetitions + 1):
        started = time.process_time()
        with torch.no_grad():
            compute(batch)
        took.append(1e3 * (time.process_time() - started))
    return float(np.median(took[1:]))


times = {}
torch.set_num_threads(1)
for fan_out in (1, 4, 16, 64):
    large = requests_with(fan_out)
    times[f"fan-out {fan_out}"] = {
        "once per row": milliseconds(law, large),
        "once per request": milliseconds(model, large),
    }
plots.points(
    times, title="one pass over 8 requests, CPU time, median [ms]", format_value=lambda value: f"{value:.3g} ms"
)
