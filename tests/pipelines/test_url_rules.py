"""The asset that learns which URLs are one item: from a log of URLs and a table of pages, and nothing of other logs."""

import json
from dataclasses import replace

import dagster as dg
import pyarrow as pa
import pytest

from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from reqdedup.logs.urls import load_rules
from warehouse import embedded_catalog, open_catalog

MAPPING = """
user_id = "user"
item_id = { column = "url", type = "url" }
session_gap_s = 0
[time]
column = "ts"
[labels]
click = "click"
"""


@pytest.mark.slow
def test_rules_are_learned_from_a_log_of_urls_and_a_table_of_pages(tmp_path, monkeypatch):
    for name in ("REQDEDUP_CATALOG__TYPE", "REQDEDUP_CATALOG__URI"):
        monkeypatch.delenv(name, raising=False)
    urls = [f"http://s.example/p?id={number % 10}&ref={number}" for number in range(30)]
    rows = [{"user": at % 3, "ts": 1_700_000_000 + at, "url": url, "click": 1} for at, url in enumerate(urls)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mapping.toml").write_text(MAPPING)
    environment = replace(Environment(recipe="smoke", data_dir=tmp_path), namespace="pages")
    job = build_definitions(environment).resolve_job_def("everything")
    config = {"logs": str(tmp_path / "log.jsonl"), "mapping": str(tmp_path / "mapping.toml")}

    def run(*names):
        with dg.DagsterInstance.ephemeral() as instance:
            done = job.execute_in_process(
                instance=instance,
                asset_selection=[dg.AssetKey(name) for name in names],
                run_config={"resources": {"run_recipe": {"config": config}}},
            )
            (check,) = [one for one in done.get_asset_check_evaluations() if one.check_name == "urls_are_items"]
            assert check.passed
            (made,) = done.asset_materializations_for_node("url_rules")
            return {name.rpartition("/")[2]: value.value for name, value in made.metadata.items()}

    found = run("raw_engagements", "url_rules")
    assert (found["num_urls"], found["num_items"]) == (30, 30)
    assert "fingerprint" not in found
    pages = [*urls, *(f"http://s.example/p?id={number}" for number in range(10))]
    pages += [f"http://s.example/p?ref={number}" for number in range(30)]
    hashes = [url.split("id=")[1].partition("&")[0] if "id=" in url else "none" for url in pages]
    catalog = open_catalog(embedded_catalog(tmp_path))
    rows = pa.table({"url": pages, "content_hash": hashes})
    catalog.create_table("pages.page_contents", rows.schema).append(rows)
    found = run("url_rules")
    rules = load_rules(found["rules"])
    assert rules.hosts == {"s.example": {("id", "ref"): {"id"}}}
    assert found["fingerprint"] == rules.fingerprint
