"""Recent event counts against a loop over every event, and over DuckDB's view of the same rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.arrays import recent_events as core
from reqdedup.schema import HISTORY_ITEM_ID, HISTORY_TS, Column, EngagementSchema, Kind, Level
from reqdedup.storage.features.recent_events import recent_event_counts

KEYS = [Column(name=name, dtype="int64", level=Level.KEY) for name in ("user_id", "request_id", "item_id")]
KEYS.append(Column(name="request_ts", dtype="timestamp", level=Level.REQUEST))


def requests(times_us: list[int], histories_ms: list[list[int]], name: str = HISTORY_TS) -> pa.RecordBatch:
    blobs = [np.array(history, "<i8").tobytes() for history in histories_ms]
    return pa.RecordBatch.from_pydict(
        {
            "request_ts": pa.array(times_us, pa.timestamp("us", tz="UTC")),
            name: pa.array(blobs, pa.binary()).dictionary_encode(),
        }
    )


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 30_000), st.lists(st.integers(0, 30), max_size=6)), max_size=12),
    window_s=st.sampled_from([0.001, 0.005, 1.0]),
    chunk=st.sampled_from([1, 3, 2**22]),
)
def test_events_in_the_window_before_a_request_are_counted_one_by_one(data, window_s, chunk):
    times = [1_000 * (time // 1_000) + time % 2 for time, _ in data]
    histories = [history for _, history in data]  # equal ones share a dictionary value
    expected = [
        sum(time - window_s * 1e6 <= ms * 1000 < time for ms in history) for time, history in zip(times, histories)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "CHUNK_EVENTS", chunk)
        found = recent_event_counts(window_s)(requests(times, histories))
    assert found.type == pa.int32()
    assert found.to_pylist() == expected


def test_a_log_without_event_times_counts_the_history():
    schema = EngagementSchema(
        (*KEYS, Column(name=HISTORY_ITEM_ID, dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE))
    )
    feature = recent_event_counts(60)
    assert feature.inputs(schema) == (HISTORY_ITEM_ID,)
    assert feature(requests([5, 6, 7], [[], [9, 9, 9], []], HISTORY_ITEM_ID)).to_pylist() == [0, 3, 0]


@pytest.mark.parametrize(("per_second", "unit"), [(1, "s"), (10**6, "us"), (10**9, "ns")])
def test_event_times_in_another_unit_are_refused_and_not_counted_as_none(per_second, unit):
    request_s = 1_760_000_000
    batch = requests([request_s * 10**6] * 3, [[(request_s - 60) * per_second], [], [(request_s - 5) * per_second]])
    with pytest.raises(ValueError, match=f"history_ts: .* ms .* seem to be in {unit} .* --history-time-unit {unit}"):
        recent_event_counts(3600)(batch)
    in_ms = requests([request_s * 10**6] * 3, [[(request_s - 60) * 1000], [0], [1, (request_s - 5) * 1000]])
    assert recent_event_counts(3600)(in_ms).to_pylist() == [1, 0, 1]


def test_a_log_without_history_or_a_window_without_length_is_refused():
    with pytest.raises(ValueError, match=r"history_ts or history_item_id required.* --rename COLUMN=history_ts"):
        recent_event_counts(60).inputs(EngagementSchema(tuple(KEYS)))
    with pytest.raises(ValueError, match="window_s must be positive"):
        recent_event_counts(0)
