"""Presets on a few rows of the published form of each log; docs/mapping.md says which saw a real file."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reqdedup.logs
from reqdedup.logs import PRESETS
from reqdedup.logs.ids import hash_string


def test_every_preset_is_a_file_that_says_what_it_is_and_is_in_the_documentation():
    files = sorted((Path(reqdedup.logs.__file__).parent / "preset_files").glob("*.toml"))
    assert sorted(file.stem for file in files) == list(PRESETS)
    documentation = (Path(__file__).parents[2] / "docs" / "mapping.md").read_text()
    for file in files:
        assert file.read_text().startswith("# ")
        assert f"| `{file.stem}` |" in documentation


def write_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_kuairec_watches_of_twice_the_length_are_clicks(tmp_path, read):
    write_lines(
        tmp_path / "KuaiRec 2.0" / "data" / "big_matrix.csv",
        "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio",
        "0,3649,13838,10867,2020-07-05 00:08:23.438,20200705,1593878903.438,1.2734",
        "0,9598,28000,10984,2020-07-05 00:13:41.297,20200705,1593879221.297,2.5491",
        "0,5262,7908,7908,2020-07-05 09:16:06.687,20200705,1593911766.687,1.0",
    )
    write_lines(tmp_path / "KuaiRec 2.0" / "data" / "small_matrix.csv", "user_id", "14")
    found = read(tmp_path, preset="kuairec")
    assert [row["click"] for row in found.rows] == [0, 1, 0]
    assert len({row["request_id"] for row in found.rows}) == 2
    assert found.rows[2]["history_item_id"] == [9598]
    assert found.rows[0]["request_ts"] == datetime(2020, 7, 4, 16, 8, 23, 438_000, UTC)


def amazon_review(user, parent, rating, timestamp):
    review = {"rating": rating, "title": 'Say "hi"', "text": "fine", "images": [], "asin": "B00X", "user_id": user}
    return json.dumps(
        {**review, "parent_asin": parent, "timestamp": timestamp, "helpful_vote": 3, "verified_purchase": True}
    )


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_amazon_reviews_are_requests_of_their_own_in_both_forms(form, tmp_path, read):
    reviews = [
        ("AGK", "B00YQ6X8EO", 5.0, 1_588_687_728_923),
        ("AGK", "B081TJ8YS3", 2.0, 1_588_687_728_923),
        ("AGK", "B07PNNCSP9", 4.0, 1_589_665_266_052),
    ]
    if form == "jsonl":
        write_lines(tmp_path / "Musical_Instruments.jsonl", *(amazon_review(*review) for review in reviews))
        write_lines(tmp_path / "meta_Musical_Instruments.jsonl", json.dumps({"parent_asin": "B00YQ6X8EO"}))
    else:
        lines = [",".join(map(str, review)) for review in reviews]
        write_lines(tmp_path / "Musical_Instruments.csv", "user_id,parent_asin,rating,timestamp", *lines)
    found = read(tmp_path, preset="amazon_reviews")
    assert found.rejects == []
    rows = {row["item_key"]: row for row in found.rows}
    assert found.reader.counts.requests == 3
    assert [rows[parent]["click"] for _, parent, _, _ in reviews] == [1, 0, 1]
    assert rows["B081TJ8YS3"]["history_item_id"] == []  # the other is of the same millisecond
    assert rows["B07PNNCSP9"]["history_item_id"] == [hash_string("B00YQ6X8EO"), hash_string("B081TJ8YS3")]
    assert rows["B07PNNCSP9"]["history_action"] == [1, 0]


def test_yelp_reviews_are_read_from_their_file_alone(tmp_path, read):
    review = {"review_id": "KU_", "user_id": "mh_", "business_id": "XQf", "stars": 3.0, "useful": 0, "funny": 0}
    review |= {"cool": 0, "text": "If you decide\nto eat here", "date": "2018-07-07 22:09:11"}
    later = {**review, "business_id": "7AT", "stars": 5.0, "date": "2018-07-07 22:09:12"}
    write_lines(tmp_path / "yelp_academic_dataset_review.json", json.dumps(review), json.dumps(later))
    write_lines(tmp_path / "yelp_academic_dataset_user.json", json.dumps({"user_id": "mh_"}))
    found = read(tmp_path, preset="yelp")
    assert found.rejects == []
    assert [(row["item_key"], row["click"]) for row in found.rows] == [("XQf", 0), ("7AT", 1)]
    assert found.rows[1]["history_item_id"] == [hash_string("XQf")]
    assert found.rows[1]["request_ts"] == datetime(2018, 7, 7, 22, 9, 12, tzinfo=UTC)


def test_lastfm_names_may_hold_quotes_and_be_called_none(tmp_path, read):
    write_lines(
        tmp_path / "userid-timestamp-artid-artname-traid-traname.tsv",
        'user_000001\t2009-05-04T23:08:57Z\tf1b1\t"Weird Al" Yankovic\t\t12" Mix',
        "user_000001\t2009-05-04T13:54:10Z\t\tNone\t63cc\tComposition 0919",
        'user_000001\t2009-05-04T13:52:04Z\ta7f7\t"Weird Al" Yankovic\tf2d6\t"Eat It',
    )
    found = read(tmp_path, preset="lastfm")
    assert found.rejects == []
    assert [row["item_key"] for row in found.rows] == ['"Weird Al" Yankovic', "None", '"Weird Al" Yankovic']
    assert [row["track_name"] for row in found.rows] == ['"Eat It', "Composition 0919", '12" Mix']
    assert [row["track_id"] for row in found.rows] == ["f2d6", "63cc", None]
    assert found.rows[2]["history_item_id"] == [hash_string('"Weird Al" Yankovic'), hash_string("None")]


def test_taobao_actions_are_labels_and_a_view_may_come_again(tmp_path, read):
    actions = ["pv,1511544070", "pv,1511544075", "cart,1511544080", "buy,1511544090"]
    write_lines(tmp_path / "UserBehavior.csv", *(f"1,2268318,2520377,{action}" for action in actions))
    found = read(tmp_path, preset="taobao")
    assert found.rejects == []
    names = ("click", "favourite", "cart", "buy")
    labels = [[row[name] for name in names] for row in found.rows]
    assert labels == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert found.rows[3]["history_action"] == [1, 1, 4]


def test_criteo_attribution_begins_at_second_zero(tmp_path, read):
    names = "timestamp uid campaign conversion conversion_timestamp conversion_id attribution click click_pos click_nb "
    names += "cost cpo time_since_last_click cat1 cat2 cat3 cat4 cat5 cat6 cat7 cat8 cat9"
    cats = "5824233 9312274 3490278 29196072 11409686 1973606 25162884 29196072 29196072"
    rows = [
        "0 20073966 22589171 0 -1 -1 0 1 -1 -1 1e-05 0.39 -1",
        "2 20073966 884761 1 1449193 3063962 1 0 0 7 2e-05 0.1 2",
    ]
    lines = [f"{row} {cats}".replace(" ", "\t") for row in rows]
    write_lines(tmp_path / "criteo_attribution_dataset.tsv", names.replace(" ", "\t"), *lines)
    found = read(tmp_path, preset="criteo_attribution")
    assert found.rejects == []
    assert [(row["click"], row["conversion"], row["attribution"]) for row in found.rows] == [(1, 0, 0), (0, 1, 1)]
    assert found.rows[0]["request_ts"] == datetime(1970, 1, 1, tzinfo=UTC)
    assert found.rows[1]["history_item_id"] == [22_589_171]
    assert [row["time_since_last_click"] for row in found.rows] == [-1, 2]


def test_open_bandit_users_are_combinations_of_features(tmp_path, read):
    header = ",timestamp,item_id,position,click,propensity_score," + ",".join(f"user_feature_{n}" for n in range(4))
    write_lines(
        tmp_path / "men" / "men.csv",
        f"{header},user-item_affinity_0",
        "0,2019-11-24 00:01:03.979311+00:00,2,2,1,0.045525,cef3,2d03,c2e4,c39b,0.0",
        "1,2019-11-24 00:01:45.406608+00:00,9,3,0,0.059345,cef3,f1c2,7bc9,9bde,0.0",
        "2,2019-11-24 00:02:02.396318+00:00,13,3,0,0.17336500000000002,cef3,2d03,c2e4,c39b,0.0",
    )
    write_lines(tmp_path / "men" / "item_context.csv", "item_id", "0")
    found = read(tmp_path, preset="open_bandit")
    assert found.rejects == []
    rows = {row["item_id"]: row for row in found.rows}
    assert rows[2]["user_key"] == rows[13]["user_key"] == "cef3|2d03|c2e4|c39b"
    assert rows[13]["history_item_id"] == [2]
    assert rows[9]["history_item_id"] == []
    assert (rows[13]["position"], rows[13]["propensity_score"]) == (3, 0.17336500000000002)


def test_eb_nerd_clicks_are_those_of_the_list_beside_the_candidates(tmp_path, read):
    rows = {
        "impression_id": pa.array([48_401, 152_513, 155_390], pa.uint32()),
        "article_id": pa.array([None, 9_778_745, None], pa.float64()),
        "impression_time": pa.array([datetime(2023, 5, 21, 21, 6, s) for s in (50, 55, 59)], pa.timestamp("us")),
        "device_type": pa.array([2, 1, 1], pa.int8()),
        "article_ids_inview": pa.array([[9_774_516, 9_771_051], [9_778_669, 9_778_736], [1]], pa.list_(pa.int32())),
        "article_ids_clicked": pa.array([[9_771_051], [], None], pa.list_(pa.int32())),
        "user_id": pa.array([22_779, 22_779, 22_779], pa.uint32()),
        "is_sso_user": pa.array([False, True, True]),
        **{name: pa.array([None, 1, 2], pa.int8()) for name in ("gender", "postcode", "age")},
        "is_subscriber": pa.array([False, True, True]),
    }
    (tmp_path / "train").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "train" / "behaviors.parquet")
    pq.write_table(pa.table({"user_id": [22_779]}), tmp_path / "train" / "history.parquet")
    found = read(tmp_path, preset="eb_nerd")
    assert found.rejects == []
    labels = {row["item_id"]: row["click"] for row in found.rows}
    assert labels == {9_774_516: 0, 9_771_051: 1, 9_778_669: 0, 9_778_736: 0, 1: None}
    assert found.rows[-1]["history_item_id"] == [9_771_051]
    assert found.rows[-1]["is_sso_user"] is True


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_list_of_the_labelled_candidates_is_read_from_text_and_json_too(form, tmp_path, read):
    rows = (
        [("1", "a b", "b"), ("2", "a c", "")] if form == "csv" else [("1", ["a", "b"], ["b"]), ("2", ["a", "c"], None)]
    )
    lines = ["user;shown;clicked;ts"] if form == "csv" else []
    for number, (user, shown, clicked) in enumerate(rows):
        row = {"user": user, "shown": shown, "clicked": clicked, "ts": 1_700_000_000 + number}
        lines.append(";".join(map(str, row.values())) if form == "csv" else json.dumps(row))
    mapping = {"user_id": "user", "time": {"column": "ts"}, "labels": {"click": {"listed_in": "clicked"}}}
    path = write_lines(tmp_path / f"log.{form}", *lines)
    found = read(path, mapping={**mapping, "candidates": {"column": "shown", "type": "string"}})
    labels = {(row["user_id"], row["item_key"]): row["click"] for row in found.rows}
    assert labels == {(1, "a"): 0, (1, "b"): 1, (2, "a"): None, (2, "c"): None}


def test_yambda_events_of_one_step_do_not_see_each_other(tmp_path, read):
    kinds = pa.array(["listen", "like", "listen"]).dictionary_encode()
    rows = {name: pa.array([100, 100, 100], pa.uint32()) for name in ("uid",)}
    rows |= {"timestamp": pa.array([39_420, 39_420, 39_425], pa.uint32()), "item_id": pa.array([8, 8, 9], pa.uint32())}
    rows |= {"is_organic": pa.array([0, 0, 1], pa.uint8()), "event_type": kinds}
    rows |= {"played_ratio_pct": pa.array([100, None, 49], pa.uint16())}
    rows |= {"track_length_seconds": pa.array([170, None, 105], pa.uint32())}
    pq.write_table(pa.table(rows), tmp_path / "multi_event.parquet")
    found = read(tmp_path, preset="yambda")
    assert found.rejects == []
    assert [(row["click"], row["like"]) for row in found.rows] == [(1, 0), (None, 1), (0, 0)]
    assert [row["history_item_id"] for row in found.rows] == [[], [], [8, 8]]
    assert found.rows[2]["history_action"] == [1, 2]


def test_movielens_by_rating_sees_earlier_seconds_only(tmp_path, read):
    ratings = [(1, item, 3 + item % 3, second) for item, second in enumerate((5, 5, 6, 6, 6, 9_000))]
    write_lines(tmp_path / "u.data", *("\t".join(map(str, (u, i, r, 10**9 + s))) for u, i, r, s in ratings))
    found = read(tmp_path, preset="movielens_ratings")
    assert found.rejects == []
    assert found.reader.counts.requests == len(ratings)
    for row in found.rows:
        mine = next(second for _, item, _, second in ratings if item == row["item_id"])
        assert row["history_item_id"] == [item for _, item, _, second in ratings if second < mine]
    sittings = read(tmp_path, preset="movielens")
    assert sittings.reader.counts.requests == 2
