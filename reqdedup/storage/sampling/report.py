"""What a sample of users did to the data: counts and concentration, before and after, per stratum and in total."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from reqdedup.storage.sampling.strata import Division
from reqdedup.storage.sampling.tally import UserTally

TOTAL = "total"
TOP_SHARE = 0.01

REPORT_SCHEMA = pa.schema(
    [
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("rate", pa.float64()),
        pa.field("target", pa.int64()),
        pa.field("cap", pa.int64()),
        *(
            pa.field(f"{name}_{when}", pa.int64(), nullable=False)
            for name in ("users", "requests", "rows")
            for when in ("before", "after")
        ),
        pa.field("users_cut", pa.int64(), nullable=False),
        *(
            pa.field(f"{name}_{when}", pa.float64())
            for name in ("gini_rows", "top1_percent_rows")
            for when in ("before", "after")
        ),
    ]
)


def gini(counts: np.ndarray) -> float:
    """Gini coefficient: 0 where all users have the same count, towards 1 where one has everything; NaN for no users."""
    total = counts.sum()
    if len(counts) == 0 or total == 0:
        return math.nan
    rank = np.arange(1, len(counts) + 1)
    return float(2 * (rank * np.sort(counts)).sum() / (len(counts) * total) - (len(counts) + 1) / len(counts))


def top_share(counts: np.ndarray, share: float = TOP_SHARE) -> float:
    """Part of all counts that the most active `share` of the users has (at least one user); NaN for no users."""
    total = counts.sum()
    if len(counts) == 0 or total == 0:
        return math.nan
    top = max(1, math.ceil(len(counts) * share))
    return float(np.sort(counts)[-top:].sum() / total)


def sampling_report(
    before: UserTally, after: UserTally, division: Division, settings: dict[str, list[float | None]]
) -> pa.Table:
    """One row per stratum and a last row "total".

    stratum; rate, target, cap: as asked for, null where not.
    users, requests, rows, each _before and _after.  users_cut: sampled users who lost requests to the cap.
    gini_rows, top1_percent_rows, each _before and _after: concentration of rows over users, null without users.
    """
    place = np.searchsorted(before.user_id, after.user_id)
    stratum_after = division.stratum_of_user[place]
    cut = after.requests < before.requests[place]
    rows = []
    for stratum, label in [*enumerate(division.labels), (-1, TOTAL)]:
        old = division.stratum_of_user == stratum if label != TOTAL else np.ones(before.num_users, bool)
        new = stratum_after == stratum if label != TOTAL else np.ones(after.num_users, bool)
        row: dict[str, object] = {"stratum": label, "users_cut": int(cut[new].sum())}
        row |= {name: values[stratum] if label != TOTAL else None for name, values in settings.items()}
        for when, tally, chosen in (("before", before, old), ("after", after, new)):
            row[f"users_{when}"] = int(chosen.sum())
            row[f"requests_{when}"] = int(tally.requests[chosen].sum())
            row[f"rows_{when}"] = int(tally.rows[chosen].sum())
            for name, measure in (("gini_rows", gini), ("top1_percent_rows", top_share)):
                value = measure(tally.rows[chosen])
                row[f"{name}_{when}"] = None if math.isnan(value) else value
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=REPORT_SCHEMA)
