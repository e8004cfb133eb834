"""The model that train_on_it.py made, asked in this process: what `reqdedup serve` answers over HTTP.

python examples/ask_it.py 7 3 5 9
"""

import sys

import numpy as np

import reqdedup as rd
from reqdedup.sequences.store import Window

user, *items = map(int, sys.argv[1:])
rows = rd.open("lake").table("ads.engagements").to_polars(["user_id", "history_item_id"])
history = rows.filter(rows["user_id"] == user)["history_item_id"].to_list()[-1]

ranker = rd.serving.Ranker.of(rd.serving.Bundle.load("runs/ranking/bundle"))
request = rd.serving.RankRequest(
    user_id=user,
    candidates={"item_id": items},
    history=Window(columns={"item_id": np.array(history)}, start=0, end=len(history), version=0),
)
answer = ranker.rank(request)
for item, logit in sorted(zip(items, answer.logits["click"], strict=True), key=lambda pair: -pair[1]):
    print(item, f"{logit:+.3f}")
