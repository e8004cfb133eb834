"""A damaged or missing manifest or manifest list is named in one sentence, whoever opens it, and nothing is changed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from reqdedup import cli
from reqdedup.storage import (
    IntegrityError,
    Layout,
    TableSource,
    compact,
    delete_user,
    expire_snapshots,
    rebucket,
    replace_table,
    sweep_orphans,
    table_health,
    write,
)
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import new_table

LOG = to_batches(make_log(num_users=6))
NOW = timedelta(0)
VERBS = {
    "read": lambda table: TableSource(table),
    "append": lambda table: write(table, LOG, mode="append"),
    "write": lambda table: write(table, LOG),
    "replace": lambda table: replace_table(
        table.catalog, ".".join(table.name()), log_schema(), Layout.SORTED, LOG, num_buckets=2
    ),
    "health": table_health,
    "compact": lambda table: compact(table, force=True),
    "rebucket": lambda table: rebucket(table, 2),
    "delete-user": lambda table: delete_user([table], LOG[0]["user_id"][0].as_py()),
    "expire": lambda table: expire_snapshots(table, older_than=NOW, dry_run=False),
    "sweep": lambda table: sweep_orphans(table, older_than=NOW, dry_run=False),
}


def local(path: str) -> Path:
    return Path(path.removeprefix("file://"))


@pytest.fixture
def table(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, LOG)
    write(table, LOG, mode="append")
    return catalog.load_table(table.name())


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "cut", "garbage", "empty"])
@pytest.mark.parametrize("kind", ["manifest list", "manifest"])
def test_the_damaged_file_is_named_and_nothing_is_changed(table, kind, damage, tmp_path):
    snapshot = table.current_snapshot()
    path = snapshot.manifest_list if kind == "manifest list" else snapshot.manifests(table.io)[0].manifest_path
    whole = local(path).read_bytes()
    if damage == "gone":
        local(path).unlink()
    else:
        local(path).write_bytes(
            {"cut": whole[: len(whole) // 2], "garbage": whole[:-40] + bytes(40), "empty": b""}[damage]
        )
    there = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*") if "cat" not in file.name}
    for verb, call in VERBS.items():
        if verb == "append" and kind == "manifest":
            continue  # an append leaves other manifests alone
        with pytest.raises(IntegrityError, match=f"{kind} .*{local(path).name} is (damaged|not there)"):
            call(table.catalog.load_table(table.name()))
    left = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*") if "cat" not in file.name}
    assert {file: time for file, time in there.items() if left.get(file) != time} == {}


@pytest.mark.slow
def test_the_command_line_says_it_in_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "r.csv"
    log.write_text("userId,movieId,rating,timestamp\n" + "".join(f"{u},{u},3,{1600000000 + u}\n" for u in range(9)))
    where = ["--catalog-uri", f"sqlite:///{tmp_path}/c.db", "--warehouse", str(tmp_path / "wh")]
    assert cli.main(["ingest", str(log), "--preset", "movielens", "--table", "m.t", "--buckets", "2", *where]) == 0
    list_ = next((tmp_path / "wh").rglob("snap-*.avro"))
    list_.write_bytes(list_.read_bytes()[:50])
    capsys.readouterr()
    assert cli.main(["health", "--table", "m.t", *where]) == 2
    error = capsys.readouterr().err
    assert list_.name in error
    assert "Traceback" not in error
