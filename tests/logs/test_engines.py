"""A log that is read by tasks gives the rows, rejects, ids and counts of one process, whatever goes wrong with tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyiceberg.catalog import load_catalog

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.ingest import ingest
from reqdedup.logs import LogError, read_log, tasks
from reqdedup.storage import Layout
from reqdedup.storage.iceberg.vocabulary import Vocabulary
from tests.distributed.faulty import Faulty
from tests.distributed.listening import Listening
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.tables import files_of

pytestmark = pytest.mark.slow
SESSIONS = {
    "user_id": "user",
    "item_id": "item",
    "time": {"column": "ts"},
    "session_gap_s": 600,
    "labels": {"click": "click"},
    "item_columns": {"price": {"column": "price", "dtype": "float32"}},
}
REQUESTS = {**SESSIONS, "request_id": "request", "request_columns": {"city": {"column": "city", "dtype": "string"}}}
REQUESTS.pop("session_gap_s")
URLS = {**SESSIONS, "item_id": {"column": "item", "type": "url"}}


def write_log(folder: Path, *, num_files: int = 5, rows: int = 90) -> Path:
    """Files of rows of the same users in any order; some broken, some twice, requests that two users claim, no row at
    all in one file and no UTF-8 in another."""
    rng = np.random.default_rng(7)
    folder.mkdir()
    for number in range(num_files):
        lines = ["user,request,item,ts,click,price,city"]
        for _ in range(rows):
            request = int(rng.integers(0, 60))
            user = f"u{request // 3}" if rng.random() < 0.97 else "thief"
            city = f"city {request % 4}" if rng.random() < 0.98 else "elsewhere"
            item = f"https://Example.com/{int(rng.zipf(1.6)) % 40}?utm_source={request % 3}"
            ts = 1_700_000_000 + 100 * request + int(rng.integers(0, 50))
            line = f"{user},r{request},{item},{ts},{int(rng.random() < 0.3)},{rng.random():.3f},{city}"
            lines.append(line if rng.random() < 0.97 else line.replace(str(ts), "never"))
        if number == 2:
            lines = lines[:1]
        text = "\n".join(lines) + "\n"
        data = text.encode() + (b"u1,r3,item \xff,1700000300,1,1,city 3\n" if number == 3 else b"")
        (folder / f"part-{number}.csv").write_bytes(data)
    return folder


def contents(table) -> dict[str, bytes]:
    return {Path(path).parent.name: Path(path).read_bytes() for path in files_of(table.refresh())}


def made(catalog, name, log, layout, engine):
    """The table, its rejects, its items, and what is said of them."""
    report = ingest(catalog, f"{name}.t", log, layout, num_buckets=3, engine=engine)
    table = catalog.load_table(f"{name}.t")
    rejects = catalog.load_table(report.rejects_table).scan().to_arrow().drop_columns("table_name")
    counted = ("rows", "requests", "users", "files", "row_groups", "bytes")
    told = [getattr(report.written, one) for one in counted]
    return table, rejects.to_pylist(), [told, report.rejected, report.leaking, report.urls, vars(log.counts)]


@pytest.mark.parametrize("mapping", [SESSIONS, REQUESTS, URLS], ids=["sessions", "requests", "urls"])
@pytest.mark.parametrize("layout", [Layout.BY_REQUEST, Layout.ARRIVAL])
def test_tables_rejects_items_and_counts_are_the_same(catalog, tmp_path, monkeypatch, mapping, layout):
    monkeypatch.setattr(tasks, "FILES_BYTES", 4_000)
    folder = write_log(tmp_path / "log")
    found = []
    for name, engine in (("here", "inline"), ("there", Faulty(3))):
        log = read_log(folder, mapping=mapping, max_rejects=1, partition_bytes=5_000)
        found.append(made(catalog, name, log, layout, engine))
    (here, *told_here), (there, *told_there) = found
    assert told_here == told_there
    assert told_here[0], "some rows are rejected"
    assert contents(here) == contents(there)
    items = [
        Vocabulary(catalog, f"{name}.items").table().scan().to_arrow().drop_columns("first_seen").sort_by("item_id")
        for name in ("here", "there")
    ]
    assert items[0].equals(items[1])
    assert on_disk(there) == needed_by(there)


def test_nothing_that_is_sent_holds_a_secret_of_the_catalog(tmp_path):
    (tmp_path / "PASSWORD").mkdir()
    secrets = {"s3.secret-access-key": "TOPSECRET", "s3.access-key-id": "AKIDEXAMPLE", "token": "TOPSECRET"}
    uri = f"sqlite:///{tmp_path}/PASSWORD/catalog.db"
    lake = load_catalog("test", type="sql", uri=uri, warehouse=f"file://{tmp_path}/lake", **secrets)
    listening = Listening()
    log = read_log(write_log(tmp_path / "log"), mapping=REQUESTS, max_rejects=1)
    ingest(lake, "lake.t", log, Layout.BY_REQUEST, num_buckets=2, engine=listening)
    source = lake.load_table("lake.t")
    mapping = {"user": "user_id", "request": "request_id", "item": "item_id", "time": "request_ts", "labels": ["click"]}
    convert_table(source, lake, "lake.again", ColumnMapping(**mapping), num_buckets=2, engine=listening)
    assert len(listening.sent) > 10
    for secret in (b"TOPSECRET", b"AKIDEXAMPLE", b"PASSWORD", b"catalog.db"):
        assert not any(secret in sent for sent in listening.sent)


def test_a_log_that_is_refused_leaves_the_table_as_it_was(catalog, tmp_path):
    folder = write_log(tmp_path / "log")
    for engine in ("inline", Faulty(1)):
        with pytest.raises(LogError, match=r"strict reading requires that no row is rejected, found"):
            ingest(catalog, "lake.t", read_log(folder, mapping=SESSIONS, strict=True), Layout.BY_REQUEST, engine=engine)
        assert not catalog.table_exists("lake.t")
    assert not list((tmp_path / "lake").rglob("*.arrows"))


@pytest.mark.soak
def test_processes_ingest_to_the_same_bits(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "FILES_BYTES", 4_000)
    folder, found = write_log(tmp_path / "log"), []
    for name, engine in (("here", "inline"), ("there", "processes:2")):
        found.append(made(catalog, name, read_log(folder, mapping=REQUESTS, max_rejects=1), Layout.BY_REQUEST, engine))
    assert found[0][1:] == found[1][1:]
    assert contents(found[0][0]) == contents(found[1][0])
