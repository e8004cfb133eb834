import gzip
from datetime import UTC, datetime

import pytest

from reqdedup.logs import LogError
from reqdedup.logs.ids import hash_string

MOVIELENS = [
    (1, 31, 2.5, 1_260_759_144),
    (1, 1029, 4, 1_260_759_179),
    (7, 31, 5, 851_868_750),
    (7, 1061, 3, 851_900_000),
]


def movielens_text(separator, header=None, rows=MOVIELENS):
    lines = [] if header is None else [separator.join(header)]
    lines += [separator.join(f"{value:g}" if isinstance(value, float) else str(value) for value in row) for row in rows]
    return "\n".join(lines) + "\n"


FORMS = {
    "ratings.dat": movielens_text("::"),
    "ratings.csv": movielens_text(",", ["userId", "movieId", "rating", "timestamp"]),
    "u.data": movielens_text("\t"),
    "u_with_header.data": movielens_text("\t", ["user_id", "item_id", "rating", "timestamp"]),
    "ml.inter": movielens_text("\t", ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]),
    "reordered.csv": movielens_text(
        ",", ["timestamp", "rating", "movieId", "userId"], [tuple(reversed(row)) for row in MOVIELENS]
    ),
    "crlf.csv": movielens_text(",", ["userId", "movieId", "rating", "timestamp"]).replace("\n", "\r\n"),
    "bom.csv": "\ufeff" + movielens_text(",", ["userId", "movieId", "rating", "timestamp"]),
    "quoted.csv": '"userId","movieId","rating","timestamp"\n"1","31","2.5","1260759144"\n1,1029,"4",1260759179\n'
    + "7,31,5,851868750\n7,1061,3,851900000",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_movielens_gives_the_same_requests(name, tmp_path, read):
    (tmp_path / name).write_bytes(FORMS[name].encode())
    found = read(tmp_path / name, preset="movielens")
    assert found.rejects == []
    assert found.reader.counts.rows_read == 4
    by_row = {(row["user_id"], row["item_id"]): row for row in found.rows}
    assert {key: row["click"] for key, row in by_row.items()} == {(1, 31): 0, (1, 1029): 1, (7, 31): 1, (7, 1061): 0}
    assert by_row[1, 31]["request_id"] == by_row[1, 1029]["request_id"]
    assert by_row[7, 31]["request_id"] != by_row[7, 1061]["request_id"]  # a pause of nine hours
    later = by_row[7, 1061]
    assert later["request_ts"] == datetime.fromtimestamp(851_900_000, UTC)
    assert (later["history_item_id"], later["history_action"]) == ([31], [1])
    assert later["history_ts"] == [851_868_750_000]
    assert later["history_end"] == 1
    assert later["hour_of_day"] == datetime.fromtimestamp(851_900_000, UTC).hour
    assert "rating" not in later  # the label's source would give the label away


def test_a_folder_of_movielens_is_found_and_other_files_are_left_alone(tmp_path, read):
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "ratings.csv").write_text(FORMS["ratings.csv"])
    (tmp_path / "ml" / "movies.csv").write_text("movieId,title\n1,Toy Story\n")
    found = read(tmp_path, preset="movielens")
    assert len(found.rows) == 4
    assert found.reader.counts.files == 1


def test_a_compressed_file_is_read_as_it_is(tmp_path, read):
    with gzip.open(tmp_path / "ratings.csv.gz", "wt") as file:
        file.write(FORMS["ratings.csv"])
    assert len(read(tmp_path / "ratings.csv.gz", preset="movielens").rows) == 4
    assert len(read(tmp_path, preset="movielens").rows) == 4


MIND = (
    "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782 N34694\tN55689-1 N35729-0\n"
    "2\tU91836\t11/12/2019 6:11:30 PM\t\tN20678-0 N39317-0 N58114-1\n"
    "3\tU73700\t11/14/2019 12:01:09 AM\tN10732\tN50014 N23877\n"
)


