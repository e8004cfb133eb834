"""What assets of one part of the graph share: the group that the UI opens them in, and whom to ask.

The groups read in the order of the data: storage, training, serving.
"""

from __future__ import annotations

from typing import Any

STORAGE: dict[str, Any] = {"group_name": "storage", "owners": ["team:storage"]}
TRAINING: dict[str, Any] = {"group_name": "training", "owners": ["team:modeling"]}
SERVING: dict[str, Any] = {"group_name": "serving", "owners": ["team:serving"]}

LOG, TABLE, CONTROL = {"role": "log"}, {"role": "table"}, {"role": "control"}
MODEL, REPORT = {"role": "model"}, {"role": "report"}
"""The tag of an asset, to select by: `dg launch --assets 'tag:role=report'`."""
