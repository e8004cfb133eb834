"""Whole ingests at once into one namespace, each a process: no item has two ids, no id two items, and no row is lost."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from pyiceberg.catalog import Catalog, load_catalog

from reqdedup.ingest import ingest
from reqdedup.logs import read_log
from reqdedup.storage import Layout, TableSource, compact, table_health
from reqdedup.storage.maintenance import health

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["reqdedup.ingest"])
INGESTS, ROWS = 4, 120
MAPPING = {
    "user_id": {"column": "member", "type": "string"},
    "item_id": {"column": "item", "type": "string"},
    "time": {"column": "at", "unit": "s"},
    "labels": {"click": "clicked"},
}


def opened(folder: Path) -> Catalog:
    return load_catalog("test", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")


def log_of(number: int) -> list[tuple[str, str, int]]:
    """Rows of a log: items that all logs have, and some of its own."""
    rng = np.random.default_rng(number)
    items = [f"i{item}" if item < 40 else f"own-{number}-{item}" for item in rng.integers(0, 60, ROWS)]
    return [(f"m{row % 7}", item, 1_750_000_000 + 100_000 * row) for row, item in enumerate(items)]


def ingest_one(folder: str, number: int) -> None:
    path = Path(folder) / f"{number}.csv"
    path.write_text(
        "\n".join(["member,item,at,clicked", *(f"{user},{item},{at},1" for user, item, at in log_of(number)), ""])
    )
    log = read_log(path, mapping=MAPPING)
    ingest(opened(Path(folder)), f"lake.t{number}", log, Layout.BY_REQUEST, num_buckets=1)


def keys_of(catalog: Catalog, number: int) -> list[str]:
    source = TableSource(catalog.load_table(f"lake.t{number}"))
    ids = np.concatenate([batch.column("item_id").to_numpy() for batch in source.batches(["item_id"])])
    keys = source.item_keys(ids)
    assert keys is not None
    return sorted(keys.tolist())


@pytest.mark.slow
def test_every_key_has_one_id_and_every_table_its_own_items(tmp_path, monkeypatch):
    opened(tmp_path)  # pyiceberg's catalog of its own: two that make its tables at once meet
    processes = [FORKS.Process(target=ingest_one, args=(str(tmp_path), number)) for number in range(INGESTS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * INGESTS
    catalog = opened(tmp_path)
    items = catalog.load_table("lake.items")

    def vocabulary() -> dict[str, int]:
        rows = items.refresh().scan().to_arrow()
        found = dict(zip(rows["item_key"].to_pylist(), rows["item_id"].to_pylist(), strict=True))
        assert len(found) == len(rows)
        return found

    before = vocabulary()
    assert sorted(before.values()) == list(range(len(before)))
    wanted = {number: sorted(item for _, item, _ in log_of(number)) for number in range(INGESTS)}
    assert {item for keys in wanted.values() for item in keys} == set(before)
    assert {number: keys_of(catalog, number) for number in wanted} == wanted

    monkeypatch.setattr(health, "MANY_ITEM_FILES", 1)
    (advice,) = (one for one in table_health(catalog.load_table("lake.t0")).advice if "lake.items" in one)
    assert advice.startswith(f"compact --table lake.items: its keys lie in {INGESTS} files")
    with items.update_schema() as update:
        update.add_column("price", items.schema().find_type("item_id"))
    report = compact(items)
    assert (report.old_files, report.files, report.rows) == (INGESTS, 1, len(before))
    assert vocabulary() == before
    assert compact(items).buckets == ()
    assert {number: keys_of(catalog, number) for number in wanted} == wanted
    ingest_one(str(tmp_path), INGESTS)  # goes on with the next id
    after = vocabulary()
    assert {key: after[key] for key in before} == before
    assert sorted(after.values()) == list(range(len(after)))
    assert not [one for one in table_health(catalog.load_table("lake.t0")).advice if "5 files" in one]