def test_mind_behaviors_have_histories_candidates_and_labels_that_may_be_missing(tmp_path, read):
    (tmp_path / "behaviors.tsv").write_text(MIND)
    (tmp_path / "news.tsv").write_text("N1\tsports\n")
    found = read(tmp_path, preset="mind")
    assert found.rejects == []
    by_request = {}
    for row in found.rows:
        by_request.setdefault(row["request_id"], []).append(row)
    assert sorted(by_request) == [1, 2, 3]
    first = by_request[1][0]
    assert {row["item_key"]: row["click"] for row in by_request[1]} == {"N55689": 1, "N35729": 0}
    assert (first["user_key"], first["user_id"]) == ("U13740", hash_string("U13740"))
    assert first["request_ts"] == datetime(2019, 11, 11, 9, 5, 58, tzinfo=UTC)
    assert first["history_item_id"] == [hash_string(item) for item in ("N55189", "N42782", "N34694")]
    assert first["history_action"] == [1, 1, 1]
    assert first["history_end"] == 3
    assert "history_ts" not in first
    assert all(row["item_id"] == hash_string(row["item_key"]) for row in found.rows)
    assert by_request[2][0]["history_item_id"] == []
    assert by_request[2][0]["request_ts"].hour == 18
    assert [row["click"] for row in by_request[3]] == [None, None]
    assert by_request[3][0]["request_ts"] == datetime(2019, 11, 14, 0, 1, 9, tzinfo=UTC)


def test_mind_splits_whose_ids_restart_are_kept_apart(tmp_path, read):
    for split in ("train", "dev"):
        (tmp_path / split).mkdir()
    (tmp_path / "train" / "behaviors.tsv").write_text(MIND)
    (tmp_path / "dev" / "behaviors.tsv").write_text(MIND.replace("U", "V"))
    found = read(tmp_path, preset="mind")
    assert found.rejects == []
    assert found.reader.counts.requests == 6
    assert {row["request_key"] for row in found.rows} == {"1", "2", "3"}


def test_mind_candidates_with_a_label_out_of_range_go_alone(tmp_path, read):
    (tmp_path / "behaviors.tsv").write_text(
        "1\tU1\t11/11/2019 9:05:58 AM\tN1\tN2-1 N3-7 N4-x N5-\n2\tU2\t11/11/2019 9:05:58 AM\tN1\t\n"
        "3\tU3\t13/11/2019 9:05:58 AM\tN1\tN2-1\n"
    )
    found = read(tmp_path, preset="mind")
    assert {row["item_key"]: row["click"] for row in found.rows} == {"N2": 1, "N5": None}
    assert found.reasons == [("label", 1), ("label", 1), ("candidates", 2), ("time", 3)]


KUAIRAND_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)


def test_kuairand_logs_have_all_their_labels_and_histories_of_engaged_videos(tmp_path, read):
    folder = tmp_path / "KuaiRand-Pure" / "data"
    folder.mkdir(parents=True)
    (folder / "log_standard_4_08_to_4_21_pure.csv").write_text(
        KUAIRAND_HEADER
        + "0,3784,20220411,1700,1649665600000,1,1,0,0,0,0,1,9054,63733,0,0,0,0,1\n"
        + "0,9999,20220411,1700,1649665660000,0,0,0,0,0,0,0,0,11000,0,0,0,0,4\n"
    )
    (folder / "log_standard_4_22_to_5_08_pure.csv").write_text(
        KUAIRAND_HEADER + "0,222,20220422,1700,1650616000000,1,0,0,0,0,1,0,100,2000,0,0,0,0,1\n"
    )
    (folder / "log_random_4_22_to_5_08_pure.csv").write_text(KUAIRAND_HEADER + "0,1,x,x,x,x,x\n")
    (folder / "user_features_pure.csv").write_text("user_id,age\n0,1\n")
    found = read(tmp_path, preset="kuairand")
    assert found.rejects == []
    by_item = {row["item_id"]: row for row in found.rows}
    names = ("click", "like", "follow", "comment", "forward", "hate", "long_dwell")
    assert [by_item[3784][name] for name in names] == [1, 1, 0, 0, 0, 0, 1]
    assert by_item[3784]["request_id"] == by_item[9999]["request_id"]
    assert (by_item[9999]["tab"], by_item[9999]["duration_ms"]) == (4, 11_000)
    assert by_item[222]["history_item_id"] == [3784]
    assert by_item[222]["history_action"] == [1 + 2 + 64]
    assert by_item[222]["history_ts"] == [1_649_665_600_000]
    assert "play_time_ms" not in by_item[222]


def test_an_unknown_preset_and_a_wrong_choice_are_named():
    from reqdedup.logs import read_log

    with pytest.raises(ValueError, match=r"movielens, .*yelp required, found 'netflix'"):
        read_log("x", preset="netflix")
    with pytest.raises(ValueError, match="a preset or a mapping required"):
        read_log("x")
    with pytest.raises(LogError, match="found nothing there"):
        read_log("no/such/folder", preset="mind")
