"""The synthetic stream is what it says: late, delivered twice, in sessions whose order tells what comes next."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from reqdedup.logs.synthetic_events import (
    DAY_US,
    SyntheticEventsConfig,
    next_item,
    synthetic_events,
    synthetic_items,
    synthetic_requests,
)

CONFIG = SyntheticEventsConfig(num_users=300, num_items=500, num_days=6)


@pytest.fixture(scope="module")
def events() -> pa.Table:
    return pa.concat_tables(synthetic_events(CONFIG))


def us(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.int64()).to_numpy()


def test_days_follow_one_another_and_the_seed_decides(events: pa.Table):
    arrival = us(events.column("arrival_ts"))
    assert (np.diff(arrival) >= 0).all()
    for number, day in enumerate(synthetic_events(CONFIG)):
        assert (us(day.column("arrival_ts")) // DAY_US == CONFIG.start_us // DAY_US + number).all()
    again = pa.concat_tables(synthetic_events(CONFIG))
    assert again.drop_columns("duration_s").equals(events.drop_columns("duration_s"))
    other = SyntheticEventsConfig(num_users=300, num_items=500, num_days=6, seed=1)
    assert not pa.concat_tables(synthetic_events(other)).equals(events)


def test_some_are_late_delivered_twice_or_without_a_dwell_time(events: pa.Table):
    delay = us(events.column("arrival_ts")) - us(events.column("event_ts"))
    assert 0.005 < np.mean(delay > 3_600_000_000) < 0.03
    num_again = len(events) - len(events.column("event_id").unique())
    assert 0.003 < num_again / len(events) < 0.007
    views = events.filter(pc.equal(events.column("event_type"), "view")).column("duration_s")
    assert views.null_count > 0
    assert pc.sum(pc.is_nan(views)).as_py() > 0


def test_the_last_event_tells_the_next_one_and_the_click(events: pa.Table):
    order = np.lexsort((us(events.column("event_ts")), events.column("user_id").to_numpy()))
    user, item = (events.column(name).to_numpy()[order] for name in ("user_id", "item_id"))
    follows = (item[1:] == next_item(item[:-1], CONFIG.num_items)) & (user[1:] == user[:-1])
    assert 0.3 < follows.mean() < 0.6
    requests = synthetic_requests(CONFIG, num_requests=200, fan_out=4)
    assert len(requests) == 800
    assert (np.diff(requests.column("request_id").to_numpy()) >= 0).all()
    assert 0.2 < pc.mean(requests.column("click")).as_py() < 0.3
    assert synthetic_items(CONFIG, width=4).column("embedding").type == pa.binary(8)
