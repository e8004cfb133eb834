"""The audit end to end: what it says about tables of known making, against what really writing them takes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.audit import AuditProgress, AuditReport, audit_table, render
from reqdedup.audit.verdict import verdict
from reqdedup.display import format_bytes
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.storage import Layout, create_table, write
from reqdedup.storage.iceberg.settings import ZSTD_LEVEL
from tests.audit.audit_tables import (
    KEYS,
    append_all,
    column_bytes,
    impressions,
    local_catalog,
    shuffled,
    write_folder,
)

pytestmark = pytest.mark.slow

OWN_KEYS = {"request_key": "request_id", "user_key": "user_id", "item_key": "item_id"}


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return impressions(num_users=60, history=400, fan_out=20, num_broken=3)


@pytest.fixture(scope="module")
def snappy(rows, tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("snappy") / "t", shuffled(rows), files=3, compression="snappy")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    rows = shuffled(impressions(num_users=12, history=100, fan_out=10))
    return write_folder(tmp_path_factory.mktemp("small") / "t", rows, files=3, compression="snappy")


@pytest.fixture(scope="module")
def snappy_report(snappy) -> AuditReport:
    return audit_table(snappy, **KEYS)


def by_name(report: AuditReport) -> dict:
    return {column.name: column for column in report.columns}


def test_columns_are_what_they_were_made_to_be(snappy_report):
    columns = by_name(snappy_report)
    assert {name: column.level for name, column in columns.items()} == {
        "member": "key",
        "session": "key",
        "ts": "request",
        "country": "nearly_request",
        "embedding": "request",
        "history.item": "request",
        "history.action": "request",
        "item": "item",
        "price": "item",
        "click": "item",  # equal to the request's first nineteen times of twenty, by chance
    }
    assert columns["history.item"].repeat_ratio == 1
    assert columns["click"].repeat_ratio > 0.9
    country = columns["country"]
    assert country.broken_requests == 3
    assert re.search(r"session \d+: .*'xx'.* in \d+ of \d+ rows", country.example)
    assert columns["embedding"].user_overlap == 0
    assert 0.3 < columns["history.item"].user_overlap < 0.7


def test_facts_of_the_table_are_exact(rows, snappy, snappy_report):
    table, requests = snappy_report.table, snappy_report.requests
    sizes = rows.group_by(["member", "session"]).aggregate([("item", "count")])["item_count"].to_numpy()
    paths = sorted(snappy.glob("*.parquet"))
    assert (table.rows, table.files, table.row_groups, table.rows_without_key) == (len(rows), 3, 3, 0)
    assert (
        table.compressed_bytes
        == column_bytes(paths)
        == sum(column.compressed_bytes for column in snappy_report.columns)
    )
    assert table.file_bytes == sum(path.stat().st_size for path in paths)
    assert (requests.requests, requests.users, requests.is_exact) == (len(sizes), 60, True)
    assert requests.rows_per_request.mean == pytest.approx(sizes.mean())
    assert requests.rows_per_request.max == sizes.max()
    assert requests.single_row_requests == pytest.approx((sizes == 1).mean())
    assert (requests.order, by_name(snappy_report)["history.item"].codec) == ("scattered", "snappy")


def test_snappy_and_scattered_rows_are_found(snappy_report):
    causes = {cause.kind: cause for cause in snappy_report.causes}
    assert {"codec", "order"} <= set(causes)
    assert [cause.bytes for cause in snappy_report.causes] == sorted(
        (c.bytes for c in snappy_report.causes), reverse=True
    )
    assert min(cause.bytes for cause in causes.values()) > 0.001 * snappy_report.table.compressed_bytes
    assert {"sort by member, session", f"zstd {ZSTD_LEVEL}"} <= set(snappy_report.step.changes)
    assert snappy_report.step.is_worth_it
    assert snappy_report.model_check == pytest.approx(1, abs=0.05)


def test_setting_what_it_says_reaches_what_it_says(rows, snappy_report, tmp_path):
    """Its own lines, executed: pyarrow's to the byte count of one switch per column, pyiceberg's to that of one limit."""
    path = tmp_path / "x.parquet"
    names = {"rows": shuffled(rows, seed=2), "pq": pq, "path": path}
    for line in snappy_report.settings["pyarrow"]:
        exec(line, names)
    assert column_bytes([path]) == pytest.approx(snappy_report.step.bytes, rel=0.25)  # one file, not sixteen buckets

    table = append_all(local_catalog(tmp_path), "a.t", rows.slice(0, 0))
    names = {"table": table, "rows": shuffled(rows, seed=2)}
    for line in snappy_report.settings["pyiceberg"]:
        exec(line, names)
    table.refresh()
    paths = [task.file.file_path for task in table.scan().plan_files()]
    assert column_bytes(paths) == pytest.approx(snappy_report.step.one_limit_bytes, rel=0.4)
    assert column_bytes(paths) < snappy_report.table.compressed_bytes / 5


def test_settings_name_the_columns_as_each_writer_does(snappy_report):
    text = "\n".join(line for lines in snappy_report.settings.values() for line in lines)
    for wanted in (
        "'write.parquet.page-size-bytes'='134217728'",
        "'write.parquet.compression-codec'='zstd'",
        "WRITE DISTRIBUTED BY PARTITION LOCALLY ORDERED BY member, session",
        "ADD PARTITION FIELD bucket(1, member)",
        "parquet.page.size=134217728",
        "parquet.enable.dictionary#history.list.element.item=false",
    ):
        assert wanted in text
    assert "history.list.element.action" in snappy_report.settings["pyarrow"][1]


def test_a_sorted_table_of_defaults_is_told_about_pages_and_dictionaries(tmp_path):
    table = append_all(local_catalog(tmp_path), "a.t", impressions(num_users=5, history=6000, fan_out=20))
    report = audit_table(table, **KEYS)
    assert report.requests.order == "grouped"
    kinds = {cause.kind for cause in report.causes}
    assert "order" not in kinds
    assert "codec" not in kinds
    assert kinds & {"page_size", "dictionary"}
    assert report.layout("BY_REQUEST").ratio > 1.2
    assert report.model_check == pytest.approx(1, abs=0.1)


def test_a_folder_and_an_iceberg_table_of_the_same_rows_give_the_same(tmp_path):
    table = append_all(local_catalog(tmp_path), "a.t", shuffled(impressions(num_users=10, history=100, fan_out=10)))
    path = Path(next(iter(table.scan().plan_files())).file.file_path.removeprefix("file://"))
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    reports = [json.loads(audit_table(source, **KEYS).to_json()) for source in (table, copy.parent, copy, [copy])]
    for report in reports:
        for key in ("name", "kind"):
            report["table"].pop(key)
        report.pop("settings")
        report.pop("seconds")
    assert reports[1] == reports[0]
    assert reports[2] == reports[0]
    assert reports[3] == reports[0]


CONFIG = SyntheticLogConfig(
    seed=3, num_users=240, mean_requests_per_user=2, mean_fan_out=24, max_history=256, num_items=20_000
)
LAYOUTS = (Layout.SHUFFLED, Layout.SORTED, Layout.SORTED_LARGE_PAGES, Layout.BY_REQUEST)


@pytest.fixture(scope="module")
def own_tables(tmp_path_factory):
    catalog = local_catalog(tmp_path_factory.mktemp("own"))
    tables = {}
    for layout in LAYOUTS:
        tables[layout] = create_table(catalog, f"a.{layout.value}", synthetic_schema(CONFIG), layout)
        write(tables[layout], synthesize(CONFIG))
    return tables


def real_bytes(table) -> int:
    return column_bytes([task.file.file_path for task in table.scan().plan_files()])


ANOTHER = pytest.mark.soak
"""One table of ours is audited whole in `make test`; test_intervals.py has many more there, samples of tables too."""


@pytest.mark.parametrize("source", [Layout.SHUFFLED, pytest.param(Layout.SORTED, marks=ANOTHER)])
def test_a_table_sampled_whole_is_predicted_to_a_few_percent(own_tables, source):
    report = audit_table(own_tables[source], **OWN_KEYS, num_buckets=16)
    assert report.sample.is_whole_table
    for layout, table in own_tables.items():
        found = report.layout(layout.name)
        assert found.low <= real_bytes(table) <= found.high, (layout, found, real_bytes(table))
        assert found.high - found.low < (0.22 if layout is Layout.SHUFFLED else 0.165) * found.bytes  # a random order
    assert report.layout("STORE_ONCE").bytes <= report.layout("BY_REQUEST").bytes * 1.05


@ANOTHER
@pytest.mark.parametrize("source", [Layout.SHUFFLED, Layout.SORTED_LARGE_PAGES])
def test_a_part_of_the_users_predicts_every_layout_within_its_interval(own_tables, source):
    report = audit_table(own_tables[source], **OWN_KEYS, num_buckets=16, sample_bytes=15 * 2**20)
    assert not report.sample.is_whole_table
    assert 40 <= report.sample.users <= 120
    for layout, table in own_tables.items():
        found = report.layout(layout.name)
        assert found.low <= real_bytes(table) <= found.high, (layout, found, real_bytes(table))
        assert found.high - found.low < 0.6 * found.bytes


def test_a_table_by_request_has_nothing_left_to_gain(own_tables):
    report = audit_table(own_tables[Layout.BY_REQUEST], **OWN_KEYS, num_buckets=16)
    assert not report.step.is_worth_it
    assert report.layout("BY_REQUEST").ratio == pytest.approx(1, abs=0.03)
    assert "no layout makes it much smaller" in report.verdict[0]
    assert "what to set" not in render(report)


def test_without_a_user_key_overlap_is_not_claimed(small):
    report = audit_table(small, request_key=["member", "session"])
    assert report.user_overlap is None
    assert report.requests.users is None
    assert all(column.user_overlap is None for column in report.columns)
    assert "user overlap is not reported" in render(report)


def test_the_verdict_heads_a_text_that_fits_a_terminal(snappy_report):
    text = render(snappy_report)
    assert text.isascii()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert " ".join(text.split()).startswith(" ".join(snappy_report.verdict))
    before_settings = lines[: next(i for i, line in enumerate(lines) if line.startswith("what to set"))]
    assert max(map(len, before_settings)) <= 120
    assert re.match(r"[\d.]+ \wB today, [\d.]+ \wB as BY_REQUEST \([\d.]+x, 95% interval [\d.]+-[\d.]+\)\.", lines[0])
    assert len(snappy_report.verdict) == 3


def test_the_cheapest_step_is_never_said_to_be_larger_than_one_limit(snappy_report):
    report = snappy_report
    limited = replace(report.step, one_limit_bytes=report.step.bytes // 2)
    (_, second, _) = verdict(report.table, report.requests, report.layouts, report.causes, limited, None)
    assert f"-> {format_bytes(report.step.bytes // 2)} (" in second
    assert "with the dictionary limit below" in second
    assert "here the limit is the better one" in render(replace(report, step=limited))
    assert "here the limit is the better one" not in render(
        replace(report, step=replace(limited, one_limit_bytes=2**60))
    )


def test_the_json_keys_are_those_that_are_documented(snappy_report):
    found = json.loads(snappy_report.to_json())
    assert keys_of(found) == json.loads((Path(__file__).parent / "audit_keys.json").read_text())


def test_the_documentation_names_every_key():
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()

    def names(keys):
        if isinstance(keys, list):
            return {name for item in keys for name in names(item)}
        return set(keys or ()) | {name for item in (keys or {}).values() for name in names(item)}

    keys = json.loads((Path(__file__).parent / "audit_keys.json").read_text())
    layouts = {"SHUFFLED", "SORTED", "SORTED_LARGE_PAGES", "BY_REQUEST", "STORE_ONCE"}
    assert [name for name in sorted(names(keys) - layouts) if f"`{name}`" not in text] == []


def keys_of(value):
    """The keys at every depth; of a list those of its first entry; a column's estimates and settings are by name."""
    if isinstance(value, dict):
        return {key: keys_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [keys_of(value[0])] if value and isinstance(value[0], dict) else []
    return None


def test_it_changes_nothing_and_says_how_far_it_is(small):
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in small.rglob("*")}
    seen: list[AuditProgress] = []
    audit_table(small, **KEYS, progress=seen.append, sample_bytes=2**16)
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in small.rglob("*")} == before
    assert list(dict.fromkeys(progress.phase for progress in seen)) == [
        "footers",
        "keys",
        "sample",
        "layouts",
        "causes",
    ]
    assert all(progress.done <= progress.total for progress in seen)
    assert str(seen[0]) == "footers: 1 of 3 files"
