"""`reqdedup impressions` collects and matures."""

from __future__ import annotations

import json

import pytest

from reqdedup import cli
from reqdedup.serving.impressions.log import Click, ImpressionLog
from reqdedup.storage import TableSource, open_catalog
from tests.serving.shown import impression_of, raw_table, store_of_users


@pytest.mark.slow
def test_what_was_shown_is_collected_and_labelled(tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/catalog.db"
    catalog = open_catalog(properties={"uri": uri, "warehouse": f"file://{tmp_path}/tables"})
    raw_table(catalog)
    store = store_of_users(tmp_path / "s.sqlite", [12])
    shown = impression_of(store, 0, 5, hours_ago=1e5)
    with ImpressionLog(tmp_path / "log") as log:
        log.show(shown)
        log.click(Click(request_id=5, item_id=int(shown.slate[0]), event_ts=shown.request_ts + 1, label="click"))

    def run(*arguments):
        assert cli.main([*map(str, arguments), "--namespace", "feed", "--catalog-uri", uri]) == 0
        return capsys.readouterr().out

    assert "1 file, 1 impression, 1 click" in run("impressions", "collect", "--log", tmp_path / "log")
    said = run("impressions", "mature", "--store", tmp_path / "s.sqlite")
    assert "feed.raw_engagements: 3 rows of 1 request added, 1 with a label; 0 too young" in said
    again = json.loads(run("impressions", "mature", "--store", tmp_path / "s.sqlite", "--window", "1h", "--json"))
    assert (again["num_requests"], again["num_rows"]) == (0, 0)
    assert TableSource(catalog.load_table("feed.raw_engagements")).num_rows == 3
