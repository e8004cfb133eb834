"""A run reads the days that can have changed, and gives the rows that a run which reads everything gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reqdedup import storage
from reqdedup.serving.impressions import attribution
from reqdedup.serving.impressions.attribution import collect_impressions, mature_impressions
from reqdedup.serving.impressions.log import Click, ImpressionLog
from reqdedup.serving.impressions.matured import MATURED_PROPERTY, on_days, still_open
from reqdedup.storage import Layout, TableSource
from tests.serving.shown import HOUR_US, NOW_S, feed_schema, impression_of, raw_table, store_of_users

AGAIN = ("num_known", "num_repeated")  # of the days that were read


@pytest.fixture
def feed(catalog, tmp_path):
    raw_table(catalog)
    storage.create_table(catalog, "feed.whole", feed_schema(), Layout.ARRIVAL)
    return store_of_users(tmp_path / "store.sqlite", [40, 0, 9, 7]), tmp_path / "log"


def collected(catalog, folder, *records):
    with ImpressionLog(folder) as log:
        for record in records:
            assert (log.click if isinstance(record, Click) else log.show)(record)
    collect_impressions(folder, catalog, "feed")


def click(impression, place, hours_after=1.0):
    moment = int(impression.request_ts + hours_after * HOUR_US)
    return Click(request_id=impression.request_id, item_id=int(impression.slate[place]), event_ts=moment, label="click")


def mature(catalog, store, hours, name="raw_engagements"):
    return mature_impressions(
        catalog, "feed", catalog.load_table(f"feed.{name}"), store, now_s=NOW_S + hours * 3600
    ).counts()


def matured(catalog, store, hours, monkeypatch):
    """Counts of a run, after a comparison with one that has no note."""
    found = mature(catalog, store, hours)
    impressions = catalog.load_table("feed.impressions")
    note = impressions.properties[MATURED_PROPERTY]
    with monkeypatch.context() as patch:
        patch.setattr(attribution, "keep_note", lambda *_: None)
        wanted = mature(catalog, store, hours, "whole")
    assert catalog.load_table("feed.impressions").properties[MATURED_PROPERTY] == note
    assert {k: v for k, v in found.items() if k not in AGAIN} == {k: v for k, v in wanted.items() if k not in AGAIN}
    assert rows(catalog, "raw_engagements") == rows(catalog, "whole")
    return found


def rows(catalog, name):
    found = TableSource(catalog.load_table(f"feed.{name}")).to_arrow().to_pylist()
    return sorted(found, key=lambda row: (row["request_id"], row["position"]))


def num_planned(catalog, name="raw_engagements"):
    impressions = catalog.load_table("feed.impressions")
    wanted = still_open(impressions, catalog.load_table(f"feed.{name}"))
    return len(list(impressions.scan(wanted).plan_files()))


@pytest.mark.slow
def test_runs_that_read_what_can_have_changed_give_the_rows_of_runs_that_read_everything(catalog, feed, monkeypatch):
    store, folder = feed
    shown = [impression_of(store, 0, 10 + day, hours_ago=30 - 24 * day) for day in range(6)]
    gone, lacking = impression_of(store, 2, 30, hours_ago=60), impression_of(store, 0, 31, hours_ago=130)
    empty = impression_of(store, 1, 32, hours_ago=200, num_shown=0)
    del lacking.request["device"]
    store.delete_user(2)
    store.append(2, {"item_id": np.arange(9), "action": np.zeros(9, np.int32)}, key="other events")
    collected(catalog, folder, empty, gone, lacking, shown[0], click(shown[0], 1), click(shown[0], 2, hours_after=26))
    first = matured(catalog, store, 0, monkeypatch)
    assert (first["num_requests"], first["num_changed"], first["num_incomplete"]) == (1, 1, 1)

    for day, one in enumerate(shown[1:], start=1):
        collected(catalog, folder, one, replace(one), click(one, day % 3))
        assert matured(catalog, store, 24 * day, monkeypatch)["num_requests"] == 1

    late, later = impression_of(store, 3, 40, hours_ago=300), impression_of(store, 3, 41, hours_ago=29)
    collected(catalog, folder, late, click(late, 0), later)
    assert matured(catalog, store, 121, monkeypatch)["num_requests"] == 2

    again = store_of_users(folder.parent / "again.sqlite", [40, 0, 9, 7])  # the history is there again
    assert matured(catalog, again, 122, monkeypatch)["num_requests"] == 1
    assert len(rows(catalog, "raw_engagements")) == 3 * 9


@pytest.mark.slow
def test_days_that_are_settled_are_not_read_again_until_rows_of_the_table_went(catalog, feed):
    store, folder = feed
    for day in range(2, 8):
        collected(catalog, folder, impression_of(store, 0, day, hours_ago=24.0 * day))
    assert num_planned(catalog) == 6
    assert mature(catalog, store, 0)["num_requests"] == 6
    assert num_planned(catalog) == 0
    assert num_planned(catalog, "whole") == 6  # another table has its own rows
    assert mature(catalog, store, 0)["num_known"] == 0
    collected(catalog, folder, impression_of(store, 3, 20, hours_ago=24.0 * 5))
    assert num_planned(catalog) == 2  # of one day: the late one and its neighbour
    assert (mature(catalog, store, 0)["num_requests"], num_planned(catalog)) == (1, 0)

    raw = catalog.load_table("feed.raw_engagements")
    storage.compact(raw, force=True)
    assert num_planned(catalog) == 0
    storage.write(raw, [], mode="replace")
    assert num_planned(catalog) == 7
    assert mature(catalog, store, 0)["num_requests"] == 7


@pytest.mark.slow
def test_rows_that_a_rollback_took_back_come_again(catalog, feed):
    store, folder = feed
    collected(catalog, folder, impression_of(store, 0, 1))
    mature(catalog, store, 0)
    raw = catalog.load_table("feed.raw_engagements")
    raw.manage_snapshots().create_tag(raw.current_snapshot().snapshot_id, "before").commit()
    collected(catalog, folder, impression_of(store, 0, 2, hours_ago=90))
    assert mature(catalog, store, 0)["num_requests"] == 1
    storage.rollback_to(raw, "before")
    assert mature(catalog, store, 0)["num_requests"] == 1
    assert len(rows(catalog, "raw_engagements")) == 6


@pytest.mark.slow
def test_a_run_that_was_killed_after_its_rows_leaves_the_note_before_it(catalog, feed, monkeypatch):
    store, folder = feed
    collected(catalog, folder, impression_of(store, 0, 1))

    class KilledError(BaseException):
        pass

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(attribution, "keep_note", killed)
        with pytest.raises(KilledError):
            mature(catalog, store, 0)
    assert num_planned(catalog) == 1
    found = mature(catalog, store, 0)
    assert (found["num_requests"], found["num_known"], num_planned(catalog)) == (0, 1, 0)


def test_neighbouring_days_are_one_range():
    text = str(on_days([4, 5, 9, 12, 10], 11))
    assert text.count("GreaterThanOrEqual") == 3
    assert text.count("LessThan") == 2
