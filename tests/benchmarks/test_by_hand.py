"""The rivals written by hand compute the library's models: outputs, loss and gradients, at awkward shapes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import by_hand, training_by_hand, workloads
from benchmarks.workloads import batch_of, by_hand_retrieval_loss, click_loss, dcat_config, retrieval_loss
from reqdedup.models import DCAT, TwoTower

SHAPES = {
    "equal lengths": ([6, 6, 6], [2, 2, 2]),
    "ragged, an empty history, one row": ([5, 0, 9, 1], [3, 1, 4, 2]),
    "one request": ([7], [5]),
    "no history at all": ([0, 0], [1, 2]),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setitem(workloads.INPUTS, "item_table_rows", 64)
    yield
    torch.set_num_threads(threads)


def both(ours, theirs, our_loss, their_loss, batch):
    """Losses and gradients by parameter of the library's model and its rival, the same weights in float64."""
    theirs.load_state_dict(ours.state_dict())
    found = []
    for model, loss_of in ((ours.double(), our_loss), (theirs.double(), their_loss)):
        loss = loss_of(model, batch)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    return found


def double(batch):
    batch.row[workloads.LABEL] = batch.row[workloads.LABEL].double()
    return batch


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("requests_per_bucket", [None, 1, 2])
@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("rival", [by_hand.PackedDCAT, by_hand.MatmulDCAT])
def test_ranking_by_hand_equals_dcat(shape, requests_per_bucket, positions, rival):
    torch.manual_seed(0)
    config = dcat_config(width=8, max_history=16, positions=positions)
    batch = double(batch_of(*SHAPES[shape]))
    ours, theirs = both(DCAT(config), rival(config, requests_per_bucket), click_loss, click_loss, batch)
    torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "one request"])
@pytest.mark.parametrize("requests_per_bucket", [None, 1, 2])
def test_retrieval_by_hand_equals_the_two_towers(shape, requests_per_bucket):
    torch.manual_seed(0)
    config = workloads.two_tower_config(width=8, max_history=16)
    models = TwoTower(config), by_hand.TwoTower(config, requests_per_bucket)
    batch = batch_of(*SHAPES[shape])
    ours, theirs = both(*models, retrieval_loss, by_hand_retrieval_loss, batch)
    torch.testing.assert_close(theirs, ours)


def test_a_kept_context_by_hand_scores_as_dcat_does():
    torch.manual_seed(0)
    config = dcat_config(width=8, max_history=16)
    ours, theirs = DCAT(config).double().eval(), by_hand.MatmulDCAT(config, 2).double().eval()
    theirs.load_state_dict(ours.state_dict())
    batch = batch_of([5, 0, 9], [3, 1, 4])
    with torch.inference_mode():
        kept = theirs.encode_padded(batch)
        torch.testing.assert_close(theirs.score_padded(kept, batch), ours(batch))


def test_the_shapes_are_those_that_the_claims_name():
    news, long = training_by_hand.news(), training_by_hand.long_ragged(64, 10)
    assert (len(news.lengths), round(sum(news.lengths) / 64), max(news.lengths), sum(news.rows)) == (64, 26, 245, 1874)
    assert (round(sum(long.lengths) / 64), max(long.lengths)) == (271, 512)
    assert sorted(zip(news.lengths, news.rows)) == list(zip(news.sorted().lengths, news.sorted().rows))


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["retrieval", "ranking", "scoring"])
def test_every_comparison_passes_its_gate_at_a_tiny_size(monkeypatch, claim):
    def tiny(name, *_):
        return training_by_hand.Shape(name=name, lengths=[4, 4], rows=[2, 2])

    def ragged(*_):
        return training_by_hand.Shape(name="ragged", lengths=[3, 8, 1, 5, 2], rows=[2, 1, 3, 1, 2])

    monkeypatch.setattr(training_by_hand, "equal", tiny)
    monkeypatch.setattr(training_by_hand, "news", ragged)
    monkeypatch.setattr(training_by_hand, "long_ragged", ragged)
    rows = list(training_by_hand.CLAIMS[claim](1))
    assert {row["target"] for row in rows} == {1.0, 2.0, 1.3}
    assert all(row["value"] > 0 and row["variant"] for row in rows)
