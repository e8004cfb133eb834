"""Resident memory of a run is flat once its first windows are through, both models, one and two ranks."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.training import TrainingConfig, train
from reqdedup.training.devices import FreedMemory, memory_bytes

pytestmark = pytest.mark.slow
MODELS = {"retrieval": TwoTowerConfig, "ranking": DCATConfig}


@pytest.fixture
def source(catalog) -> TableSource:
    log = SyntheticLogConfig(num_users=200, num_items=5_000, mean_fan_out=8, history_scale=1 / 200, max_history=64)
    catalog.create_namespace("lake")
    table = create_table(catalog, "lake.t", synthetic_schema(log), Layout.BY_REQUEST, num_buckets=4)
    write(table, synthesize(log))
    return TableSource(table)


def memory_of_steps(source: TableSource, task: str, ranks: int, steps: int, out_dir: Path) -> np.ndarray:
    model = MODELS[task].from_schema(source.schema, width=16, num_layers=1, ffn_width=32, max_history=64)
    config = TrainingConfig(
        model=model,
        num_steps=steps,
        requests_per_step=16 * ranks,
        learning_rate=3e-3,
        world_size=ranks,
        max_epochs=0,
        positive_label="click" if task == "retrieval" else None,
        eval_requests=16,
        checkpoint_every=steps,
        baselines=False,
    )
    result = train(config, source, out_dir=out_dir)
    with result.metrics_file.open(newline="") as file:
        return np.array([int(row["memory_bytes"]) for row in csv.DictReader(file)])


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("task", MODELS)
def test_memory_is_flat_over_a_thousand_steps(source, task, ranks, tmp_path):
    memory = memory_of_steps(source, task, ranks, 1_000, tmp_path)
    second, last = memory[250:500].mean(), memory[750:].mean()
    assert last < second + FreedMemory.MOST_KEPT_BYTES, f"{second / 1e6:.0f} MB, then {last / 1e6:.0f} MB"


def test_freed_memory_goes_back_to_the_system():
    freed = FreedMemory()
    if freed._trim is None:
        pytest.skip("only glibc's heap is known to keep what falls between")
    rng = np.random.default_rng(0)
    before = memory_bytes()
    # Blocks below the size that glibc maps one by one; every other one stays and pins what is between.
    blocks = [np.ones(int(n)) for n in rng.integers(4_000, 12_000, 4_000)]
    grown = memory_bytes()
    kept = blocks[::8]
    del blocks
    freed.give_back()
    assert grown > before + 100e6
    assert memory_bytes() < before + 0.5 * (grown - before), len(kept)
