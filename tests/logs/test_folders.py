"""Which files of a folder are the log, how they may be compressed, and what a log without times means."""

import bz2
import gzip
import lzma

import pyarrow as pa
import pytest

from reqdedup.logs import LogError, read_log

EVENTS = {"user_id": "user", "item_id": "item", "time": {"column": "ts"}, "labels": {"click": {"value": 1}}}
ORDERED = {"user_id": "user", "item_id": "item", "order": "n", "labels": {"click": {"value": 1}}}
CSV = "user,item,ts\n" + "".join(f"{n % 3},{n},{1_700_000_000 + n}\n" for n in range(30))
JSON = "".join(f'{{"user": {n % 3}, "item": {n}, "ts": {1_700_000_000 + n}}}\n' for n in range(30))

PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    "lz4": lambda data: pa.compress(data, codec="lz4", asbytes=True),
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(("form", "text"), [("csv", CSV), ("jsonl", JSON)])
def test_every_compression_is_read_alike_in_two_members_under_any_name_and_not_cut(packer, form, text, tmp_path, read):
    pack = PACKERS[packer]
    packed = pack(text[:300].encode()) + pack(text[300:].encode())
    expected = read_text(tmp_path / f"plain.{form}", text.encode(), read)
    assert len(expected) == 30
    assert read_text(tmp_path / f"log.{form}.{packer}", packed, read) == expected
    assert read_text(tmp_path / f"log.{form}", packed, read) == expected
    (tmp_path / f"cut.{form}.{packer}").write_bytes(pack(text.encode())[:-9])
    with pytest.raises(LogError, match="unreadable"):
        list(read_log(tmp_path / f"cut.{form}.{packer}", mapping=EVENTS))
    (tmp_path / f"twice.{form}.{packer}").write_bytes(pack(pack(text.encode())))
    with pytest.raises(LogError, match=r"compressed twice|binary data|at least one row"):
        list(read_log(tmp_path / f"twice.{form}.{packer}", mapping=EVENTS))


def read_text(path, data, read):
    path.write_bytes(data)
    found = read(path, mapping=EVENTS)
    assert found.rejects == []
    return found.rows


def test_a_folder_without_patterns_leaves_what_is_no_log_and_says_so(tmp_path, read):
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1" / "part.csv").write_text(CSV)
    beside = ["README.txt", "readme.md", "SHA256SUMS.txt", "part.csv.md5", "LICENSE", "LICENSE.txt", ".hidden.csv"]
    beside += [".git/x.csv", "_delta_log/0.json", "_SUCCESS", "__MACOSX/part.csv", "CITATION.json"]
    for name in beside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(CSV)
    found = read(tmp_path, mapping=EVENTS)
    assert len(found.rows) == 30
    assert found.rejects == []
    assert sorted(found.reader.skipped) == sorted(beside)
    (tmp_path / "day=1" / "part.csv").unlink()
    with pytest.raises(LogError, match=r"found \.git.*|README, licences and checksums are no log"):
        read_log(tmp_path, mapping=EVENTS)
    assert len(read(tmp_path / "README.txt", mapping=EVENTS).rows) == 30  # one that is named is read


def test_too_many_rejects_are_an_error_with_share_reasons_places_and_the_option(tmp_path):
    (tmp_path / "log.csv").write_text(CSV + "x,1,1700000000\n1,2,never\n1,3,never\n1,4,never\n")
    with pytest.raises(LogError) as failure:
        list(read_log(tmp_path / "log.csv", mapping=EVENTS))
    message = str(failure.value)
    assert "at most 10% rejected rows required, found 4 of 34, 11.76%" in message
    assert "time (3)" in message
    assert "log.csv:33 time never" in message
    assert "--max-rejects" in message
    assert len(list(read_log(tmp_path / "log.csv", mapping=EVENTS, max_rejects=0.12))) == 1
    with pytest.raises(ValueError, match="from 0 to 1 required, found 12"):
        read_log(tmp_path / "log.csv", mapping=EVENTS, max_rejects=12)


def test_a_file_that_nobody_can_read_weighs_as_much_as_it_is_long(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.csv").write_text("who,what,ts\n" + CSV.partition("\n")[2])
    with pytest.raises(
        LogError, match=r"found 1 of 31, 3\.23%, and 50% of the log's bytes in files that cannot be read"
    ):
        list(read_log(tmp_path, mapping=EVENTS))


def test_an_order_stands_for_the_times_of_a_log_that_has_none(tmp_path, read):
    numbers = [3, 1, 2, 2, 4_294_967_295]
    (tmp_path / "log.csv").write_text("user,item,n\n" + "".join(f"1,{item},{n}\n" for item, n in enumerate(numbers)))
    found = read(tmp_path / "log.csv", mapping=ORDERED)
    assert found.rejects == []
    assert len({row["request_id"] for row in found.rows}) == 5
    by_number = sorted(zip(numbers, range(5)))
    for row in found.rows:
        earlier = [item for number, item in by_number if number < numbers[row["item_id"]]]
        assert row["history_item_id"] == earlier
        assert row["request_ts"].timestamp() == numbers[row["item_id"]]
    assert not {"hour_of_day", "history_ts"} & set(found.reader.schema.names)


def test_orders_that_are_none_are_rejected_one_by_one(tmp_path, read):
    wrong = ["-1", "1.5", "4294967296", "first", ""]
    (tmp_path / "log.csv").write_text("user,item,n\n1,1,1\n" + "".join(f"1,2,{text}\n" for text in wrong))
    found = read(tmp_path / "log.csv", mapping=ORDERED)
    assert sorted(reject["line"] for reject in found.rejects) == [3, 4, 5, 6, 7]
    assert all("a whole number from 0 to 4294967295 required" in reject["detail"] for reject in found.rejects)


def test_users_with_the_same_order_have_requests_of_their_own(tmp_path, read):
    (tmp_path / "log.csv").write_text(
        "user,item,n\n" + "".join(f"{user},{n},{n}\n" for user in range(400) for n in range(3))
    )
    found = read(tmp_path / "log.csv", mapping=ORDERED)
    assert found.reader.counts.requests == 1_200


def test_an_id_of_several_columns_is_never_that_of_others(tmp_path, read):
    rows = [("a|b", "c"), ("a", "b|c"), ("a\\", "b|c"), ("a\\|b", "c"), ("a", "b"), ("a", "")]
    (tmp_path / "log.tsv").write_text("u\tv\titem\tts\n" + "".join(f"{u}\t{v}\t1\t1700000000\n" for u, v in rows))
    found = read(tmp_path / "log.tsv", mapping={**EVENTS, "user_id": {"all_of": ["u", "v"]}})
    assert len({row["user_key"] for row in found.rows}) == 5
    assert len({row["user_id"] for row in found.rows}) == 5
    assert found.reasons == [("null_id", 7)]
