"""Commands run on the engine that an option or a variable names."""

from __future__ import annotations

import json
import re

import pytest

from reqdedup import cli
from reqdedup.storage import Layout, create_table, open_catalog, write
from tests.storage.small_log import log_schema, make_log, to_batches


@pytest.mark.slow
def test_commands_run_on_the_engine_that_is_named(tmp_path, capsys, monkeypatch):
    where = {"uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/tables"}
    catalog = open_catalog(properties=where)
    table = create_table(catalog, "lake.t", log_schema(), Layout.BY_REQUEST, num_buckets=2)
    for seed in (1, 2):
        write(table, to_batches(make_log(num_users=9, seed=seed)), mode="append")
    words = ["compact", "--table", "lake.t", "--catalog-uri", where["uri"]]
    assert cli.main([*words, "--engine", "processes:2"]) == 0
    said = capsys.readouterr()
    assert "2 buckets rewritten" in said.out
    assert re.search(r"^processes:2: 2 tasks, [\d.]+ kB moved$", said.err, re.MULTILINE)
    assert cli.main([*words, "--force", "--json"]) == 0
    said = capsys.readouterr()
    (report,) = json.loads(said.out)
    assert [report[name] for name in ("engine", "tasks", "retries")] == ["inline", 2, 0]
    assert report["bytes_moved"] == report["bytes"] > 0
    assert "tasks" not in said.err, "nothing to say of this process"
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, "--engine", "spark"])
    assert "processes:N, ray or ray:HOST:PORT required, found 'spark'" in capsys.readouterr().err
    monkeypatch.setenv("REQDEDUP_ENGINE", "spark")
    assert cli.main([*words, "--force"]) == 2
    assert "found 'spark'" in capsys.readouterr().err
