"""SASRec of RecTools in an environment of its own: `benchmarks.movielens_sasrec` starts this and asks it.

Reads a line of JSON from stdin for each question, answers with one on stdout; arrays lie in npz files.

    {"fit": file with item_T, offsets_R1; "seed": 0, "learning_rate": 0.001}   -> {}
    {"epochs": 20}  train on it for so many, going on           -> {"cpu_s": CPU seconds of these, all threads}
    {"score": file with histories; "out": file; "num_items": V}  -> {}  score_RV in `out`, lowest for unknown items

No module of this project is imported: its environment has none.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]  # of the other environment
import torch
from rectools import Columns  # type: ignore[import-not-found,unused-ignore]
from rectools.dataset import Dataset  # type: ignore[import-not-found,unused-ignore]
from rectools.models import SASRecModel  # type: ignore[import-not-found,unused-ignore]

SIZES = {"n_factors": 64, "n_blocks": 2, "n_heads": 2, "session_max_len": 200, "dropout_rate": 0.2}


def dataset(path: str) -> tuple[Any, np.ndarray]:
    """The lists of a file as interactions of users 0, 1, ..., and which of these have any."""
    with np.load(path) as arrays:
        item_T, offsets_R1 = arrays["item_T"], arrays["offsets_R1"]
    user_T = np.repeat(np.arange(len(offsets_R1) - 1), np.diff(offsets_R1))
    known = item_T >= 0
    table = pd.DataFrame({
        Columns.User: user_T[known],
        Columns.Item: item_T[known],
        Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(np.arange(len(item_T))[known], unit="s"),  # their order
    })  # fmt: skip
    return Dataset.construct(table), np.unique(user_T[known])


def new_model(question: dict[str, Any]) -> Any:
    torch.manual_seed(question["seed"])
    return SASRecModel(**SIZES, lr=question["learning_rate"], batch_size=128, loss="softmax", verbose=0)


def trained_cpu_s(model: Any, data: Any, epochs: int) -> float:
    before = time.process_time()
    model.fit_partial(data, min_epochs=epochs, max_epochs=epochs)
    return time.process_time() - before


def scores(model: Any, trained: Any, question: dict[str, Any]) -> np.ndarray:
    """[R, V] float32."""
    with np.load(question["score"]) as arrays:
        num_requests = len(arrays["offsets_R1"]) - 1
    data, users = dataset(question["score"])
    score_RV = np.full((num_requests, question["num_items"]), -1e9, np.float32)
    found = model.recommend(
        users=users, dataset=data, k=len(trained.item_id_map.external_ids), filter_viewed=False,
        on_unsupported_targets="ignore",
    )  # fmt: skip
    score_RV[found[Columns.User].to_numpy(), found[Columns.Item].to_numpy()] = found[Columns.Score].to_numpy()
    return score_RV


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the package prints is no answer
    model: Any = None
    for line in sys.stdin:
        question, answer = json.loads(line), {}
        if "fit" in question:
            model, (trained, _) = new_model(question), dataset(question["fit"])
        elif "epochs" in question:
            answer = {"cpu_s": trained_cpu_s(model, trained, question["epochs"])}
        else:
            np.savez(question["out"], score_RV=scores(model, trained, question))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
