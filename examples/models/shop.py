"""The log that the examples beside this file train on: a shop's impressions, made up here; put yours in their place."""

import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import reqdedup as rd
from reqdedup.storage import TableSource

COLUMNS = {
    "user": "user",
    "request": "request",
    "item": "item",
    "time": "at",
    "time_unit": "s",
    "labels": ["click", "buy"],
}


def impressions(num_users: int = 80, seed: int = 0) -> pa.Table:
    """Users like two of six categories; a request is about one, most often one they like."""
    rng, rows = random.Random(seed), []
    for user in range(num_users):
        liked, history = rng.sample(range(6), 2), []
        for visit in range(4):
            subject = rng.choice([*liked, rng.randrange(6)])
            shown = rng.sample(range(120), 6)
            clicks = [int(item % 6 in (subject, liked[0]) and rng.random() < 0.8) for item in shown]
            for item, click in zip(shown, clicks, strict=True):
                rows.append(
                    {"user": user, "request": 10 * user + visit, "at": 1_700_000_000 + 1000 * visit + user, "item": item,
                     "category": item % 6, "subject": subject, "history_item_id": list(history), "click": click,
                     "buy": int(click and rng.random() < 0.2), "dwell_s": 30.0 * click * rng.random()}
                )  # fmt: skip
            history += [item for item, click in zip(shown, clicks, strict=True) if click]
    return pa.Table.from_pylist(rows)


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
