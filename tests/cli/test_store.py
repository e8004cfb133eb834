"""`reqdedup store` fills and shows."""

from __future__ import annotations

import json

import pytest

from reqdedup import cli
from reqdedup.storage import Layout, open_catalog, replace_table
from tests.storage.small_log import log_schema, make_log, to_batches


@pytest.fixture
def run(tmp_path, capsys):
    """The command line on a catalog with the table small.main, with its output."""
    uri = f"sqlite:///{tmp_path}/catalog.db"
    catalog = open_catalog(properties={"uri": uri, "warehouse": f"file://{tmp_path}/tables"})
    catalog.create_namespace("small")
    replace_table(
        catalog, "small.main", log_schema(), Layout.BY_REQUEST, to_batches(make_log(num_users=8)), num_buckets=2
    )

    def run(*arguments, code=0):
        assert cli.main([*map(str, arguments), "--catalog-uri", uri]) == code
        printed = capsys.readouterr()
        return printed.out or printed.err

    return run


@pytest.mark.slow
def test_a_store_is_filled_and_shown(run, tmp_path):
    path = tmp_path / "s.sqlite"
    first = json.loads(run("store", "fill", "--table", "small.main", "--store", path, "--json"))
    assert first["num_new"] == 8
    again = run("store", "fill", "--table", "small.main", "--store", path)
    assert "8 users (0 new, 0 changed, 8 as they were), 0 deleted" in again
    shown = json.loads(run("store", "show", "--store", path, "--json"))
    assert shown["users"] == 8
    assert shown["source"] == first["source"]
    assert "filled from small.main, snapshot" in run("store", "show", "--store", path)
    user = next(r["user_id"] for r in make_log(num_users=8) if len(r["events"]))
    one = json.loads(run("store", "show", "--store", path, f"--user={user}", "--json"))
    assert len(one["events"]["item_id"]) == min(10, one["window"]["end"])
    assert one["features"]["device"] in range(4)
    assert "device" in run("store", "show", "--store", path, f"--user={user}")


def test_a_store_that_is_not_named_is_asked_for(run):
    said = run("store", "show", code=2)
    assert "a file of the store required, found neither --store nor a namespace of an embedded lake" in said
    assert "none; make one with `reqdedup store fill`" in run("store", "show", "--store", "/nowhere/s", code=2)
