"""The storage benchmarks at tiny sizes: every part passes its gates and gives complete rows; a gate closes."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from benchmarks import storage, storage_maintenance, storage_write
from benchmarks.own_process import METRICS, Measured
from benchmarks.tables import local_catalog, read_stream
from reqdedup.storage import write
from reqdedup.storage.iceberg.layout import buckets_of

FIELDS = ("claim", "variant", "value", "unit", "target", "sizes")


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Children run here, by the same code, and on few buckets: imports and small files would take longer than all the rest."""

    def in_turns(module, variants, arguments, *, rounds, compare=True, arrow_pool=""):
        folder, child = Path(arguments[arguments.index("--folder") + 1]), import_module(module).child
        found = {variant: [Measured(**json.loads(child(folder, variant)))] for variant in variants}
        found = {variant: [replace(run, peak=max(run.peak, 1)) for run in runs] for variant, runs in found.items()}
        answers = {json.dumps(runs[0].answer) for runs in found.values()}
        assert not compare or len(answers) == 1
        return found

    for part in storage.PARTS:
        module = import_module(f"benchmarks.storage_{part}")
        for name, value in {"in_turns": in_turns, "NUM_BUCKETS": 2, "ROUNDS": 1, "NUM_APPENDS": 2}.items():
            monkeypatch.setattr(module, name, value, raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("part", list(storage.PARTS))
def test_a_part_passes_its_gates_and_gives_complete_rows(tmp_path, part):
    rows = list(storage.PARTS[part](tmp_path, quick=True))
    assert rows
    for row in rows:
        assert set(FIELDS) <= set(row), row
        assert row["value"] > 0 or part == "audit"  # an estimate's error, none if the sample is the whole table
        assert row["sizes"]
    assert len({(row["claim"], row["variant"]) for row in rows}) == len(rows), "each figure once"


@pytest.mark.slow
def test_every_target_of_the_write_is_in_a_row(tmp_path):
    log = storage_write.WARM
    rows = list(storage_write.run(tmp_path, "64", log, rounds=1))
    targets = {row["variant"]: row["target"] for row in rows if METRICS["cpu"] in row["claim"]}
    assert targets["by_request against append"] == targets["by_request against append_one_commit"] == 8
    catalog = local_catalog(tmp_path / "bench")
    batches = list(read_stream(tmp_path / "bench" / "arriving.arrows"))
    write(catalog.load_table("bench.by_request"), [batches[0].slice(0, 5)])
    with pytest.raises(ValueError, match="equal rows required in all tables"):
        storage_write.check(tmp_path)


def test_a_file_of_another_bucket_is_not_reported():
    user = 1
    bucket = int(buckets_of(np.array([user]), storage_maintenance.NUM_BUCKETS)[0])
    other = (bucket + 1) % storage_maintenance.NUM_BUCKETS
    before = {"a": (bucket, 10), "b": (other, 30)}
    row = storage_maintenance.rewritten("x", "y", before, {"c": (bucket, 8), "b": (other, 30)}, user, {})
    assert (row["value"], row["limit"], row["files"], row["table_files"]) == (0.2, 0.25, 1, 2)
    for after in ({"a": (bucket, 10), "c": (other, 8)}, before):
        with pytest.raises(ValueError, match=f"other files in bucket {bucket} alone required"):
            storage_maintenance.rewritten("x", "y", before, after, user, {})
