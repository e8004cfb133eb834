"""The foundation model: which events are asked what, equal to its twin, and what another model takes over."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reqdedup.models import DCAT, Foundation, FoundationConfig, TwoTower, naive
from reqdedup.models.foundation.beginning import TAKEN, fill_from_foundation
from reqdedup.models.foundation.pairs import pairs_of
from reqdedup.models.foundation.timelines import covering, timelines_of
from reqdedup.models.registry import config_to_dict
from tests.models.batches import INPUTS, SHAPES, dcat_config, random_batch, two_tower_config
from tests.models.twins import TOLERANCE, assert_same, twins


def config(**changes) -> FoundationConfig:
    return FoundationConfig(output_width=5, **{**INPUTS, **changes})


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("changes", [{}, {"window": 1, "future": 0}, {"window": 3, "future": 4}, {"positive_category": "action", "positive_values": (1, 3)}], ids=str)  # fmt: skip
def test_pairs_are_those_of_a_loop_over_events(changes):
    of, batch = config(**changes), random_batch([5, 0, 9, 1, 12], [1, 2, 1, 1, 1])
    wanted, bounds = [], batch.history_offsets_R1.tolist()

    def is_positive(token):
        return not of.positive_category or int(batch.history["action"][token]) in of.positive_values

    for user, (start, end) in enumerate(itertools.pairwise(bounds)):
        for event in range(start, end):
            wanted += [(event, t, user) for t in range(event + 1, min(event + of.window + 1, end)) if is_positive(t)]
            if of.future and event == end - 1 - of.future:
                wanted += [(event, t, user) for t in range(event + 1, end) if is_positive(t)]
    found = pairs_of(batch, of)
    triples = zip(found.anchor_P.tolist(), found.item_id_P.tolist(), found.user_id_P.tolist(), strict=True)
    items = batch.history["item_id"]
    assert sorted(triples) == sorted((event, int(items[target]), user) for event, target, user in wanted)
    drawn = found.drawn(3)
    assert len(drawn.anchor_P) == 3
    assert set(drawn.item_id_P.tolist()) <= set(found.item_id_P.tolist())


def test_requests_of_a_user_ask_each_event_once():
    whole = random_batch([9], [1])
    items = {name: torch.cat([x[:5], x]) for name, x in whole.history.items()}
    two = replace(random_batch([5, 9], [3, 4]), history=items, user_id_R=torch.tensor([7, 7]))
    two.request.update(history_end=torch.tensor([5, 9]), timeline_version=torch.tensor([0, 0]))
    once, twice = (pairs_of(two, config(share_context=by, window=1, future=0)) for by in ("user", "request"))
    assert once.item_id_P.tolist() == whole.history["item_id"][1:].tolist()
    assert len(twice.item_id_P) == 8 + 4
    assert set(once.user_id_P.tolist()) == {7}


def test_windows_of_a_timeline_that_overlap_are_read_once():
    timeline, spans = torch.arange(100, 112), [(0, 4), (2, 6), (2, 7), (4, 8), (4, 5), (10, 12), (11, 12)]
    batch = random_batch([end - start for start, end in spans], [1] * len(spans))
    history = {name: torch.zeros_like(x) for name, x in batch.history.items()}
    history["item_id"] = torch.cat([timeline[start:end] for start, end in spans])
    batch = replace(batch, history=history, user_id_R=torch.full((len(spans),), 7))
    ends = torch.tensor([end for _, end in spans])
    batch.request.update(history_end=ends, timeline_version=torch.zeros_like(ends))
    of = config(share_context="user", window=1, future=0)
    histories, user_G = timelines_of(batch, of)
    assert histories.tokens["item_id"].tolist() == [*range(100, 108), 110, 111]
    assert user_G.tolist() == [7, 7, 7]
    assert pairs_of(batch, of).item_id_P.tolist() == [101, 102, 103, 105, 106, 107, 111]
    ours, duplicated = twins(Foundation(of), naive.Foundation(of))
    found, expected = (model(batch, pairs_of(batch, of)) for model in (ours, duplicated))
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-1, 1), st.integers(-1, 6), st.integers(0, 4)), max_size=6))
def test_the_chosen_windows_hold_every_event_and_are_as_few_as_can_be(drawn):
    spans = [[user, version, start, start + length] for user, version, start, length in drawn]

    def events(numbers):
        return {(*spans[i][:2], event) for i in numbers for event in range(*spans[i][2:])}

    placed = [i for i, (_, version, start, _) in enumerate(spans) if version >= 0 and start >= 0]
    found = list(covering(spans))
    assert sorted(set(range(len(spans))) - set(placed)) == sorted(set(found) - set(placed))
    chosen = [i for i in found if i in placed]
    assert events(chosen) == events(placed)
    fewest = min(n for n in range(7) if any(events(c) == events(placed) for c in itertools.combinations(placed, n)))
    assert len(chosen) == fewest


@pytest.mark.parametrize("layer", ["softmax", "hstu"])
@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("pretrains", [True, False], ids=["pairs", "rows"])
def test_it_equals_its_twin(pretrains, positions, layer):
    of = config(positions=positions, layer=layer)
    ours, duplicated = twins(Foundation(of), naive.Foundation(of))
    batch = random_batch([5, 0, 17, 1], [3, 4, 2, 1])
    arguments = (batch, pairs_of(batch, of)) if pretrains else (batch,)
    (event, item), (expected_event, expected_item) = ours(*arguments), duplicated(*arguments)
    if not pretrains:
        event = batch.expand(event)
    torch.testing.assert_close(event, expected_event, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(item, expected_item, rtol=TOLERANCE, atol=TOLERANCE)
    weight = torch.randn_like(event)
    (event * item * weight).sum().backward()
    (expected_event * expected_item * weight).sum().backward()
    for model in (ours, duplicated):  # tables of items' categories are no input of it
        for parameter in model.embedding.of_item.parameters():
            assert parameter.grad is None
            parameter.grad = torch.zeros_like(parameter)
    assert_same(ours, duplicated)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_vectors_of_length_one(shape):
    batch = random_batch(*SHAPES[shape])
    user_RD, item_BD = Foundation(config())(batch)
    for x, count in ((user_RD, batch.num_requests), (item_BD, batch.num_rows)):
        torch.testing.assert_close(x.norm(dim=1), torch.ones(count))


@pytest.mark.parametrize(("model", "make_config"), [(DCAT, dcat_config), (TwoTower, two_tower_config)])
def test_another_model_begins_with_its_tables_and_transformer(model, make_config, tmp_path):
    foundation, path = Foundation(config()), tmp_path / "checkpoint.pt"
    state = {"config": {"model": config_to_dict(config())}, "model": foundation.state_dict(), "step": 3}
    torch.save(state, path)
    tuned = model(make_config())
    before = {name: x.clone() for name, x in tuned.state_dict().items()}
    fill_from_foundation(tuned, path)
    for name, x in tuned.state_dict().items():
        wanted = foundation.state_dict()[name] if name.startswith(TAKEN) else before[name]
        assert torch.equal(x, wanted), name
    assert sum(name.startswith(TAKEN) for name in before) > 20
    with pytest.raises(ValueError, match="a foundation of the same num_layers required, 3, found 2"):
        fill_from_foundation(model(make_config(num_layers=3)), path)
    torch.save({**state, "config": {"model": config_to_dict(dcat_config())}}, path)
    with pytest.raises(ValueError, match="the checkpoint of a foundation model required, found dcat"):
        fill_from_foundation(tuned, path)


def test_some_candidates_have_a_random_id_in_training_alone():
    torch.manual_seed(0)
    dcat, item_id_B = DCAT(dcat_config(random_candidates=0.3)), torch.arange(1000)
    is_drawn_B = dcat.candidate_ids(item_id_B) != item_id_B
    assert 200 < int(is_drawn_B.sum()) < 400
    assert torch.equal(dcat.eval().candidate_ids(item_id_B), item_id_B)
    batch = random_batch([5, 0, 17], [3, 4, 2])
    found = []
    for model in (dcat.train(), naive.DCAT(dcat.config)):  # drawn alike, the twin draws the same
        model.load_state_dict(dcat.state_dict())
        torch.manual_seed(1)
        found.append(model(batch))
    torch.testing.assert_close(*found, rtol=TOLERANCE, atol=TOLERANCE)
    with pytest.raises(ValueError, match=r"random_candidates in \[0, 1\) required, found 1.0"):
        dcat_config(random_candidates=1.0)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"window": 0}, "found 0, 8 and 2048"),
        ({"history_attention": "bidirectional"}, "causal attention required, found bidirectional"),
        ({"positive_category": "action"}, r"found 'action' and \(\)"),
        ({"positive_category": "kind", "positive_values": (1,)}, "categories action, and its positive_values"),
    ],
)
def test_what_fits_not_together_is_refused(changes, found):
    with pytest.raises(ValueError, match=found):
        config(**changes)
