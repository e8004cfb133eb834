"""The command line: a log in, tables and rejects out, and one clear message where it cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import get_args

import duckdb
import pyarrow as pa
import pytest

from reqdedup import cli
from reqdedup.cli.commands.ingest import PRESETS as PRESET_NAMES
from reqdedup.cli.options import LAYOUTS
from reqdedup.cli.output import format_bytes
from reqdedup.lake import LayoutName
from reqdedup.logs import PRESETS
from reqdedup.logs.presets import Preset
from reqdedup.storage import Layout, TableSource, open_catalog, table_layout

# Three users; two sittings of user 1, because a day lies between them. Line 8 has no user, line 9 no time.
RATINGS = """userId,movieId,rating,timestamp
1,10,5.0,1000000000
1,11,3.0,1000000060
1,12,4.5,1000100000
2,10,1.0,1000000000
2,13,4.0,1000000030
3,10,4.0,1000000000
,10,4.0,1000000000
3,11,4.0,yesterday
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with a log in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ratings.csv").write_text(RATINGS)
    return tmp_path


def ingest(*more: str, log: str = "ratings.csv", table: str = "movies.ratings", max_rejects: str = "50%") -> int:
    return cli.main(["ingest", log, "--preset", "movielens", "--table", table, "--max-rejects", max_rejects, *more])


def embedded(folder):
    data = folder / "reqdedup-lake"
    return open_catalog(properties={"uri": f"sqlite:///{data}/catalog.db", "warehouse": f"file://{data}/tables"})


@pytest.mark.parametrize("source", ["nowhere.parquet", "empty", "ratings.csv"])
def test_a_source_that_cannot_be_converted_makes_no_catalog(here, capsys, source):
    (here / "empty").mkdir()
    columns = ("--user", "userId", "--request", "userId", "--item", "movieId", "--time", "timestamp")
    assert cli.main(["convert", source, "--table", "lake.t", *columns]) == 2
    said = capsys.readouterr().err
    assert "required" in said
    assert "making a new catalog" not in said
    assert sorted(path.name for path in here.iterdir()) == ["empty", "ratings.csv"]


@pytest.mark.slow
def test_ingest_makes_a_table_and_puts_bad_rows_beside_it(here, capsys):
    assert ingest() == 0
    catalog = embedded(here)
    table = catalog.load_table("movies.ratings")
    assert table_layout(table) is Layout.BY_REQUEST
    paths = [task.file.file_path for task in table.scan().plan_files()]
    # an engine that knows nothing of us counts the same rows and requests
    found = duckdb.sql(
        f"select count(*), count(distinct request_id), count(distinct user_id) from read_parquet({paths})"
    )
    assert found.fetchall() == [(6, 4, 3)]

    rejected = catalog.load_table("movies.rejected_engagements").scan().to_arrow().to_pylist()
    assert [(row["file"], row["line"], row["reason"]) for row in rejected] == [
        ("ratings.csv", 8, "null_id"),
        ("ratings.csv", 9, "time"),
    ]
    printed = capsys.readouterr()
    assert "6 rows, 4 requests, 3 users" in printed.out
    assert f"making a new catalog, {here}/reqdedup-lake/catalog.db; --catalog-uri" in printed.err
    assert "2 rejected rows" in printed.out


