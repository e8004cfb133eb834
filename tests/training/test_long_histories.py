"""Ten steps of the recipe `full`: histories of up to 16,384 events and its ranking model, on a log of fewer users.

The tables of the graph beside the training's, some 15 GB, are left out, and a step has 4 requests of its 16.
"""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest

from assets.recipes import full
from reqdedup.logs import synthesize, synthetic_schema
from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.training import train


@pytest.mark.soak
def test_ten_steps_of_the_recipe_full(catalog, tmp_path):
    recipe = full()
    log = replace(recipe.log, num_users=20, users_per_block=20)
    catalog.create_namespace("lake")
    table = create_table(catalog, "lake.t", synthetic_schema(log), Layout.BY_REQUEST, num_buckets=4)
    write(table, synthesize(log))
    source = TableSource(table)
    config = replace(
        recipe.ranking_training(source.schema), num_steps=10, requests_per_step=4, max_epochs=0, held_out=0.0,
        baselines=False, recompute_layers=True, pieces=2,
    )  # fmt: skip
    assert (config.model.max_history, config.world_size) == (16_384, 2)
    result = train(config, source, out_dir=tmp_path)
    assert result.steps == 10
    assert all(math.isfinite(loss) for loss in result.losses)
    assert result.peak_memory_bytes < 3e9
    with result.metrics_file.open(newline="") as file:
        moved = [int(row["moved_bytes"]) for row in csv.DictReader(file)]
    assert max(moved) > 4 * 8_000 * 12, "four requests of some 8,000 events of 12 bytes"
