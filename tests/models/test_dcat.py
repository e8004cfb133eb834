"""What the equality with the duplicated twin does not show by itself: isolation, causality, the kept context."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from reqdedup.models import DCAT, Context, naive
from tests.models.batches import SHAPES, dcat_config, one_request, random_batch

POSITIONS = ["learned", "rope"]


def model(positions: str = "learned", **changes: object) -> DCAT:
    torch.manual_seed(0)
    return DCAT(dcat_config(positions=positions, **changes)).double().eval()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("backend", ["naive", "sdpa", "flash"])
def test_changing_a_candidate_changes_no_other_logit(positions, backend):
    dcat, batch = model(positions), random_batch([5, 0, 63], [4, 2, 7])
    dcat.backend = backend
    before = dcat(batch)
    item_id_B = batch.item_id_B.clone()
    item_id_B[2] += 1
    changed = (dcat(replace(batch, item_id_B=item_id_B)) != before).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_later_event_changes_no_earlier_key_or_value(positions):
    dcat, batch = model(positions, num_layers=3), random_batch([20, 9], [1, 1])
    item_id = batch.history["item_id"].clone()
    item_id[12] += 1
    before = dcat.encode_context(batch)
    after = dcat.encode_context(replace(batch, history={**batch.history, "item_id": item_id}))
    for number, (old, new) in enumerate(zip(before.keys_values, after.keys_values, strict=True)):
        for x, y in zip(old, new, strict=True):
            changed = (x != y).flatten(1).any(dim=1).nonzero().flatten().tolist()
            assert changed == ([12] if number == 0 else list(range(12, 20))), f"layer {number}"


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_kept_context_scores_each_request_alone(positions):
    dcat, batch = model(positions), random_batch([5, 0, 63], [4, 2, 7])
    context = dcat.encode_context(batch)
    together = dcat.score(context, batch)
    alone = [dcat.score(context.request(r), one_request(batch, r)) for r in range(3)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-12, atol=1e-12)

    again = Context.concatenate([context.request(r) for r in range(3)])
    assert torch.equal(again.offsets_G1, context.offsets_G1)
    assert torch.equal(dcat.score(again, batch), together)
    assert context.num_bytes == 2 * 2 * 68 * 8 * 8  # layers, K and V, tokens, width, bytes


def test_a_context_of_other_requests_is_refused():
    dcat, batch = model(), random_batch([5, 0, 63], [4, 2, 7])
    with pytest.raises(ValueError, match="3 requests required, found 1"):
        dcat.score(dcat.encode_context(batch).request(0), batch)


def test_a_history_longer_than_the_learned_positions_is_refused():
    batch = random_batch([5, 31], [1, 1])
    with pytest.raises(ValueError, match="max_history = 30 events required, found 31"):
        model(max_history=30)(batch)
    assert model("rope", max_history=30)(batch).shape == (2, 2)


def test_predict_needs_evaluation_mode_and_changes_nothing():
    dcat, batch = model().train(), random_batch(*SHAPES["ragged, empty histories and requests"])
    with pytest.raises(ValueError, match=r"evaluation mode required, found one in training mode; call model\.eval\(\)"):
        dcat.predict(batch)
    dcat.eval()
    before = {name: buffer.clone() for name, buffer in dcat.state_dict().items()}
    logits = dcat.predict(batch)
    assert not logits.requires_grad
    assert not any(module.training for module in dcat.modules())
    assert all(torch.equal(x, before[name]) for name, x in dcat.state_dict().items())
    assert torch.equal(logits, dcat(batch))


@pytest.mark.slow
def test_threads_that_predict_side_by_side_get_what_one_alone_gets():
    dcat = model().eval()
    batches = [random_batch([5 + n, 0, 63], [4, 1, 7], seed=n) for n in range(8)]
    alone = [dcat.predict(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(dcat.predict, batches * 10))
    assert all(torch.equal(found, wanted) for found, wanted in zip(together, alone * 10, strict=True))


def test_an_empty_batch_has_no_logits():
    logits = model()(random_batch([], []))
    assert logits.shape == (0, 2)


def test_bfloat16_autocast_stays_close_to_float32():
    batch = random_batch([40, 0, 63], [4, 2, 7])
    dcat = model().float().eval()
    expected = dcat.predict(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = dcat.predict(batch)
        dcat.train()(batch).float().square().mean().backward()
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in dcat.parameters())


def test_the_duplicated_batch_has_one_request_per_row():
    batch = random_batch([5, 0, 63], [4, 0, 7])
    rows = naive.duplicate(batch).validate()
    assert (rows.num_requests, rows.num_rows, rows.num_history_tokens) == (11, 11, 4 * 5 + 7 * 63)
    for b, r in enumerate(batch.request_of_row_B.tolist()):
        theirs = batch.history["item_id"][batch.history_offsets_R1[r] : batch.history_offsets_R1[r + 1]]
        ours = rows.history["item_id"][rows.history_offsets_R1[b] : rows.history_offsets_R1[b + 1]]
        assert torch.equal(ours, theirs)
        assert torch.equal(rows.request["user_embedding"][b], batch.request["user_embedding"][r])
