"""The self-test holds here, and finds a ranker whose bits depend on what it kept or on its step."""

from __future__ import annotations

import pytest
import torch

from reqdedup.serving.ranking.self_test import self_test
from tests.serving.rankers import small_model, small_ranker


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"width": 64, "max_history": 700}, {"positions": "rope", "num_layers": 3}], ids=str
)
def test_the_deterministic_mode_holds_on_this_machine(changes):
    for kv_type in ("full", "int8"):
        ranker = small_ranker(small_model(**changes), kv_type=kv_type)
        found = self_test(ranker)
        assert found.holds, found
        assert len(ranker.cache) == 0
        assert found.seconds < 10  # a second on a quiet machine
        assert "holds here" in str(found)


def test_what_does_not_hold_is_said():
    found = self_test(small_ranker(small_model(max_history=700), deterministic=False))
    assert not found.holds
    assert f"does not hold with torch {torch.__version__} on this processor, extended contexts in a step" in str(found)


def test_a_wrong_context_is_found(monkeypatch):
    ranker = small_ranker()
    encode = ranker.folded.encode_together

    def reuse_too_much(histories, **options):
        return [kept or encode([(history, None, 0)], **options)[0] for history, kept, _ in histories]

    monkeypatch.setattr(ranker.folded, "encode_together", reuse_too_much)
    assert self_test(ranker).differing[0] == "extended contexts in a step"
