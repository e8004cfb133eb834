"""A log whose items are named by URLs: one page is one item, in rows and histories, and its URLs are still there."""

from __future__ import annotations

import json

import pytest

import reqdedup as rd
from reqdedup.ingest import URL_RULES_PROPERTY
from reqdedup.logs import load_mapping
from reqdedup.logs.urls import Rules

RULES = Rules(hosts={"s.example": {("id", "ref"): frozenset({"id"})}})
MAPPING = """
user_id = "user"
item_id = { column = "url", type = "url", rules = "miqps.json" }
session_gap_s = 0
[time]
column = "ts"
[labels]
click = "click"
"""
TABLE = "a.engagements_by_request"


def url(number):
    return f"http://S.example/p?ref={number}&id={number % 3}"


def rows(num_users=3, num_events=8):
    for user in range(num_users):
        for number in range(num_events):
            yield {"user": user, "ts": 1_700_000_000 + 60 * number + user, "url": url(number), "click": 1}
    yield {"user": 0, "ts": 1_700_009_000, "url": "no url", "click": 0}


@pytest.fixture
def folder(tmp_path):
    RULES.save(tmp_path / "miqps.json")
    (tmp_path / "mapping.toml").write_text(MAPPING)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return tmp_path


def test_urls_of_one_page_are_one_item_and_stay_in_their_rows(folder):
    lake = rd.open(folder / "lake")
    report = lake.ingest(folder / "log.jsonl", TABLE, mapping=folder / "mapping.toml")
    urls = report.urls
    assert (urls.urls, urls.items, urls.merged, urls.not_urls) == (9, 4, 5, 1)
    assert urls.rules == RULES.fingerprint
    table = lake.table(TABLE)
    said = json.loads(table.iceberg.properties[URL_RULES_PROPERTY])
    assert said == {"format": 1, "fingerprint": RULES.fingerprint}
    items = {row["item_id"]: row["item_key"] for row in lake.items(TABLE).to_pylist()}
    assert set(items.values()) == {"no url", *(f"http://s.example/p?id={number}" for number in range(3))}
    found = sorted(table.to_arrow().to_pylist(), key=lambda row: (row["user_id"], row["request_ts"]))
    logged = sorted(rows(), key=lambda row: (row["user"], row["ts"]))
    assert [row["item_url"] for row in found] == [row["url"] for row in logged]
    pages = ["no url" if row["url"] == "no url" else f"http://s.example/p?id={row['url'][-1]}" for row in logged]
    assert [items[row["item_id"]] for row in found] == pages
    for user in range(3):
        own = [at for at, row in enumerate(found) if row["user_id"] == user]
        for place, at in enumerate(own):
            assert [items[item] for item in found[at]["history_item_id"]] == [pages[one] for one in own[:place]]


def test_a_table_of_another_log_does_not_name_the_rules_any_more(folder):
    lake = rd.open(folder / "lake")
    lake.ingest(folder / "log.jsonl", TABLE, mapping=folder / "mapping.toml")
    plain = {"user_id": "user", "item_id": "url", "time": {"column": "ts"}, "labels": {"click": "click"}}
    report = lake.ingest(folder / "log.jsonl", TABLE, mapping={**plain, "session_gap_s": 0}, replace=True)
    assert report.urls is None
    assert lake.table(TABLE).iceberg.properties[URL_RULES_PROPERTY] == ""


def test_histories_of_the_log_are_normalised_and_without_rules_every_parameter_is_kept(folder):
    shown = {"user": 1, "ts": 1_700_000_000, "url": url(4), "click": 1, "seen": [url(7), "no url", url(1)]}
    (folder / "log.jsonl").write_text(json.dumps(shown) + "\n" + json.dumps({**shown, "user": 2, "seen": None}) + "\n")
    mapping = {
        "user_id": "user",
        "item_id": {"column": "url", "type": "url", "rules": str(folder / "miqps.json")},
        "time": {"column": "ts"},
        "labels": {"click": "click"},
        "history": {"column": "seen"},
    }
    lake = rd.open(folder / "lake")
    report = lake.ingest(folder / "log.jsonl", TABLE, mapping=mapping)
    assert (report.urls.urls, report.urls.items) == (4, 2)
    first = lake.table(TABLE).to_arrow().to_pylist()
    item = next(row["item_id"] for row in first)
    assert sorted(row["history_item_id"][::2] for row in first) == [[], [item, item]]
    mapping["item_id"] = {"column": "url", "type": "url"}
    report = lake.ingest(folder / "log.jsonl", TABLE, mapping=mapping)
    assert (report.urls.urls, report.urls.items, report.urls.rules) == (4, 4, Rules().fingerprint)


def test_rules_are_looked_for_beside_the_mapping(folder):
    assert load_mapping(folder / "mapping.toml").item_id.rules == str(folder / "miqps.json")
    (folder / "miqps.json").unlink()
    lake = rd.open(folder / "lake")
    with pytest.raises(ValueError, match=r"miqps.json: a readable file required.*reqdedup urls learn"):
        lake.ingest(folder / "log.jsonl", TABLE, mapping=folder / "mapping.toml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"item_id": {"column": "url", "rules": "miqps.json"}}, "rules only with type url"),
        ({"user_id": {"column": "user", "type": "url"}}, "type url only of item_id"),
        ({"item_id": {"all_of": ["a", "b"], "type": "url"}}, "all_of needs two columns or more and is a string"),
        ({"item_columns": {"item_url": "string"}}, "'item_url' is taken"),
    ],
)
def test_a_mapping_that_makes_no_sense_of_urls_is_refused(changed, message):
    mapping = {
        "user_id": "user",
        "item_id": {"column": "url", "type": "url"},
        "time": {"column": "ts"},
        "labels": {"click": "click"},
    }
    with pytest.raises(ValueError, match=message):
        load_mapping({**mapping, **changed})
