"""A folder of made-up impressions for the other examples: 3,000 requests of 201 users, five items shown in each.

python examples/impressions.py impressions

A user likes every third of 90 items; the history is what the user clicked before.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

rng, rows = np.random.default_rng(0), []
clicked: dict[int, list[int]] = {user: [] for user in (4711, *range(200))}
for request in range(3_000):
    user = int(rng.choice(list(clicked)))
    shown = {
        item: int(rng.random() < (0.6 if item % 3 == user % 3 else 0.1)) for item in rng.permutation(90)[:5].tolist()
    }
    of_request = {"user_id": user, "request_id": request, "ts": 1_760_000_000 + 60 * request, "country": user % 4}
    of_request["history"] = clicked[user]
    rows += [{**of_request, "item_id": item, "click": click} for item, click in shown.items()]
    clicked[user] = clicked[user] + [item for item, click in shown.items() if click]

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
