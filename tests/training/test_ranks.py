"""Held-out items ranked among a catalogue, with a model's own vectors: ties are ties, whatever the matrix product does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reqdedup.models import TwoTower
from reqdedup.models.inputs import hashed_row
from reqdedup.training import TrainingConfig
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.tasks import Retrieval
from tests.models.batches import random_batch, two_tower_config


def ranked(model: TwoTower, batch, *, num_items: int, catalogue_items: int):
    """(task, outcomes) of a log with the items 0 to num_items - 1."""
    times = {name: torch.arange(batch.num_requests) for name in ("request_id", "request_ts")}
    batch = replace(batch, item_id_B=batch.item_id_B % num_items, request={**batch.request, **times})
    item_id_V = torch.arange(num_items)
    columns = dict.fromkeys(model.config.item_categories, (item_id_V % 7).int().numpy())
    catalogue = Catalogue.of_rows(item_id_V.numpy(), np.ones(num_items), np.zeros(num_items), columns)
    config = TrainingConfig(
        model=model.config, num_steps=1, requests_per_step=3, learning_rate=0.1, world_size=1,
        catalogue_items=catalogue_items,
    )  # fmt: skip
    task = Retrieval(config, catalogue, torch.device("cpu"))
    with torch.no_grad():
        return task, task.evaluate(model.eval(), [batch])


@pytest.mark.parametrize("catalogue_items", [1001, 500])
@pytest.mark.parametrize("rows", [[3, 0, 6, 40], [1]], ids=str)
def test_an_item_tower_that_says_the_same_of_all_items_ranks_by_chance(rows, catalogue_items):
    torch.manual_seed(0)
    model = TwoTower(two_tower_config())
    for table in (model.embedding.item, *model.embedding.of_item):
        torch.nn.init.zeros_(table.weight)
    _, outcomes = ranked(model, random_batch([4] * len(rows), rows), num_items=1001, catalogue_items=catalogue_items)
    assert set(outcomes.rank_B.tolist()) <= {1 + (catalogue_items - 1) / 2, 1 + catalogue_items / 2}


@pytest.mark.parametrize("catalogue_items", [300, 200])
@pytest.mark.parametrize("requests", [1, 5])
def test_items_of_equal_vectors_tie_as_in_a_loop(requests, catalogue_items):
    """40 rows of a table for 300 items, and one category: most items share their vector."""
    torch.manual_seed(1)
    model = TwoTower(two_tower_config(item_table_rows=40, category_table_rows=1))
    batch = random_batch([4] * requests, [30] * requests)
    task, outcomes = ranked(model, batch, num_items=300, catalogue_items=catalogue_items)
    number_V = torch.unique(hashed_row(torch.arange(300), 40), return_inverse=True)[1]
    one_of_each = torch.stack([torch.nonzero(number_V == number)[0, 0] for number in range(int(number_V.max()) + 1)])
    with torch.no_grad():
        vectors = model.encode_items(one_of_each, dict.fromkeys(model.config.item_categories, one_of_each))
        score = (model.user_tower(batch).double() @ vectors.double().mT)[:, number_V]
    wanted = []
    for r, item in zip(batch.request_of_row_B.tolist(), (batch.item_id_B % 300).tolist()):
        others = score[r, [c for c in task.catalogue[0].tolist() if c != item]]
        own = score[r, item]
        wanted.append(1 + int((others > own).sum()) + int((others == own).sum()) / 2)
    assert outcomes.rank_B.tolist() == wanted
