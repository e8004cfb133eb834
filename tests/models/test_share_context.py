"""Several requests of a user on one context pass: the same numbers as one pass each, decided from metadata alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import DCAT, Context, TwoTower, naive
from reqdedup.models.histories import Histories
from tests.models.batches import dcat_config, one_request, random_batch, two_tower_config
from tests.models.twins import TOLERANCE, assert_same, twins

TIMELINES = {  # (user, timeline version, first event, last event) of each request, and its rows
    "later requests see more": ([(7, 1, 0, 5), (7, 1, 0, 9), (7, 1, 0, 40), (9, 1, 0, 3)], [2, 3, 1, 4]),
    "any order, none new, nothing yet": ([(7, 1, 0, 9), (7, 1, 0, 0), (7, 1, 0, 9), (7, 1, 0, 4)], [2, 1, 3, 0]),
    "one user, two windows, two versions": (
        [(7, 1, 64, 90), (7, 1, 64, 99), (7, 1, 80, 99), (7, 2, 80, 99)],
        [1, 2, 3, 1],
    ),
    "another user at the same event": ([(7, 1, 0, 20), (8, 1, 0, 20), (8, 1, 0, 63), (9, 1, 5, 5)], [2, 2, 1, 1]),
    "nothing to share": ([(7, 1, 0, 20), (8, 1, 3, 9)], [2, 2]),
    "the user comes back": ([(7, 1, 0, 20), (8, 1, 0, 9), (7, 1, 0, 30), (7, 1, 0, 31)], [2, 1, 2, 2]),
}
NUM_GROUPS = [2, 1, 3, 3, 2, 3]


def timeline_batch(timelines: list[tuple[int, int, int, int]], rows: list[int]) -> RequestBatch:
    """Windows of timelines that only grow: event i of (user, version) is the same in every request."""
    batch = random_batch([end - start for _, _, start, end in timelines], rows)
    event_T = torch.tensor([event for _, _, start, end in timelines for event in range(start, end)], dtype=torch.int64)
    timeline_R = torch.tensor([user * 10 + version for user, version, _, _ in timelines], dtype=torch.int64)
    timeline_T = torch.repeat_interleave(timeline_R, batch.history_offsets_R1.diff())
    return replace(
        batch,
        user_id_R=torch.tensor([user for user, *_ in timelines], dtype=torch.int64),
        history={"item_id": timeline_T * 1009 + event_T * 7, "action": ((timeline_T + event_T * event_T) % 5).int()},
        request={
            **batch.request,
            "history_end": torch.tensor([end for *_, end in timelines], dtype=torch.int64),
            "timeline_version": torch.tensor([version for _, version, _, _ in timelines], dtype=torch.int32),
        },
    ).validate()


def float64(make):
    torch.set_default_dtype(torch.float64)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(params=TIMELINES)
def batch(request):
    return float64(lambda: timeline_batch(*TIMELINES[request.param]))


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("backend", ["naive", "sdpa", "flash"])
def test_dcat_on_shared_contexts_equals_the_pass_per_row(batch, positions, backend):
    config = dcat_config(positions=positions, share_context="user")
    ours, duplicated = float64(lambda: twins(DCAT(config, backend=backend), naive.DCAT(config)))
    logits, expected = ours(batch), duplicated(batch)
    torch.testing.assert_close(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
    weight = torch.randn_like(logits)
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same(ours, duplicated)


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_two_tower_on_shared_histories_equals_the_tower_per_row(batch, positions):
    pooling = {"learned": "mean", "rope": "both"}[positions]
    config = two_tower_config(positions=positions, share_context="user", pooling=pooling)
    ours, duplicated = float64(lambda: twins(TwoTower(config), naive.TwoTower(config)))
    user_BD, expected_BD = batch.expand(ours.user_tower(batch)), duplicated.user_tower(batch)
    torch.testing.assert_close(user_BD, expected_BD, rtol=TOLERANCE, atol=TOLERANCE)
    weight = torch.randn_like(user_BD)
    (user_BD * weight).sum().backward()
    (expected_BD * weight).sum().backward()
    for model in (ours, duplicated):  # no item tower in this test
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    assert_same(ours, duplicated)


@pytest.mark.parametrize(
    ("timelines", "num_groups"), list(zip(TIMELINES.values(), NUM_GROUPS, strict=True)), ids=TIMELINES
)
def test_groups_are_neighbours_of_one_user_version_and_first_event(timelines, num_groups):
    batch = timeline_batch(*timelines)
    groups = batch.context_groups()
    assert len(groups.longest_G) == num_groups
    bounds = groups.prefixes.request_offsets_G1.tolist()
    start_R = (batch.request["history_end"] - batch.history_offsets_R1.diff()).tolist()
    for (first, end), longest in zip(itertools.pairwise(bounds), groups.longest_G.tolist(), strict=True):
        members = {(batch.user_id_R[r].item(), timelines[0][r][1], start_R[r]) for r in range(first, end)}
        assert len(members) == 1
        lengths = batch.history_offsets_R1.diff()[first:end]
        assert lengths[longest - first] == lengths.max()
    _, offsets_G1 = groups.history(batch)
    longest = [max(end - start for *_, start, end in timelines[0][a:b]) for a, b in itertools.pairwise(bounds)]
    assert offsets_G1.diff().tolist() == longest


def test_the_transformer_passes_over_each_shared_event_once():
    batch = timeline_batch(*TIMELINES["later requests see more"])
    context = DCAT(dcat_config(share_context="user")).encode_context(batch)
    assert [len(key) for key, _ in context.keys_values] == [43, 43]
    assert context.num_requests == 4
    assert context.request_lengths.tolist() == [5, 9, 40, 3]
    assert Histories.of(batch, dcat_config()).offsets_G1 is batch.history_offsets_R1


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_contexts_of_requests_can_be_taken_apart_and_joined(positions):
    batch = timeline_batch(*TIMELINES["later requests see more"])
    dcat = DCAT(dcat_config(positions=positions, share_context="user")).eval()
    shared = dcat.encode_context(batch)
    together = dcat.score(shared, batch)
    alone = [dcat.score(shared.request(r), one_request(batch, r)) for r in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-5)

    own = DCAT(dcat_config(positions=positions)).eval()
    own.load_state_dict(dcat.state_dict())
    joined = Context.concatenate([shared, own.encode_context(batch)])
    assert joined.request_lengths.tolist() == 2 * [5, 9, 40, 3]
    for r in range(4):
        for ours, theirs in zip(joined.request(r).keys_values, joined.request(4 + r).keys_values, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_requests_without_a_known_start_or_version_share_nothing():
    batch = timeline_batch([(7, 1, 0, 9)] * 4, [1] * 4)
    for name in ("history_end", "timeline_version"):
        unknown = torch.full_like(batch.request[name], -1)
        groups = replace(batch, request={**batch.request, name: unknown}).context_groups()
        assert not groups.is_shared


def test_an_empty_batch_has_no_groups():
    batch = timeline_batch([], [])
    assert not batch.context_groups().is_shared
    assert DCAT(dcat_config(share_context="user"))(batch).shape == (0, 2)


def test_a_rewritten_timeline_under_an_old_version_is_found():
    batch = timeline_batch(*TIMELINES["later requests see more"])
    batch.history["action"][3] += 1
    with pytest.raises(ValueError, match=r"history\['action'\] of request 0: a prefix of request 2's required"):
        batch.validate()


def test_a_batch_that_does_not_say_where_histories_begin_is_refused():
    batch = random_batch([3, 4], [1, 2])
    with pytest.raises(ValueError, match=r"request\['history_end', 'timeline_version'\] required"):
        DCAT(dcat_config(share_context="user")).eval()(batch)


@pytest.mark.parametrize("make_config", [dcat_config, two_tower_config])
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"history_attention": "bidirectional"}, "found bidirectional attention and positions from the start"),
        ({"positions_from": "end"}, "found causal attention and positions from the end"),
    ],
)
def test_what_breaks_the_prefix_is_refused(make_config, changes, found):
    with pytest.raises(ValueError, match=found):
        make_config(share_context="user", **changes)


def test_last_s_truncation_shares_nothing():
    """Plain truncation to the last S events moves the start with every event, so no two requests form a group."""
    batch = timeline_batch([(7, 1, 36, 100), (7, 1, 40, 104), (7, 1, 64, 128)], [1, 1, 1])
    assert not batch.context_groups().is_shared


def test_the_model_names_the_columns_that_sharing_needs():
    assert {"history_end", "timeline_version"} <= set(dcat_config(share_context="user").columns)
    assert "history_end" not in dcat_config().columns
