"""A user who is deleted leaves what serving keeps too: tables, log, store and states; dry unless told, never half."""

from __future__ import annotations

from dataclasses import replace

import pytest

import reqdedup as rd
from reqdedup.serving.impressions.attribution import collect_impressions
from reqdedup.serving.impressions.log import Click, ImpressionLog, read_log, sealed_files
from reqdedup.storage.maintenance import deletion
from tests.serving.shown import HOUR_US, impression_of, raw_table, store_of_users

USER = 2


class OpenLake(rd.Lake):
    """Over a catalog that is there already."""

    def __init__(self, catalog):
        self._opened = catalog

    @property
    def catalog(self):
        return self._opened


def click(impression):
    ts = impression.request_ts + HOUR_US
    return Click(request_id=impression.request_id, item_id=int(impression.slate[0]), event_ts=int(ts), label="click")


@pytest.fixture
def served(catalog, tmp_path):
    """A lake whose tables and whose log have impressions and clicks of three users, and their store."""
    raw_table(catalog)
    store = store_of_users(tmp_path / "store.sqlite", [40, 5, 9])
    for first in (100, 200):
        shown = [impression_of(store, user, first + user) for user in range(3)]
        # a click of the impression that is in the table may still be in the log
        late = [] if first == 100 else [click(impression_of(store, user, 100 + user)) for user in range(3)]
        # and the user may have sent one of what was shown to somebody else
        late.append(replace(click(shown[0]), user_id=USER))
        with ImpressionLog(tmp_path / "log") as log:
            for record in (*shown, *map(click, shown), *late):
                assert (log.click if isinstance(record, Click) else log.show)(record)
        if first == 100:
            collect_impressions(tmp_path / "log", catalog, "feed")
    return OpenLake(catalog), store, tmp_path / "log"


def held(lake, log):
    """Users of impressions, and requests of clicks, of tables and of the log."""
    columns = {"impressions": "user_id", "impression_clicks": "request_id"}
    tables = {
        name: sorted(lake.catalog.load_table(f"feed.{name}").scan().to_arrow()[column].to_pylist())
        for name, column in columns.items()
    }
    records = [read_log(path) for path in sealed_files(log)]
    return {
        **tables,
        "logged": sorted(one.user_id for of in records for one in of.impressions),
        "clicked": sorted(one.request_id for of in records for one in of.clicks),
    }


def places(store, log):
    return {"namespaces": "feed", "store": store.path, "impressions": log}


@pytest.mark.slow
def test_users_leave_tables_log_and_store_and_nobody_else_does(served):
    lake, store, log = served
    before = held(lake, log)
    assert before["clicked"] == [100, 101, 102, 200, 200, 201, 202]
    planned = lake.delete_user(USER, **places(store, log))
    assert held(lake, log) == before
    assert store.end(USER) is not None
    done = lake.delete_user(USER, apply=True, **places(store, log))
    found = {report.table: report.rows for report in done.reports if report.rows}
    assert found == {"feed.impressions": 1, "feed.impression_clicks": 2}
    assert [place.num_records for place in done.places] == [2, 2, 1]
    assert [place.num_records for place in planned.places] == [2, 2, 1]
    assert [report.rows for report in planned.reports] == [report.rows for report in done.reports]
    assert held(lake, log) == {
        "impressions": [0, 1],
        "impression_clicks": [100, 101],
        "logged": [0, 1],
        "clicked": [100, 101, 200, 201],
    }
    assert store.end(USER) is None
    assert (store.end(0).end, store.end(1).end) == (40, 5)
    again = lake.delete_user(USER, apply=True, **places(store, log))
    assert not again.is_found
    assert again.reports[0].snapshot_id is None


def test_what_was_not_named_is_said(served):
    lake, _, _ = served
    said = "\n".join(lake.delete_user(USER, namespaces="feed").not_searched)
    for option in ("--store", "--impressions", "--user-states", "memory of running servers"):
        assert option in said
    assert "feed.impressions" not in said
    of_one = "\n".join(lake.delete_user(USER, tables="feed.raw_engagements").not_searched)
    assert "table feed.impressions" in of_one


def test_a_place_that_is_not_there_ends_it_before_anything_is_deleted(served, tmp_path):
    lake, store, log = served
    before = held(lake, log)
    for wrong in ({"store": tmp_path / "no"}, {"impressions": tmp_path / "no"}, {"user_states": tmp_path / "no"}):
        with pytest.raises(ValueError, match="required, found none"):
            lake.delete_user(USER, apply=True, **{**places(store, log), **wrong})
    with pytest.raises(ValueError, match="at least one character"):
        lake.delete_user(keys=" ", apply=True, **places(store, log))
    assert held(lake, log) == before


@pytest.mark.slow
def test_a_run_that_was_killed_between_tables_is_finished_by_the_same_call(served, monkeypatch):
    lake, store, log = served
    delete_served, calls = deletion.delete_served, []

    def dies_at_the_second(table, users, requests):
        calls.append(table.name()[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return delete_served(table, users, requests)

    monkeypatch.setattr(deletion, "delete_served", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        lake.delete_user(USER, apply=True, **places(store, log))
    assert calls == ["impression_clicks", "impressions"]
    monkeypatch.undo()
    lake.delete_user(USER, apply=True, **places(store, log))
    assert held(lake, log)["impressions"] == [0, 1]
    assert held(lake, log)["clicked"] == [100, 101, 200, 201]
    assert store.end(USER) is None


@pytest.mark.slow
def test_what_a_server_is_writing_stays_and_is_said(served):
    lake, store, log = served
    with ImpressionLog(log) as running:
        running.show(impression_of(store, USER, 300))
        assert running.flush()
        done = lake.delete_user(USER, apply=True, **places(store, log))
        assert [place.num_held for place in done.places] == [0, 1, 0]
        assert "1 open record in impressions of log" in repr(done)
    assert lake.delete_user(USER, apply=True, **places(store, log)).places[1].num_records == 1


@pytest.mark.slow
def test_a_torn_line_goes_if_it_names_the_user(served):
    lake, store, log = served
    (path,) = sealed_files(log)
    with path.open("ab") as file:
        file.write(b'00000000 {"kind":"impression","user_id":2,"st\n00000000 {"kind":"impression","user_id":21,"st')
    lake.delete_user(USER, apply=True, **places(store, log))
    assert b'"user_id":2,' not in path.read_bytes()
    assert b'"user_id":21,' in path.read_bytes()


@pytest.mark.slow
def test_erased_means_that_no_file_of_the_tables_names_the_user_any_more(served):
    lake, store, log = served
    done = lake.delete_user(USER, apply=True, erase=True, drop_refs=True, **places(store, log))
    assert all(report.snapshots == 0 for report in done.reports)
    table = lake.catalog.load_table("feed.impressions")
    assert len(table.metadata.snapshots) == 1
