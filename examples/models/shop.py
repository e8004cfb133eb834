"""The log that the examples beside this file train on: a shop's impressions, made up here; put yours in their place."""

import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import reqdedup as rd
from reqdedup.storage import TableSource
from reqdedup.training import TrainingResult

COLUMNS = {
    "user": "user",
    "request": "request",
    "item": "item",
    "time": "at",
    "time_unit": "s",
    "labels": ["click", "buy"],
}
KNOWN_LATER = ["dwell_s"]  # measured after the click: what a model is to foretell, so none of its inputs


def impressions(num_users: int = 400, seed: int = 0) -> pa.Table:
    """Users click what a visit is about and, less often, what they always like, two of six categories that their
    histories tell; of the latter clicks half are bought, of others a tenth."""
    rng, rows = random.Random(seed), []
    for user in range(num_users):
        liked, history = rng.sample(range(6), 2), []
        for visit in range(8):
            subject = rng.randrange(6)
            shown = rng.sample(range(60), 6)
            clicks = [int(rng.random() < _chance(item % 6, liked, subject)) for item in shown]
            for item, click in zip(shown, clicks, strict=True):
                rows.append(
                    {"user": user, "request": 10 * user + visit, "at": 1_700_000_000 + 1000 * visit + user, "item": item,
                     "category": item % 6, "subject": subject, "history_item_id": list(history), "click": click,
                     "buy": int(click and rng.random() < (0.5 if item % 6 in liked else 0.1)),
                     "dwell_s": 30.0 * click * rng.random()}
                )  # fmt: skip
            history += [item for item, click in zip(shown, clicks, strict=True) if click]
    return pa.Table.from_pylist(rows)


def _chance(category: int, liked: list[int], subject: int) -> float:
    return 0.9 if category == subject else 0.5 if category in liked else 0.05


def source() -> TableSource:
    """The table `shop.engagements` of the lake in this folder, converted if it is not there yet."""
    lake = rd.open("lake")
    try:
        return lake.table("shop.engagements").source
    except ValueError:
        with tempfile.TemporaryDirectory() as folder:
            pq.write_table(impressions(), Path(folder) / "impressions.parquet")
            lake.convert(folder, "shop.engagements", COLUMNS)
        return lake.table("shop.engagements").source


def show(result: TrainingResult, *metrics: str) -> None:
    """How long was trained, and held-out figures beside chance and the best of the rules and shallow models."""
    print(f"{result.steps} steps in {result.training_s:.1f} s, ended by {result.stopped_by}")
    for row in result.judgement["figures"]:
        if row["slice"] == "all" and row["metric"] in metrics:
            best = row["best_baseline"]
            print(
                f"{row['metric']} {row['value']:.3f}, chance {row['chance']:.3f}, {best} {row['baselines'][best]:.3f}"
            )
