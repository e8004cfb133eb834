"""Plain loops = all events at once = micro-batches of any size, event for event."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.sequences import naive
from reqdedup.sequences.definition import Enrichment, EventType, SequenceDefinition
from reqdedup.sequences.intake import number_events
from reqdedup.sequences.lookups import prepared
from reqdedup.sequences.sources import json_batches
from reqdedup.sequences.speed import SpeedView
from reqdedup.sequences.tables import INDEX, Delivered
from reqdedup.sequences.timeline import rank_steps
from reqdedup.sequences.timeline_builder import TimelineBuilder
from tests.sequences.event_streams import (
    DAY_US,
    HORIZON_US,
    ITEMS,
    LOG,
    NOW_US,
    START_US,
    columns_of,
    definitions,
    frame_of,
    lookups,
    plain_lookups,
    same,
    streams,
)

TABLES = {name: prepared(pl.from_arrow(table)) for name, table in lookups().items()}


@pytest.mark.slow
@settings(max_examples=25)
@given(events=streams(), wanted=definitions(), data=st.data())
def test_plain_loops_and_micro_batches_of_any_size_agree(events: list[dict], wanted: list, data: st.DataObject):
    accepted = naive.accept(LOG, events, NOW_US)
    required = naive.timelines(LOG, wanted, accepted.events, plain_lookups(), horizon_us=HORIZON_US)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)), max_size=5)) | {0, len(events)})
    builder = TimelineBuilder(LOG, wanted, TABLES, horizon_us=HORIZON_US)
    delivered, num_backwards, rejected = Delivered(), 0, []
    nothing = number_events(LOG, frame_of([]), delivered, NOW_US).events
    view = SpeedView(builder, lambda users, names, builder=builder: builder.no_ends(), nothing, position=0, version=1)
    for start, end in pairwise(cuts):
        found = number_events(LOG, frame_of(events[start:end]), delivered, NOW_US)
        last_us = int(found.events["arrival_ts"].dt.epoch("us").max() or 0)
        delivered = Delivered(next_position=end, arrival_us=max(delivered.arrival_us, last_us))
        num_backwards += found.num_backwards
        rejected += list(zip(found.rejected["position"], found.rejected["reason"]))
        view.put(found.events)
        assert view.put(found.events) == 0  # delivered once more by the stream
    assert rejected == accepted.rejected
    assert num_backwards == accepted.num_backwards
    assert (view.counts.num_duplicates, view.counts.num_conflicts) == (required.num_duplicates, required.num_conflicts)
    schema = builder.schema
    names = [name for name in schema.names if name not in ("user_id", INDEX, "timeline_version")]
    wanted_columns = pa.schema([schema.field(name) for name in names])
    for user in {event["user_id"] for event in accepted.events}:
        timeline = required.of_user.get(user, [])
        found_columns = view.of_user(user)
        if not timeline:
            assert found_columns is None
        else:
            assert found_columns is not None
            assert same({n: found_columns[n] for n in names}, columns_of(timeline, wanted_columns))


def test_two_rows_for_one_key_and_time_are_named():
    rows = pl.DataFrame({"item_id": [1, 2, 2], "category": [5, 6, 7]})
    one = SequenceDefinition(
        name="all",
        events=[EventType("view")],
        columns=["category"],
        last_n=5,
        owner="tests",
        enrichments=[Enrichment("item", ITEMS, "item_id", ["category"])],
    )
    with pytest.raises(
        ValueError, match=r"one row for each item_id required, found two: \{'item_id': 2, 'category': 6\} and .*7\}"
    ):
        TimelineBuilder(LOG, [one], {ITEMS: rows})


def test_an_id_that_cannot_be_read_is_rejected_with_its_place_and_text_is_hashed():
    frame = pl.DataFrame(
        {
            "event_id": ["a-1", "7", "", None],
            "user_id": [1.0, 2.0, 3.0, 1.5],
            "event_type": ["view"] * 4,
            "event_ts": ["2026-01-01T00:00:00Z"] * 3 + ["soon"],
            "surface": ["1", "one", "2", "3"],
        }
    )
    found = number_events(LOG, frame, Delivered(next_position=10), START_US + 365 * naive.FUTURE_US)
    assert found.events["position"].to_list() == [10]
    assert found.events["event_id"][0] > 2**32
    assert found.rejected.select("position", "source_row", "reason").rows() == [
        (11, 1, "surface cannot be read"),
        (12, 2, "event_id cannot be read"),
        (13, 3, "user_id cannot be read"),
    ]
    assert '"surface": "one"' in found.rejected["raw"][0]


def test_ids_of_a_stream_are_the_same_whatever_stands_beside_them():
    alone = [7, 7.0, 2**40, 1.5, float("nan"), True, [7], None]
    rows = [{"event_id": 1, "user_id": one, "event_type": "view", "event_ts": "2026-01-01T00:00:00Z"} for one in alone]
    said = {}
    for more in ([], [{**rows[0], "user_id": "u-1"}]):
        frame = pl.from_arrow(next(json_batches([*rows, *more], LOG)))
        found = number_events(LOG, frame, Delivered(), START_US + 365 * naive.FUTURE_US)
        said[len(more)] = found.events["user_id"].to_list()[:3], found.rejected["reason"].to_list()
    reasons = [*["user_id cannot be read"] * 4, "user_id is null"]
    assert said == dict.fromkeys((0, 1), ([7, 7, 2**40], reasons))


def test_times_of_text_are_the_same_whatever_stands_beside_them():
    day = "2026-11-01"
    said = [f"{day}T00:00:00Z", f"{day}T01:00:01.5+01:00", f"{day}T00:00:02", f"{day} 00:00:03.25", day, f"{day}T00:05"]
    microseconds = [0, 1_500_000, 2_000_000, 3_250_000, 0, 300_000_000]
    midnight_us = 1_793_491_200_000_000
    for order in (range(6), range(5, -1, -1), *([one] for one in range(6))):
        frame = pl.DataFrame(
            {"event_id": list(order), "user_id": 1, "event_type": "click", "event_ts": [said[one] for one in order]}
        )
        found = number_events(LOG, frame, Delivered(), midnight_us + DAY_US)
        assert found.events["event_ts"].dt.epoch("us").to_list() == [midnight_us + microseconds[one] for one in order]


def test_an_event_delivered_again_after_the_horizon_is_another_one():
    def delivered(*days: int) -> list[dict]:
        view = {"event_id": 1, "user_id": 7, "item_id": 1, "event_type": "view", "surface": 1, "duration_s": 1.0}
        times = [START_US + day * (HORIZON_US // 2) + (day % 2) for day in days]
        return [{**view, "query": None, "event_ts": START_US, "arrival_ts": time} for time in times]

    everything = SequenceDefinition(
        name="all", events=[EventType("view")], columns=["event_id"], last_n=5, owner="tests"
    )
    for days, kept in (((0, 2), 1), ((0, 3), 2), ((0, 2, 4), 1), ((1, 3), 1), ((0, 0), 1)):
        builder = TimelineBuilder(LOG, [everything], {}, horizon_us=HORIZON_US)
        events = number_events(LOG, frame_of(delivered(*days)), Delivered(), NOW_US).events
        for size in (1, 10):
            nothing = events.clear()
            view = SpeedView(
                builder, lambda users, names, builder=builder: builder.no_ends(), nothing, position=0, version=1
            )
            for part in events.iter_slices(size):
                view.put(part)
            assert view.counts.num_kept == kept, (days, size)


def test_an_event_is_of_a_sequence_if_it_raises_the_rank_that_its_user_had():
    rng = np.random.default_rng(0)
    for num_events in (0, 1, 63, 1000):
        user_T = np.sort(
            rng.integers(-(2**63), 2**63, 1 + num_events // 9)[rng.integers(0, 1 + num_events // 9, num_events)]
        )
        is_member_T = rng.random(num_events) < 0.4
        rank_T, ranks = np.zeros(num_events, np.int32), dict[int, int]()
        for row, (user, is_member) in enumerate(zip(user_T.tolist(), is_member_T.tolist())):
            rank_T[row] = ranks[user] = ranks.get(user, 0) + is_member
        assert rank_steps(user_T, rank_T).tolist() == is_member_T.tolist()
