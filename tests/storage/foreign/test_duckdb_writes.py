"""Iceberg tables that DuckDB's own extension wrote, changed and deleted from: read as DuckDB reads them, or refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.compute as pc
import pytest
from pyiceberg.exceptions import ValidationError

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.storage import Layout, TableSource, compact, delete_user, write
from reqdedup.storage.foreign.source import RowSource
from reqdedup.storage.iceberg import manifest_groups
from tests.servers.rest_catalog import RestCatalog
from tests.storage.foreign.evolution import memory_catalog
from tests.storage.small_log import make_log, to_batches
from tests.storage.tables import new_table

WHEELS = [
    f"duckdb{extension}==1.5.5" for extension in ("", "-extension-iceberg", "-extension-avro", "-extension-httpfs")
]
MAPPING = ColumnMapping(user="u", request="r", item="i", time="t", labels=["click"])
COLUMNS = "u BIGINT, r BIGINT, i BIGINT, t TIMESTAMPTZ, click INTEGER, h BIGINT[]"
ROWS = """SELECT r // 2, r + {0}, r * 10 + c + {0}, TIMESTAMPTZ '2026-01-01 00:00:00+00' + INTERVAL (r) MINUTE, c % 2,
    [r, r + 1] FROM range(40) a(r), range(5) b(c)"""
CHANGES = [
    "INSERT INTO {0} " + ROWS.format(0),
    "INSERT INTO {0} " + ROWS.format(1000),
    "DELETE FROM {0} WHERE i % 7 = 0",
    "UPDATE {0} SET click = 5 WHERE r = 3",
    "DELETE FROM {0} WHERE i % 11 = 0",
]
UPGRADE = ["ALTER TABLE {0} SET ('format-version' = '3')", "DELETE FROM {0} WHERE i % 13 = 0"]
DEFAULT = ["ALTER TABLE {0} ADD COLUMN later INTEGER DEFAULT 7"]
TABLES = {"v2": (2, CHANGES), "v3": (3, CHANGES), "upgraded": (2, CHANGES + UPGRADE), "later": (3, CHANGES + DEFAULT)}
SUMS = "SELECT count(*), sum(i), sum(click), sum(list_sum(h)) FROM {0}"
PROGRAM = """
import json, sys
from pathlib import Path
import duckdb, duckdb_extension_avro, duckdb_extension_httpfs, duckdb_extension_iceberg
con = duckdb.connect()
for module in (duckdb_extension_avro, duckdb_extension_httpfs, duckdb_extension_iceberg):
    con.execute(f"LOAD '{next(Path(module.__file__).parent.rglob('*.duckdb_extension'))}'")
uri, statements = json.load(sys.stdin)
con.execute(f"ATTACH 'warehouse' AS lake (TYPE iceberg, ENDPOINT '{uri}', AUTHORIZATION_TYPE 'none', "
    "ACCESS_DELEGATION_MODE 'none')")
print(json.dumps([con.execute(one).fetchall() for one in statements]))
"""


@pytest.fixture(scope="module")
def duckdb_python(tmp_path_factory) -> Path:
    """The Python of an environment of its own: the extensions are of another version than our DuckDB."""
    folder = tmp_path_factory.mktemp("duckdb")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin/pip", "install", "-q", *WHEELS]
    if subprocess.run(install, capture_output=True, timeout=300).returncode:
        pytest.skip(f"no wheels of {', '.join(WHEELS)} to be had here")
    return folder / "bin/python"


@pytest.mark.soak
def test_what_duckdb_wrote_and_deleted_is_read_as_it_reads_it(duckdb_python, tmp_path):
    server = RestCatalog(tmp_path / "theirs")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    statements = []
    for name, (version, changes) in TABLES.items():
        statements.append(f"CREATE TABLE lake.d.{name} ({COLUMNS}) WITH ('format-version' = '{version}')")
        statements += [change.format(f"lake.d.{name}") for change in changes]
    statements += [SUMS.format(f"lake.d.{name}") for name in TABLES]
    for name, kind in (("odd", "VARIANT"), ("place", "GEOMETRY")):
        statements.append(f"CREATE TABLE lake.d.{name} ({COLUMNS}, x {kind}) WITH ('format-version' = '3')")
    run = subprocess.run(
        [duckdb_python, "-c", PROGRAM],
        input=json.dumps([server.uri, statements]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    server.shutdown()
    server.server_close()
    assert run.returncode == 0, run.stderr
    answers = [rows[0] for rows in json.loads(run.stdout)[-2 - len(TABLES) : -2]]
    catalog = memory_catalog(tmp_path)
    for name, answer in zip(TABLES, answers, strict=True):
        table = catalog.register_table(f"a.{name}", f"file://{server.metadata_file(name)}")
        assert any(task.delete_files for task in table.scan().plan_files())
        source, found = RowSource(table), [0, 0, 0, 0]
        for piece in source.pieces(list(source.leaves)):
            values = (piece.arrays["i"], piece.arrays["click"], piece.arrays["h"].flatten())
            found = [a + b for a, b in zip(found, (piece.num_rows, *(pc.sum(one).as_py() or 0 for one in values)))]
        assert found == answer, name
        assert convert_table(table, catalog, f"a.our_{name}", MAPPING, num_buckets=1).rows == answer[0]
        if name == "later":
            assert set(catalog.load_table("a.our_later").scan().to_arrow()["later"].to_pylist()) == {7}
    for name in ("odd", "place"):
        with pytest.raises((ValueError, ValidationError), match=r"variant|[Gg]eometry"):
            catalog.register_table(f"a.{name}", f"file://{server.metadata_file(name)}")


SCAN = """
import json, sys
from pathlib import Path
import duckdb, duckdb_extension_avro, duckdb_extension_httpfs, duckdb_extension_iceberg
con = duckdb.connect()
for module in (duckdb_extension_avro, duckdb_extension_httpfs, duckdb_extension_iceberg):
    con.execute(f"LOAD '{next(Path(module.__file__).parent.rglob('*.duckdb_extension'))}'")
print(json.dumps(con.execute("SELECT user_id, count(*), sum(item_id)::VARCHAR FROM iceberg_scan(?) GROUP BY 1 ORDER BY 1",
    [sys.argv[1]]).fetchall()))
"""


@pytest.mark.soak
def test_duckdb_reads_manifests_of_consecutive_buckets(duckdb_python, catalog, monkeypatch):
    monkeypatch.setattr(manifest_groups, "FILES_PER_MANIFEST", 3)
    table = new_table(catalog, Layout.BY_REQUEST, num_buckets=8)
    for seed in (1, 2):
        write(table, to_batches(make_log(num_users=40, seed=seed)), mode="append")
    compact(table, [3])
    user = make_log(num_users=40, seed=2)[0]["user_id"]
    delete_user(table, user)
    rows = TableSource(table.refresh()).to_arrow(["user_id", "item_id"])
    wanted = rows.group_by("user_id").aggregate([("item_id", "count"), ("item_id", "sum")]).sort_by("user_id")
    run = subprocess.run(
        [duckdb_python, "-c", SCAN, table.metadata_location], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    found = [(user, count, int(total)) for user, count, total in json.loads(run.stdout)]
    assert found == list(zip(*(column.to_pylist() for column in wanted.columns), strict=True))
    assert len(table.current_snapshot().manifests(table.io)) > 3
