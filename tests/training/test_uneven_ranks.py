"""W ranks with uneven and empty batches take the step that one process takes on the whole batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.registry import build_model
from reqdedup.training.blocks import RequestBlock
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.config import TrainingConfig
from reqdedup.training.launch import run_ranks
from reqdedup.training.tasks import Ranking, Retrieval
from tests.training import ranks
from tests.training.logs import SCHEMA, random_log

pytestmark = pytest.mark.slow

SIZES = {"even": (8, 8), "uneven": (13, 3), "second empty": (16, 0), "first empty": (0, 16)}
NO_STRINGS = SCHEMA.select(column.name for column in SCHEMA.columns if column.dtype != "string")


def _model(task):
    sizes = {"width": 8, "num_layers": 2, "item_table_rows": 64, "category_table_rows": 8, "hidden_widths": (6, 5)}
    if task == "ranking":
        return DCATConfig.from_schema(NO_STRINGS, labels=("click",), **sizes)
    return TwoTowerConfig.from_schema(NO_STRINGS, output_width=4, **sizes)


def _double(batch):
    return batch._map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _case(task_name, sizes, **options):
    torch.manual_seed(0)
    log = random_log(num_groups=1, requests_per_group=sum(sizes), seed=4)
    block = RequestBlock.of(log.groups[0].select(list(NO_STRINGS.names)), NO_STRINGS)
    batches = [_double(block.take(np.arange(sum(sizes[:rank]), sum(sizes[: rank + 1])))) for rank in range(len(sizes))]
    for batch in batches:  # few items, so that identities collide over ranks too
        batch.item_id_B.remainder_(7)
    config = TrainingConfig(model=_model(task_name), num_steps=1, requests_per_step=16, learning_rate=1e-3, **options)
    items = torch.cat([batch.item_id_B for batch in batches]).numpy()
    catalogue = Catalogue.of_rows(items, np.ones(len(items)), {})
    task = Ranking(config) if task_name == "ranking" else Retrieval(config, catalogue, torch.device("cpu"))
    return task, build_model(config.model).double(), batches


CASES = {(task, name): _case(task, sizes) for task in ("ranking", "retrieval") for name, sizes in SIZES.items()}
for loss in ("pairwise", "listwise"):
    CASES["ranking", f"uneven, {loss}"] = _case("ranking", SIZES["uneven"], ranking_loss=loss)
CASES["ranking", "uneven, focal"] = _case("ranking", SIZES["uneven"], focal_gamma=2.0, positive_weight=4.0)
CASES["retrieval", "uneven, same-user share"] = _case("retrieval", SIZES["uneven"], same_user_share=0.1)

CASES["retrieval", "uneven, conversions"] = _case(
    "retrieval",
    SIZES["uneven"],
    positives=(("click", 1.0, "price", 1.0), ("is_new", 0.5, "", 0.0)),
    hard_negative_weight=0.5,
    coarse_column="position",
)


@pytest.fixture(scope="module")
def results():
    per_rank = run_ranks(ranks.gradients_of_steps, [copy.deepcopy(case) for case in CASES.values()], world_size=2)
    return dict(zip(CASES, zip(*per_rank)))


@pytest.mark.parametrize("key", CASES, ids=" ".join)
def test_ranks_take_the_step_of_one_process(results, key):
    task, model, batches = CASES[key]
    model = copy.deepcopy(model)
    whole = RequestBatch.concatenate(batches)
    loss_sum, num_terms = task.loss(model(whole), whole)
    (loss_sum / num_terms).backward()
    assert num_terms > 20
    for loss, gradients, buffers in results[key]:
        assert loss == pytest.approx(float(loss_sum.detach()) / num_terms, rel=1e-12)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-11, msg=name)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, rtol=1e-9, atol=1e-11)


def test_the_share_of_same_user_negatives_reaches_the_loss():
    losses = []
    for name in ("uneven", "uneven, same-user share"):
        task, model, batches = CASES["retrieval", name]
        whole = RequestBatch.concatenate(batches)
        losses.append(task.loss(copy.deepcopy(model)(whole), whole)[0].item())
    assert losses[0] < losses[1]
