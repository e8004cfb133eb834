"""`reqdedup doctor`: what is there and what answers, what would not work and what to do; never a credential."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from reqdedup import cli
from reqdedup.cli import extras
from reqdedup.cli.extras import Library, extra_of, libraries
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.storage import open_catalog


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(capsys, *words: str, code: int = 0) -> dict[str, dict]:
    """The checks by name."""
    assert cli.main(["doctor", "--json", *words]) == code
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"version", "ok", "checks"}
    assert found["ok"] is (code == 0)
    assert all(set(one) == {"name", "state", "found", "to_do"} for one in found["checks"])
    return {one["name"]: one for one in found["checks"]}


def test_a_new_folder_has_no_lake_yet_and_that_is_no_failure(here, capsys):
    found = asked(capsys)
    assert found["catalog"]["state"] == "absent"
    assert "`reqdedup ingest` or `reqdedup convert` makes it" in found["catalog"]["to_do"]
    assert {"reqdedup", "variables", "store", "engine", "temporary files", "GPU"} <= set(found)
    assert list(here.iterdir()) == []


def test_a_lake_that_answers_says_its_tables_and_its_files(here, capsys):
    data = here / "reqdedup-lake"
    data.mkdir()
    catalog = open_catalog(properties={"uri": f"sqlite:///{data}/catalog.db", "warehouse": f"file://{data}/tables"})
    catalog.create_namespace("lake")
    catalog.create_table("lake.t", pa.schema([("a", pa.int64())]))
    (data / "stores").mkdir()
    SqliteStore(data / "stores" / "lake.sqlite", {"item_id": "int64"}).close()
    found = asked(capsys)
    assert "answers, 1 table" in found["catalog"]["found"]
    assert "named by the default" in found["catalog"]["found"]
    assert "tables/lake/t is read" in found["files"]["found"]
    assert "answers, 0 users" in found["store"]["found"]
    for path in data.rglob("*.metadata.json"):
        path.unlink()
    assert asked(capsys, code=1)["files"]["state"] == "failed"


def test_what_was_named_and_does_not_answer_is_exit_code_1_without_its_password(here, capsys):
    server = ["--catalog-uri", "postgresql+psycopg2://me:TOPSECRET@127.0.0.1:1/x", "--warehouse", str(here / "w")]
    words = ["doctor", *server, "--store", "valkey://u:TOPSECRET@127.0.0.1:1"]
    assert cli.main(words) == 1
    printed = capsys.readouterr()
    assert "TOPSECRET" not in printed.out + printed.err
    assert "does not work: catalog, store" in printed.out
    assert asked(capsys, "--catalog-uri", f"sqlite:///{here}/none.db", code=1)["catalog"]["state"] == "failed"
    assert asked(capsys, "--store", "none.sqlite", code=1)["store"]["to_do"] == "`reqdedup store fill` makes it"


def test_a_file_that_cannot_be_used_is_a_check_that_failed(here, capsys, monkeypatch):
    (here / "reqdedup.toml").write_text('[catalog]\nuri = "http://x"\ntoken = "TOPSECRET"\n')
    found = asked(capsys, code=1)
    assert "a file without credentials required" in found["catalog"]["found"]
    monkeypatch.setenv("REQDEDUP_CATALOG__TOKEN", "TOPSECRET")
    assert "REQDEDUP_CATALOG__TOKEN=***" in asked(capsys, code=1)["variables"]["found"]


@pytest.mark.parametrize("columns", ["60", "200"])
def test_the_text_fits(here, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > int(columns) and len(line.split()) > 1] == []
    assert lines[-1] == "everything that is there works"


def test_what_is_missing_says_how_to_get_it_and_what_needs_it(here, capsys, monkeypatch):
    there = [
        Library("numpy", "", ">=2.0", "2.1.0"),
        Library("torch", "train", ">=2.5,<2.14", None),
        Library("torch", "serve", ">=2.5,<2.14", "2.14.1"),
    ]
    monkeypatch.setattr("reqdedup.cli.commands.doctor.libraries", lambda: there)
    found = asked(capsys)
    train = found["extra train (train, evaluate, export, score)"]
    assert (train["state"], train["to_do"]) == ("absent", "pip install 'reqdedup[train]'")
    assert found["extra serve (serve)"]["state"] == "untested"
    monkeypatch.setattr("reqdedup.cli.commands.doctor.libraries", lambda: [Library("numpy", "", ">=2.0", None)])
    assert asked(capsys, code=1)["libraries (storage, audit, convert, and everything else)"]["state"] == "failed"


@pytest.mark.parametrize(
    ("found", "bounds", "is_within"),
    [
        ("2.5.0", ">=2.5,<2.14", True),
        ("2.13.0+cpu", ">=2.5,<2.14", True),
        ("2.14.0", ">=2.5,<2.14", False),
        ("2.4", ">=2.5", False),
        ("0.12.3", "==0.12.*", True),
        ("0.13.0", "==0.12.*", False),
        ("1", "", True),
    ],
)
def test_versions_are_compared_as_numbers(found, bounds, is_within):
    assert Library("x", "", bounds, found).is_within is is_within


def test_a_command_without_its_library_names_the_extra(here, capsys, monkeypatch):
    assert {one.name for one in libraries()} >= {"pyiceberg", "torch"}
    assert (extra_of("torch.nn"), extra_of("psycopg2"), extra_of("os")) == ("train", "postgres", None)

    def gone(*arguments, **options):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("reqdedup.training.evaluate_run", gone)
    assert cli.main(["evaluate", "runs/x"]) == 2
    assert "torch required, found none; pip install 'reqdedup[train]'" in capsys.readouterr().err
    assert extras.NEEDED_FOR["train"].startswith("train")
