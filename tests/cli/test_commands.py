"""What keeps a table in shape, from the command line: looks first, acts when told, and says it as text and as JSON."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from reqdedup import cli
from reqdedup.logs import read_log
from reqdedup.logs.ids import hash_string
from reqdedup.schema import Column, Level
from reqdedup.storage import (
    ConflictError,
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    open_catalog,
    stage_request_feature,
    tags,
    write,
    write_rejects,
)
from reqdedup.storage.iceberg.layout import table_buckets

VISITS = Column(name="visits", dtype="int32", level=Level.REQUEST, nullable=True, doc="how often")
MAPPING = {
    "user_id": {"column": "member", "type": "string"},
    "item_id": "item",
    "time": {"column": "at", "unit": "s"},
    "labels": {"click": "clicked"},
}


KEYS = ("--user", "a", "--request", "b", "--item", "c", "--time", "d")


class Lake:
    """A catalog in a folder of its own; `run` is the command line on it, with its output."""

    def __init__(self, folder, capsys):
        self.folder, self._capsys = folder, capsys
        self._uri = f"sqlite:///{folder}/catalog.db"
        self.catalog = open_catalog(properties={"uri": self._uri, "warehouse": f"file://{folder}/tables"})

    def run(self, *arguments, code=0):
        self._capsys.readouterr()
        assert cli.main([*map(str, arguments), "--catalog-uri", self._uri]) == code
        printed = self._capsys.readouterr()
        assert (printed.out == "") == (code != 0)
        return printed.out or printed.err

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--json"))

    def append(self, *days):
        """A table of two buckets, one append per day, and the rejects of the last."""
        for day in days:
            path = self.folder / f"day{day}.csv"
            path.write_text(csv_of(day))
            log = read_log(path, mapping=MAPPING)
            table = create_table(self.catalog, "lake.t", log.schema, Layout.BY_REQUEST, num_buckets=2)
            write(table, log, mode="append")
            write_rejects(self.catalog, "lake.rejected_engagements", log.rejects)
        return table


def csv_of(day: int) -> str:
    """Twelve members, three rows each; one row of m3 without a time."""
    rng = np.random.default_rng(day)
    at = 1_750_000_000 + 86_400 * day
    rows = [f"m{m},{item},{at + 60 * m},{item % 2}" for m in range(12) for item in rng.choice(100, 3, replace=False)]
    return "\n".join(["member,item,at,clicked", *rows, "m3,7,never,1", ""])


@pytest.fixture
def lake(tmp_path, capsys):
    return Lake(tmp_path, capsys)


@pytest.mark.slow
def test_a_table_goes_from_small_files_to_compact_ones_and_old_files_are_freed(lake):
    table = lake.append(0, 1, 2)
    assert "to do: compact: 2 of 2 buckets" in lake.run("health", "--table", "lake.t")
    (health,) = lake.json("health", "--table", "lake.t", "--no-users")
    assert (health["files"], health["users"], health["fitting_buckets"]["num_buckets"]) == (6, None, 1)
    assert "2 buckets rewritten, 0 left alone; 108 rows, 6 files" in lake.run("compact", "--table", "lake.t")
    assert "nothing to do" in lake.run("compact", "--table", "lake.t")
    assert "to do: nothing; small files are as large as their buckets" in lake.run("health", "--table", "lake.t")

    before = set(lake.folder.rglob("*.parquet"))
    planned = lake.json("expire", "--table", "lake.t", "--older-than", "0s")
    assert "nothing was changed: --apply" in lake.run("expire", "--table", "lake.t", "--older-than", "0s")
    assert set(lake.folder.rglob("*.parquet")) == before
    (done,) = lake.json("expire", "--table", "lake.t", "--older-than", "0s", "--apply")
    assert done["files"] == planned[0]["files"]
    assert done["files"]["data"] == 6
    assert len(before) - len(list(lake.folder.rglob("*.parquet"))) == 6

    orphan = next(lake.folder.glob("tables/lake*/t/data")) / "orphan.parquet"
    orphan.write_bytes(b"left")
    assert "1 orphan would go" in lake.run("sweep", "--table", "lake.t", "--older-than", "0s")
    assert orphan.exists()
    assert "0 orphans gone" in lake.run("sweep", "--table", "lake.t", "--apply")  # younger than the guard
    assert "1 orphan gone" in lake.run("sweep", "--table", "lake.t", "--older-than", "0s", "--apply")
    assert not orphan.exists()
    assert TableSource(table.refresh()).num_rows == 108


@pytest.mark.slow
def test_features_by_position_survive_an_expiry_after_an_append(lake):
    main = lake.append(0)
    side = create_feature_table(lake.catalog, "lake.f", main, [VISITS], by_position=True)
    add_request_feature(main, side, lambda r: [7] * r.num_rows)
    lake.append(1)
    assert lake.json("expire", "--table", "lake.t", "--older-than", "0s")[0]["realigned"] == ["lake.f"]
    out = lake.run("expire", "--table", "lake.t", "--older-than", "0s", "--apply")
    assert "lake.f was aligned with the present requests first" in out
    joined = bucket_join(lake.catalog.load_table("lake.t"), lake.catalog.load_table("lake.f"), how="inner")
    found = [value for batch in joined.batches(["visits"]) for value in batch["visits"].to_pylist()]
    assert sorted(found, key=str) == [7] * 36 + [None] * 36
    assert lake.json("features", "realign", "--table", "lake.f")["requests"] == 24


@pytest.mark.slow
def test_a_user_leaves_all_tables_and_what_was_not_searched_is_named(lake):
    main = lake.append(0, 1)
    side = create_feature_table(lake.catalog, "lake.f", main, [VISITS], by_position=True)
    add_request_feature(main, side, lambda r: [7] * r.num_rows)
    lake.catalog.create_table("lake.report", pa.schema([("bytes", pa.int64())]))
    lake.catalog.create_namespace("other")
    planned = lake.json("delete-user", "--key", "m3", "--namespace", "lake")
    assert {one["table"]: one["rows"] for one in planned["tables"]} == {
        "lake.t": 6,
        "lake.f": 2,
        "lake.rejected_engagements": 1,
    }
    assert planned["not_searched"][:2] == ["table lake.report", "namespace other"]
    assert "nothing was changed" in lake.run("delete-user", "--key", "m3", "--namespace", "lake")
    # named by its feature table alone: what belongs together is found
    out = lake.run("delete-user", hash_string("m3"), "--table", "lake.f", "--apply")
    assert "hold them still: `reqdedup expire`, or again with --apply --erase" in out
    assert b"m3" in b"".join(path.read_bytes() for path in lake.folder.glob("tables/**/*.parquet"))
    done = lake.json("delete-user", "--key", "m3", "--namespace", "lake", "--apply", "--erase")
    assert [one["rows"] for one in done["tables"]] == [0, 0, 0]
    assert b"m3" not in b"".join(path.read_bytes() for path in lake.folder.glob("tables/**/*.parquet"))
    assert "no table holds this user: --key m3" in lake.run("delete-user", "--key", "m3", "--namespace", "lake")
    assert lake.json("delete-user", "--key", "m3", "--namespace", "lake")["found"] is False
    assert planned["found"]
    assert TableSource(main.refresh()).num_rows == 66


@pytest.mark.slow
def test_a_foreign_table_is_converted_with_a_mapping_of_which_options_win(lake):
    rows = [
        {
            "who": f"m{r // 2}",
            "session": r,
            "shown": {"id": item},
            "at": 1_750_000_000 + r,
            "land": r % 3,
            "y": item % 2,
        }
        for r in range(20)
        for item in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), lake.folder / "theirs.parquet")
    mapping = lake.folder / "theirs.toml"
    mapping.write_text(
        'user = "nobody"\nrequest = "session"\nitem = "shown.id"\ntime = "at"\ntime_unit = "s"\nlabels = ["y"]\n'
        '[rename]\nland = "country"\n'
    )
    options = ["--table", "lake.ours", "--mapping", mapping, "--user", "who"]
    report = lake.json("convert", lake.folder / "theirs.parquet", *options)
    assert [report[name] for name in ("rows", "requests", "layout", "engine")] == [60, 20, "by_request", "inline"]
    assert report["columns"]["country"] == ["land", "request"]
    assert report["columns"]["y"] == ["y", "label"]
    assert (report["catalog"], report["is_append"]) == (f"--catalog-uri {lake._uri}", False)
    assert "a new table required" in lake.run("convert", lake.folder / "theirs.parquet", *options, code=2)
    pq.write_table(
        pa.Table.from_pylist([row | {"session": row["session"] + 20} for row in rows]), lake.folder / "b.parquet"
    )
    out = lake.run("convert", lake.folder / "b.parquet", *options, "--append")
    assert "60 rows, 20 requests appended" in out
    assert f"  catalog: --catalog-uri {lake._uri}; files: file://{lake.folder}/tables/" in out
    assert TableSource(lake.catalog.load_table("lake.ours")).num_rows == 120
    wrong = [*options, "--append", "--layout", "sorted"]
    assert "its layout by_request required" in lake.run("convert", lake.folder / "b.parquet", *wrong, code=2)
    again = ["--source-table", "lake.ours", "--table", "lake.wide", "--layout", "sorted", "--buckets", "2"]
    keys = ["--user", "user_id", "--request", "request_id", "--item", "item_id", "--time", "request_ts"]
    out = lake.run("convert", *again, *keys)
    assert "row for row the same as the source in " in out
    mapping.write_text("users = 3")
    assert "found users" in lake.run("convert", lake.folder / "theirs.parquet", *options, code=2)


@pytest.mark.slow
def test_a_sample_is_reported_and_written_only_when_told(lake):
    lake.append(0, 1)
    draw = ["sample", "--table", "lake.t", "--by", "hour_of_day", "--rate", "0.5"]
    total = lake.json(*draw)["strata"][-1]
    assert (total["users_before"], total["rows_before"]) == (12, 72)
    assert 0 < total["users_after"] < 12
    assert not lake.catalog.table_exists("lake.s")
    assert f"12 -> {total['users_after']}" in lake.run(*draw)
    written = lake.json(*draw, "--to", "lake.s")["written"]
    assert (written["users"], written["rows"], written["tasks"]) == (total["users_after"], total["rows_after"], 2)
    assert table_buckets(lake.catalog.load_table("lake.s")) == 2
    assert "pass --replace" in lake.run(*draw, "--to", "lake.s", code=2)
    few = ["sample", "--table", "lake.t", "--activity", "1", "--target", "requests <= 1=2", "--target", "*=3"]
    (_, often, _) = lake.json(*few, "--to", "lake.s", "--replace")["strata"]
    assert (often["stratum"], often["target"], often["users_after"]) == ("requests > 1", 3, 3)
    assert "another table than lake.t" in lake.run(*draw, "--to", "lake.t", "--replace", code=2)
    by_hour = ["sample", "--table", "lake.t", "--by", "hour_of_day", "--rate", "*=1"]
    (first, *_) = lake.json(*by_hour)["strata"]
    value = first["stratum"].partition("=")[2]
    said = lake.run(*by_hour, "--rate", f"{value}=0.5", code=2)
    quoted = re.search(r"write --rate '(hour_of_day=.*)'", said).group(1)
    assert lake.json(*by_hour, "--rate", quoted)["strata"][0]["rate"] == 0.5


@pytest.mark.slow
def test_features_are_published_tagged_rolled_back_and_promoted(lake):
    main = lake.append(0)
    assert "no feature tables beside it" in lake.run("features", "list", "--table", "lake.t")
    side = create_feature_table(lake.catalog, "lake.f", main, [VISITS])
    stage_request_feature(main, side, lambda r: [1] * r.num_rows, name="first")
    assert "staged: first; tags: none" in lake.run("features", "list", "--table", "lake.t")
    published = lake.json("features", "publish", "--table", "lake.f", "--name", "first", "--tag", "v1")
    assert all(check["ok"] for check in published["checks"].values())
    stage_request_feature(main, side, lambda r: [2] * r.num_rows, name="bad")
    assert "would go" in lake.run("features", "drop", "--table", "lake.f", "--name", "bad")
    assert lake.json("features", "list", "--table", "lake.f")[0]["staged"] == ["bad"]
    lake.run("features", "drop", "--table", "lake.f", "--name", "bad", "--apply")
    assert "a feature staged as 'bad'" in lake.run("features", "publish", "--table", "lake.f", "--name", "bad", code=2)
    add_request_feature(main, side, lambda r: [3] * r.num_rows)
    lake.run("features", "tag", "--table", "lake.f", "--tag", "v3")
    assert set(tags(side.refresh())) == {"v1", "v3"}
    assert f"snapshot {published['snapshot_id']}" in lake.run(
        "features", "rollback", "--table", "lake.f", "--tag", "v1"
    )
    assert "1 new column (visits)" in lake.run("features", "promote", "--table", "lake.t", "--from", "lake.f")
    batches = TableSource(lake.catalog.load_table("lake.t")).batches(["visits"])
    assert {value for batch in batches for value in batch["visits"].to_pylist()} == {1}


@pytest.mark.slow
def test_rebucketing_names_the_feature_tables_that_no_longer_fit(lake):
    main = lake.append(0)
    create_feature_table(lake.catalog, "lake.f", main, [VISITS])
    out = lake.run("rebucket", "--table", "lake.t", "--buckets", "4")
    assert "2 buckets became 4; 36 rows" in out
    assert "lake.f: has 2 buckets; rebucket it too" in out
    assert lake.json("rebucket", "--table", "lake.f", "--buckets", "4")["num_buckets"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compact", "--table", "lake.nope"], "table lake.nope is not in the catalog; there are: lake."),
        (["health", "--table", "t"], "a table is named as namespace.table, found 't'"),
        (["compact", "--table", "lake.foreign"], "table property reqdedup.layout required"),
        (["compact", "--table", "lake.f"], "an engagement table required, found a feature table"),
        (["compact", "--table", "lake.t", "--bucket", "9"], "buckets with rows required, found [9]"),
        (["rebucket", "--table", "lake.rejected_engagements", "--buckets", "2"], "reqdedup.layout required"),
        (["features", "rollback", "--table", "lake.t", "--tag", "v9"], "tag 'v9' required, found none"),
        (["features", "publish", "--table", "lake.t", "--name", "x"], "reqdedup.features required"),
        (["features", "promote", "--table", "lake.t", "--from", "lake.nope"], "lake.nope is not in the catalog"),
        (["delete-user", "1", "--namespace", "nope"], "namespace nope is not in the catalog; there are: lake"),
        (["delete-user", "1"], "--namespace or --table required"),
        (["delete-user", "--namespace", "lake"], "USER_ID or --key required"),
        (["sample", "--table", "lake.t", "--rate", "1.5"], "a number from 0 to 1 required, found '1.5'"),
        (["sample", "--table", "lake.t", "--rate", "nan"], "a number from 0 to 1 required, found 'nan'"),
        (["sample", "--table", "lake.t", "--rate", "a=b"], "--rate: NUMBER or STRATUM=NUMBER required, found 'a=b'"),
        (["convert", "x.parquet", "--table", "lake.new"], "columns for user, request, item and time required"),
        (
            ["convert", "x.parquet", "--table", "lake.new", *KEYS, "--level", "a=b"],
            "level of a: request or item required",
        ),
        (
            ["convert", "x.parquet", "--table", "lake.new", *KEYS, "--vector", "a=b"],
            "width of vector a: a whole number",
        ),
        (["convert", "--table", "lake.new"], "either PATH or --source-table required"),
        (["convert", "x.parquet", "--table", "new", *KEYS], "a table is named as namespace.table, found 'new'"),
        (["convert", "x.parquet", "--table", "a.b", *KEYS, "--history-time-unit", "s"], "found nothing there"),
    ],
)
def test_errors_are_one_message_without_a_traceback(errors_lake, capsys, arguments, said):
    capsys.readouterr()
    assert cli.main([*arguments, "--catalog-uri", errors_lake]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.startswith(f"reqdedup {' '.join(arguments[: 2 if arguments[0] == 'features' else 1])}: ")
    assert len(printed.err.splitlines()) == 1


@pytest.fixture(scope="module")
def errors_lake(tmp_path_factory):
    lake = Lake(tmp_path_factory.mktemp("lake"), None)
    main = lake.append(0)
    create_feature_table(lake.catalog, "lake.f", main, [VISITS])
    lake.catalog.create_table("lake.foreign", pa.schema([("a", pa.int64())]))
    return lake._uri


@pytest.mark.slow
def test_health_fails_if_the_rows_of_a_request_differ_and_it_is_asked(lake, capsys):
    table = lake.append(0)
    assert "  requests agree: 36 rows, one value per request" in lake.run("health", "--table", "lake.t", "--requests")
    later = [
        batch.set_column(
            batch.schema.get_field_index("hour_of_day"),
            batch.schema.field("hour_of_day"),
            pa.compute.add(batch["hour_of_day"], pa.scalar(1, batch["hour_of_day"].type)),
        )
        for batch in TableSource(table.refresh()).batches()
    ]
    write(table, later, mode="append")
    (found,) = lake.json("health", "--table", "lake.t")
    assert found["requests_agree"] is None
    options = ["--table", "lake.t", "--catalog-uri", f"sqlite:///{lake.folder}/catalog.db"]
    assert cli.main(["health", "--requests", *options]) == 1
    assert "to do: requests: lake.t: column hour_of_day: one value per request required" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["health", "compact", "expire", "sweep"])
def test_a_catalog_that_is_not_there_is_not_made(tmp_path, capsys, command):
    uri = f"sqlite:///{tmp_path}/nowhere/catalog.db"
    assert cli.main([command, "--table", "a.b", "--catalog-uri", uri]) == 2
    assert "a catalog required, found none at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_conflict_is_a_message_and_a_defect_has_its_traceback_only_with_debug(lake, monkeypatch):
    lake.append(0)

    def busy(*arguments, **options):
        raise ConflictError("lake.t: left alone by others required, found its files replaced")

    monkeypatch.setattr("reqdedup.storage.compact", busy)
    assert "found its files replaced" in lake.run("compact", "--table", "lake.t", code=2)
    monkeypatch.setattr("reqdedup.storage.compact", lambda *arguments, **options: {}["nothing"])
    said = lake.run("compact", "--table", "lake.t", code=1)
    assert (
        said
        == "reqdedup compact: a defect, KeyError: 'nothing'; --debug shows its traceback, please report it with that\n"
    )
    assert "Traceback (most recent call last)" in lake.run("compact", "--table", "lake.t", "--debug", code=1)


@pytest.mark.parametrize(
    ("arguments", "usage", "said"),
    [
        (["convert", "x", "--tabel", "a.b"], "reqdedup convert", "found --tabel; did you mean --table?"),
        (["health", "--table", "a.b", "--tables=c"], "reqdedup health", "found --tables; did you mean --table?"),
        (["health", "--table", "a.b", "c"], "reqdedup health", "nothing more required, found c"),
        (["features", "pblish", "--table", "a.b"], "reqdedup features", "found pblish; did you mean publish?"),
        (["helth"], "reqdedup", "found helth; did you mean health?"),
        (["quux"], "reqdedup", "found quux\n"),
        (["--debug", "health"], "reqdedup", "found the option --debug; options stand after the command"),
        (["health", "-x"], "reqdedup health", "an option of reqdedup health required, found -x\n"),
        (["delete-user", "-5"], "reqdedup delete-user", "found -5; write -- before a negative number"),
        (["health", "--table"], "reqdedup health", "a value of --table required, found none"),
        (["health"], "reqdedup health", "--table required, found none"),
        (["rebucket", "--table", "a.b", "--table=a.c"], "reqdedup rebucket", "--table once required, found it twice"),
        (["delete-user", "--key", "--apply"], "reqdedup delete-user", "a value of --key required, found --apply"),
        (["convert", "--layout", "sortd"], "reqdedup convert", "found 'sortd'; did you mean sorted?"),
        (["ingest", "x", "--table", "a.b"], "reqdedup ingest", "one of --preset and --mapping required"),
    ],
)
def test_what_is_misspelled_is_named_with_the_usage_of_its_command(capsys, arguments, usage, said):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    printed = capsys.readouterr().err
    assert caught.value.code == 2
    assert printed.startswith(f"usage: {usage} [-h]")
    assert said in printed


@pytest.mark.parametrize("age", ["5", "d", "-1d", "1y"])
def test_an_age_has_a_unit(age, capsys):
    with pytest.raises(SystemExit):
        cli.main(["expire", "--table", "a.b", f"--older-than={age}"])
    assert "an age like 5d, 36h or 90m required" in capsys.readouterr().err


def test_an_id_of_text_is_told_its_option(capsys):
    with pytest.raises(SystemExit):
        cli.main(["delete-user", "U13740", "--namespace", "news"])
    assert "a whole number required, found 'U13740'; of an id of text use --key U13740" in capsys.readouterr().err
