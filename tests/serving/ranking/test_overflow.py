"""Features that are so large that no logit is a number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from reqdedup.serving.requests import RequestError
from tests.serving.rankers import rank_request, small_model, small_ranker, stacked


def test_features_that_overflow_are_refused_and_others_of_the_step_are_answered():
    rng = np.random.default_rng(5)
    model = small_model()
    with torch.no_grad():
        for values in model.head.parameters():
            values.mul_(8)
    ranker, requests = small_ranker(model), [rank_request(rng, 9, 3, user_id=user) for user in range(3)]
    large = replace(requests[1], request={**requests[1].request, "user_embedding": [3.4e38] * 3})
    first, refused, last = ranker.step([requests[0], large, requests[2]])
    assert isinstance(refused, RequestError)
    assert str(refused) == "request: numbers that the model can add up required, found larger ones"
    for answer, request in ((first, requests[0]), (last, requests[2])):
        assert stacked(answer).tobytes() == stacked(ranker.rank(request)).tobytes()
