"""Tables in parts on ranks move as those of one process: uneven ranks, ranks without rows of a table or of a batch.

Two ranks, since a start of each costs seconds; three were tried.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.bundle import Bundle
from reqdedup.models.checkpoint import load_checkpoint, load_model
from reqdedup.training import TrainingConfig
from reqdedup.training.export import export_checkpoint
from reqdedup.training.launch import run_ranks
from tests.training import ranks
from tests.training.logs import random_log, with_signal
from tests.training.uneven import case_of, model_config

pytestmark = pytest.mark.slow
STEPS = 3


def _with_one_row(case):
    """Fewer rows of a table than ranks: the last rank has none."""
    task, model, batches = case
    torch.manual_seed(0)
    config = replace(model.config, item_table_rows=1, item_bias=True)
    return task, type(model)(config).double(), batches


CASES = {
    "ranking": _with_one_row(case_of("ranking", (16, 0))),
    "retrieval": case_of("retrieval", (0, 16)),
    "retrieval, catalogue": case_of("retrieval", (3, 13), negatives="catalogue"),
}
ROWS = [[[3, 1, 3], [], [0]], [[], [], [0, 1]]]
"""Of each rank, what it read of each of three tables."""
TABLES = [(5, 2), (4, 3), (2, 1)]


@pytest.fixture(scope="module")
def stepped():
    torch.manual_seed(0)
    values = [[torch.randn(len(rows), width) for rows, (_, width) in zip(of_rank, TABLES)] for of_rank in ROWS]
    cases = [copy.deepcopy(case) for case in CASES.values()]
    return values, run_ranks(ranks.steps_of_tables, (cases, 1, STEPS), (ROWS, values, TABLES), world_size=2)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    log = with_signal(random_log(num_groups=4)).write(folder / "log.parquet")
    config = TrainingConfig(
        model=model_config("retrieval"), num_steps=4, max_epochs=0, requests_per_step=12, learning_rate=0.01,
        shard_tables_from=64, checkpoint_every=2, validation=0.2, validate_every=2, held_out=0.2, eval_requests=8,
    )  # fmt: skip
    return folder, log, run_ranks(ranks.stop_and_resume, config, log, str(folder), 3, world_size=2)


@pytest.mark.parametrize("name", CASES)
def test_ranks_take_the_steps_of_one_process(stepped, name):
    task, model, batches = CASES[name]
    model, whole = copy.deepcopy(model), RequestBatch.concatenate(batches)
    optimizer = ranks.optimizers_of(model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_sum, num_terms = task.loss(model(whole), whole)
        (loss_sum / num_terms).backward()
        optimizer.step(1.0)
    ours = stepped[1][0][0][list(CASES).index(name)]
    assert "embedding.item.weight" in ours["names"]
    assert set(ours["names"]) == set(optimizer.tables)
    weights = model.state_dict()
    for kind, wanted in (("weights", {key: weights[key] for key in ours["names"]}), ("squares", optimizer.squares)):
        for key, value in wanted.items():  # AdamW makes steps of rounding where a gradient is none, of biases for one
            torch.testing.assert_close(ours[kind][key], value, rtol=1e-9, atol=1e-11, msg=f"{kind} {key}")


@pytest.mark.soak
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(resumed):
    folder, _, per_rank = resumed
    for whole, again in per_rank:
        assert whole == again
        assert len(whole) == 4
    one, two = (load_checkpoint(folder / name / "checkpoint.pt") for name in ("whole", "resumed"))
    for of_one, of_two in ((one["model"], two["model"]), (one["watch"]["weights"], two["watch"]["weights"])):
        assert all(torch.equal(x, of_two[name]) for name, x in of_one.items())
    assert one["model"]["embedding.item.weight"].shape == (64, 8)


@pytest.mark.soak
def test_a_checkpoint_is_whole_and_so_is_its_bundle(resumed, tmp_path):
    folder, log, _ = resumed
    checkpoint = folder / "whole" / "checkpoint.pt"
    bundle = Bundle.load(export_checkpoint(checkpoint, log, tmp_path / "bundle"))
    for name, x in load_model(checkpoint).state_dict().items():
        assert torch.equal(x, bundle.model.state_dict()[name])
    table = bundle.model.embedding.item.weight
    assert len(table.unique(dim=0)) == len(table), "no two ranks drew the same rows"


def test_uneven_ranks_average_sparse_gradients_as_one_would(stepped):
    values, found = stepped
    for number, size in enumerate(TABLES):
        wanted = torch.zeros(size)
        for rows, value in zip(ROWS, values):
            for row, x in zip(rows[number], value[number]):
                wanted[row] += x / 2
        for _, means in found:
            torch.testing.assert_close(means[number], wanted)


def test_a_dense_optimiser_is_refused():
    with pytest.raises(ValueError, match="table_optimizer='adagrad' required with shard_tables_from, found 'adamw'"):
        TrainingConfig(
            model=model_config("ranking"), num_steps=1, requests_per_step=2, learning_rate=1.0, shard_tables_from=64,
            table_optimizer="adamw",
        )  # fmt: skip