@pytest.mark.slow
def test_ingest_again_gives_the_same_table(here, capsys):
    assert ingest("--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert ingest("--json") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert first["rejected"] == {"null_id": 1, "time": 1}
    assert {"engine", "tasks", "retries", "bytes_moved"} <= first.keys()
    rows = sum(batch.num_rows for batch in TableSource(embedded(here).load_table("movies.ratings")).batches())
    assert rows == first["rows"] == 6


def test_strict_fails_with_the_reasons_and_leaves_no_table(here, capsys):
    assert ingest("--strict") == 2
    message = capsys.readouterr().err
    assert "null_id (1)" in message
    assert "ratings.csv:9" in message
    assert not embedded(here).table_exists("movies.ratings")


def test_more_rejects_than_allowed_fail_and_leave_no_table(here, capsys):
    assert ingest(max_rejects="0.2") == 2
    assert "at most 20% rejected rows required, found 2 of 8, 25.00%" in capsys.readouterr().err
    assert not embedded(here).table_exists("movies.ratings")


def test_what_is_no_log_in_a_folder_is_named(here, capsys):
    (here / "log").mkdir()
    (here / "log" / "README.txt").write_text("Ratings.")
    (here / "ratings.csv").rename(here / "log" / "ratings.csv")
    (here / "m.toml").write_text(
        'user_id = "userId"\nitem_id = "movieId"\n[time]\ncolumn = "timestamp"\n'
        '[labels]\nclick = { column = "rating", at_least = 4, range = [0, 5] }\n'
    )
    options = ["--mapping", "m.toml", "--table", "a.b", "--max-rejects", "1"]
    assert cli.main(["ingest", "log", *options]) == 0
    assert "no log, not read: README.txt" in capsys.readouterr().out
    assert cli.main(["ingest", "log", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == ["README.txt"]


@pytest.mark.slow
def test_strict_leaves_an_earlier_table_as_it_was(here):
    assert ingest() == 0
    before = embedded(here).load_table("movies.ratings").current_snapshot()
    assert ingest("--strict") == 2
    assert embedded(here).load_table("movies.ratings").current_snapshot() == before


def test_a_longer_session_gap_joins_sittings(here, capsys):
    assert ingest("--session-gap", "200000", "--json") == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 3


@pytest.mark.slow
def test_a_table_of_another_form_is_replaced_only_when_told(here, capsys):
    assert ingest() == 0
    assert ingest("--layout", "sorted") == 2
    assert "another form (layout sorted required, found by_request)" in capsys.readouterr().err
    assert ingest("--layout", "sorted", "--replace") == 0
    assert table_layout(embedded(here).load_table("movies.ratings")) is Layout.SORTED


@pytest.mark.slow
def test_rows_of_others_under_the_name_of_the_rejects_stop_an_ingest_before_it_writes(here, capsys):
    assert ingest() == 0
    catalog = embedded(here)
    catalog.rename_table("movies.rejected_engagements", "movies.rejects_of_before")
    catalog.create_table("movies.rejected_engagements", pa.schema([pa.field("n", pa.int64())]))
    before = catalog.load_table("movies.ratings").metadata_location
    assert ingest() == 2
    assert "a table of rejected rows required, found one with columns n" in capsys.readouterr().err
    assert catalog.load_table("movies.ratings").metadata_location == before
    assert catalog.load_table("movies.rejected_engagements").schema().column_names == ["n"]


def test_catalog_and_files_lie_where_they_are_told(here, capsys):
    assert ingest("--catalog-uri", f"sqlite:///{here}/c/my.db", "--warehouse", "lake") == 0
    assert (here / "c" / "my.db").exists()
    assert list((here / "lake").rglob("*.parquet"))
    assert not (here / "reqdedup-lake").exists()


@pytest.mark.slow
def test_report_compares_layouts(here, capsys):
    tables = []
    for layout in ("shuffled", "sorted", "by_request"):
        assert ingest("--layout", layout, table=f"movies.{layout}") == 0
        tables += ["--table", f"movies.{layout}"]
    capsys.readouterr()
    assert cli.main(["report", *tables, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["table"] for row in rows} == {"movies.shuffled", "movies.sorted", "movies.by_request"}
    assert {row["rows"] for row in rows} == {6}
    control = [row for row in rows if row["table"] == "movies.shuffled" and row["column"] == "user_id"]
    assert control[0]["ratio_to_control"] == pytest.approx(1.0)

    assert cli.main(["report", *tables]) == 0
    text = capsys.readouterr().out
    assert "movies.by_request: 6 rows, 4 requests, 1.5 rows per request" in text
    assert "history_item_id" in text
    sizes = {name: sum(row["compressed_bytes"] for row in rows if row["table"] == name) for name in tables[1::2]}
    totals = [line.split() for line in text.splitlines() if line.startswith("  all columns")]
    assert [line[-4] for line in totals] == [f"{sizes['movies.shuffled'] / size:.1f}x" for size in sizes.values()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ingest", "nowhere.csv", "--preset", "movielens", "--table", "a.b"], "nowhere.csv"),
        (["ingest", "empty.csv", "--preset", "movielens", "--table", "a.b"], "empty.csv"),
        (["ingest", "ratings.csv", "--mapping", "nowhere.toml", "--table", "a.b"], "nowhere.toml"),
        (
            ["ingest", "ratings.csv", "--preset", "movielens", "--table", "ratings"],
            "namespace.name required, found 'ratings'",
        ),
        (
            ["ingest", "ratings.csv", "--preset", "movielens", "--table", "a.b", "--catalog-uri", "http://127.0.0.1:9"],
            "--warehouse",
        ),
        (["ingest", "ratings.csv", "--preset", "movielens", "--table", "a..b"], "name required, found 'a..b'"),
        (["report", "--table", "movies.missing"], "make one with `reqdedup ingest`"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(here, capsys, arguments, said):
    (here / "empty.csv").touch()
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert not (here / "reqdedup-lake" / "tables" / "a").exists()


def test_a_missing_table_is_answered_with_those_that_are_there(here, capsys):
    assert ingest() == 0
    assert cli.main(["report", "--table", "movies.rating"]) == 2
    assert "there are: movies.ratings, movies.rejected_engagements" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest", "x.csv", "--table", "a.b"],
        ["ingest", "x.csv", "--preset", "movielens", "--mapping", "m.toml", "--table", "a.b"],
        ["ingest", "x.csv", "--preset", "movielens", "--table", "a.b", "--buckets", "0"],
    ],
)
def test_wrong_arguments_are_refused_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: reqdedup" in capsys.readouterr().err


def test_the_choices_are_those_of_the_library():
    assert sorted(layout.value for layout in Layout) == list(LAYOUTS)
    assert sorted(PRESETS) == list(PRESET_NAMES) == sorted(get_args(Preset))
    assert set(get_args(LayoutName)) == set(LAYOUTS)


def test_a_defect_is_exit_code_1(here, monkeypatch):
    monkeypatch.setattr("reqdedup.cli.commands.ingest.lake_of", lambda arguments, make: None.nothing)
    assert ingest() == 1


@pytest.mark.slow
def test_the_command_runs_as_installed(here):
    started = time.monotonic()
    shown = subprocess.run([sys.executable, "-m", "reqdedup.cli", "--help"], capture_output=True, text=True, check=True)
    assert "ingest" in shown.stdout
    assert "report" in shown.stdout
    assert time.monotonic() - started < 5


def test_bytes_are_readable():
    shown = [format_bytes(count) for count in (0, 999, 999.7, 1536, 999_600, 2_500_000, 2.5e12, None)]
    assert shown == ["0 B", "999 B", "1 kB", "1.54 kB", "1 MB", "2.5 MB", "2.5 TB", "-"]
