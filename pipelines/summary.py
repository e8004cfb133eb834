"""What a run made, in one screen: read from the metadata of the newest materializations."""

from __future__ import annotations

from typing import Any

import dagster as dg

from pipelines.environment import Environment


def asset_metadata(instance: dg.DagsterInstance, asset: str) -> dict[str, Any]:
    """Metadata values of the asset's newest materialization; empty where there is none."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    if event is None or event.asset_materialization is None:
        return {}
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def human_bytes(count: float) -> str:
    """1536 -> '1.5 kB' (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
