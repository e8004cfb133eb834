"""The log of short histories is what its head says, and the same whenever it is made."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.news_log import MAX_FAN_OUT, MAX_HISTORY, NewsLog


def test_the_log_has_the_shape_that_it_states():
    dense, texts = NewsLog(60_000).tables()
    request = dense["request_id"].to_numpy()
    starts = np.flatnonzero(np.diff(request, prepend=-1))
    lists = dense["history_item_id"].combine_chunks().take(pa.array(starts))
    lengths, fan_out = lists.value_lengths().to_numpy(), np.bincount(request)
    assert 30 <= lengths.mean() <= 34
    assert 18 <= np.median(lengths) <= 20
    assert lengths.min() == 0
    assert lengths.max() <= MAX_HISTORY
    assert 36 <= fan_out.mean() <= 40
    assert fan_out.max() <= MAX_FAN_OUT
    users = np.unique(dense["user_id"].to_numpy())
    assert np.array_equal(users, np.arange(len(users)))
    assert 1.07 <= len(fan_out) / len(users) <= 1.09
    key = request * 10**6 + dense["item_id"].to_numpy()
    assert len(np.unique(key)) == len(key), "no candidate twice"
    assert len(texts) == len(dense)
    assert texts["request_id"].equals(dense["request_id"])
    by_text = dict(zip(texts["item_id"].to_pylist(), dense["item_id"].to_pylist()))
    assert len(set(by_text.values())) == len(by_text)


def test_equal_seeds_give_equal_logs():
    assert all(one.equals(two) for one, two in zip(NewsLog(2_000, 3).tables(), NewsLog(2_000, 3).tables()))
    assert not NewsLog(2_000, 3).tables()[0].equals(NewsLog(2_000, 4).tables()[0])
