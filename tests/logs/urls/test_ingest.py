"""A log whose items are named by URLs: one page is one item, in rows and histories, and its URLs are still there."""

from __future__ import annotations

import json
import random
import warnings

import polars as pl
import pytest

import reqdedup as rd
from reqdedup.ingest import append_log
from reqdedup.logs import load_mapping, read_log
from reqdedup.logs.urls import Normaliser, Rules, items
from reqdedup.logs.urls.items import UrlItems
from reqdedup.storage import Layout, create_table
from reqdedup.storage.iceberg.url_rules import URL_RULES_PROPERTY

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
CANDIDATES = """
user_id = "user"
[time]
column = "ts"
[candidates]
column = "shown"
type = "url"
rules = "miqps.json"
position = true
[labels]
click = { listed_in = "clicked" }
[history]
column = "seen"
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


def test_urls_are_counted_once_however_many_blocks_they_are_in(monkeypatch):
    monkeypatch.setattr(items, "_SETTLE_AT", 3)
    found, rng = UrlItems(""), random.Random(1)
    texts = [
        rng.choice([f"http://s.example/?b={one}&a=1", f"http://s.example/?a=1&b={one}", f"no url {one}"])
        for one in rng.choices(range(40), k=300)
    ]
    for start in range(0, 300, 7):
        found.normalised(pl.DataFrame({"item_key": texts[start : start + 7]}))
    merges, forms = found.merges, {Normaliser(Rules())(text) for text in texts}
    no_urls = {text for text in texts if text.startswith("no")}
    assert (merges.urls, merges.items, merges.not_urls) == (len(set(texts)), len(forms), len(no_urls))
    assert found.merges == merges


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


@pytest.mark.slow
def test_candidates_may_be_urls_and_a_click_is_on_the_page_whatever_url_it_has(folder):
    shown = [url(0), url(1), "no url"]
    row = {"user": 1, "ts": 1_700_000_000, "shown": shown, "clicked": ["http://s.example/p?id=1&ref=77"]}
    rows = [{**row, "seen": [url(4), url(3)]}, {**row, "user": 2, "clicked": None, "seen": None}]
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (folder / "mapping.toml").write_text(CANDIDATES)
    lake = rd.open(folder / "lake")
    report = lake.ingest(folder / "log.jsonl", TABLE, mapping=folder / "mapping.toml")
    urls = report.urls
    assert (urls.urls, urls.items, urls.not_urls, urls.rules) == (5, 3, 1, RULES.fingerprint)
    items = {one["item_id"]: one["item_key"] for one in lake.items(TABLE).to_pylist()}
    pages = ["http://s.example/p?id=0", "http://s.example/p?id=1", "no url"]
    found = lake.table(TABLE).to_arrow().to_pylist()
    for history, clicks in (([pages[1], pages[0]], [0, 1, 0]), ([], [None] * 3)):
        own = [one for one in found if (one["click"] is None) == (not history)]
        own.sort(key=lambda one: one["position"])
        assert [one["item_url"] for one in own] == shown
        assert [items[one["item_id"]] for one in own] == pages
        assert [one["click"] for one in own] == clicks
        assert [[items[item] for item in one["history_item_id"]] for one in own] == [history] * 3


@pytest.mark.slow
def test_further_rows_need_the_rules_of_the_table_and_say_so(folder):
    catalog = rd.open(folder / "lake").make()

    def log(**changed):
        return read_log(folder / "log.jsonl", mapping=changed or folder / "mapping.toml")

    catalog.create_namespace("a")
    table = create_table(catalog, TABLE, log().schema, Layout.BY_REQUEST, num_buckets=2)
    for _ in range(2):
        append_log(table, log(), properties={"own": "kept"})
    said = catalog.load_table(TABLE).properties
    assert json.loads(said[URL_RULES_PROPERTY]) == {"format": 1, "fingerprint": RULES.fingerprint}
    assert said["own"] == "kept"
    plain = {"user_id": "user", "item_id": "url", "time": {"column": "ts"}, "labels": {"click": "click"}}
    with pytest.raises(
        ValueError, match=rf"required by an append .*{RULES.fingerprint}.*, found rows of URL rules none"
    ):
        append_log(table, log(**plain))
    Rules().save(folder / "miqps.json")
    with pytest.raises(ValueError, match=rf"required by an append .* found rows .*{Rules().fingerprint}"):
        rd.open(folder / "lake").table(TABLE).append(log())
    assert len(catalog.load_table(TABLE).metadata.snapshots) == 2


@pytest.mark.slow
def test_a_converted_table_names_the_rules_of_its_source_and_takes_no_others(folder):
    lake = rd.open(folder / "lake")
    columns = {"user": "user_id", "request": "request_id", "item": "item_id", "time": "request_ts", "labels": ["click"]}
    columns["exclude"] = ["hour_of_day"]
    sources = {}
    for name in ("one", "other"):
        lake.ingest(folder / "log.jsonl", f"{name}.log", mapping=folder / "mapping.toml", num_buckets=2)
        sources[name] = lake.table(f"{name}.log").iceberg
        Rules().save(folder / "miqps.json")
    lake.convert(sources["one"], "a.copy", columns, num_buckets=2)
    said = lake.table("a.copy").iceberg.properties[URL_RULES_PROPERTY]
    assert said == sources["one"].properties[URL_RULES_PROPERTY] != sources["other"].properties[URL_RULES_PROPERTY]
    lake.table("a.copy").append(sources["one"], columns)
    with pytest.raises(ValueError, match=r"a\.copy: items told apart as in its rows required by an append"):
        lake.table("a.copy").append(sources["other"], columns)
    rows = pl.from_arrow(lake.table("other.log").to_arrow())  # in a file items are texts
    texts = pl.col("history_item_id").cast(pl.List(pl.String))
    rows.with_columns(texts, item_id="item_url").write_parquet(folder / "rows.parquet")
    report = lake.table("a.copy").append(folder / "rows.parquet", {**columns, "ids": ["history_item_id"]})
    assert any("nothing says so of these rows" in note for note in report.notes)


def test_rules_are_looked_for_beside_the_mapping(folder):
    for mapping in (CANDIDATES, MAPPING):
        (folder / "mapping.toml").write_text(mapping)
        assert load_mapping(folder / "mapping.toml").url_rules == str(folder / "miqps.json")
    (folder / "miqps.json").unlink()
    lake = rd.open(folder / "lake")
    with pytest.raises(ValueError, match=r"miqps.json: a readable file required.*reqdedup urls learn"):
        lake.ingest(folder / "log.jsonl", TABLE, mapping=folder / "mapping.toml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"item_id": {"column": "url", "rules": "miqps.json"}}, "rules only with type url"),
        ({"user_id": {"column": "user", "type": "url"}}, "type url only of items"),
        ({"item_id": {"all_of": ["a", "b"], "type": "url"}}, "all_of needs two columns or more and is a string"),
        ({"item_columns": {"item_url": "string"}}, "'item_url' is taken"),
        ({"item_id": None, "candidates": {"column": "a", "rules": "miqps.json"}}, "rules only with type url"),
        ({"item_id": {"column": "url", "type": "url", "rules": ""}}, "the path of a rules file required, found ''"),
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
        load_mapping({key: value for key, value in {**mapping, **changed}.items() if value})


@pytest.mark.parametrize("labels", [(0, 1, 0), (1, 0, 0), (0, 0, 0)])
def test_a_click_on_any_url_of_a_page_is_one_of_the_page(folder, labels):
    row = {"user": 1, "request": 5, "ts": 1_700_000_000}
    shown = [{**row, "url": url(3 * number), "click": label} for number, label in enumerate(labels)]
    shown.append({**row, "url": url(1), "click": 0})
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in shown))
    mapping = MAPPING.replace("session_gap_s = 0", 'request_id = "request"')
    (folder / "mapping.toml").write_text(mapping)
    lake = rd.open(folder / "lake")
    report = lake.ingest(folder / "log.jsonl", TABLE, mapping=folder / "mapping.toml", strict=True)
    found = {row["item_url"]: row["click"] for row in lake.table(TABLE).to_arrow().to_pylist()}
    assert found == {url(0): max(labels), url(1): 0}
    assert report.rejected == {}
    assert report.urls.rows_merged == 2
    assert report.urls.labels_differ == (max(labels) > 0)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [None, "processes:2"])
def test_rejected_are_the_same_rows_with_rules_as_without(folder, engine):
    rng = random.Random(3)
    shown = [
        {"user": rng.randrange(3), "request": 0, "ts": 1_700_000_000, "url": url(rng.randrange(9)), "click": number % 2}
        for number in range(60)
    ]
    for row in shown:
        row["request"] = 10 * row["user"] + rng.randrange(4)
    pairs = {(row["request"], row["url"]) for row in shown}
    pages = {(request, Normaliser(RULES)(text)) for request, text in pairs}
    (folder / "log.jsonl").unlink()
    for part in range(2):
        lines = "".join(json.dumps(row) + "\n" for row in shown[part::2])
        (folder / "log").mkdir(exist_ok=True)
        (folder / "log" / f"{part}.jsonl").write_text(lines)
    (folder / "mapping.toml").write_text(MAPPING.replace("session_gap_s = 0", 'request_id = "request"'))
    log = read_log(folder / "log", mapping=folder / "mapping.toml", max_rejects=1)
    lake = rd.open(folder / "lake")
    report = lake.ingest(
        folder / "log", TABLE, mapping=folder / "mapping.toml", max_rejects=1, num_buckets=1, engine=engine
    )
    assert report.rejected == {"duplicate": len(shown) - len(pairs)}
    assert report.urls.rows_merged == len(pairs) - len(pages) > 0
    assert report.written.rows == len(pages)
    assert sum(batch.num_rows for batch in log) == len(pages)
    assert log.counts.rejected == report.rejected
    assert log.counts.rejected_ratio == (len(shown) - len(pairs)) / len(shown)


def test_a_namespace_with_keys_of_other_rules_warns(folder):
    lake = rd.open(folder / "lake")

    def ingest(table, path=folder / "mapping.toml"):
        lake.ingest(folder / "log.jsonl", table, mapping=path, num_buckets=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ingest(TABLE)
        ingest(TABLE)
    Rules().save(folder / "miqps.json")
    with pytest.warns(UserWarning, match=rf"a.items: keys of URL rules .*{RULES.fingerprint}.*{Rules().fingerprint}"):
        ingest("a.other")
    plain = {"user_id": "user", "item_id": "url", "time": {"column": "ts"}, "labels": {"click": "click"}}
    with pytest.warns(UserWarning, match=rf"{Rules().fingerprint}.*those of this log are of none"):
        ingest("a.third", plain)
