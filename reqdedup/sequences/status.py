"""Where a namespace's timeline stands."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pyiceberg.catalog import Catalog

from reqdedup.sequences.tables import delivered_of, load_raw
from reqdedup.sequences.timeline import open_timeline, versions


def timeline_status(catalog: Catalog, namespace: str) -> dict[str, Any]:
    """What JSON can hold of it. Raises ValueError if there are no events or no timeline."""
    delivered, timeline = delivered_of(load_raw(catalog, namespace)), open_timeline(catalog, namespace)
    state = timeline.state
    return {
        "delivered": delivered.next_position,
        "last_arrival": _time(delivered.arrival_us),
        "version": state.version,
        "versions": versions(timeline.table),
        "watermark": state.position,
        "watermark_arrival": _time(state.arrival_us),
        "waiting": delivered.next_position - state.position,
        "events": sum(file.record_count for file in timeline.files),
        "files": len(timeline.files),
        "bytes": sum(file.file_size_in_bytes for file in timeline.files),
        "definitions": [
            {
                "name": one.name,
                "version": one.version,
                "fingerprint": one.fingerprint,
                "stage": one.stage,
                "owner": one.owner,
                "last_n": one.last_n,
                "window": one.window,
            }
            for one in timeline.definitions
        ],
    }


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()
