"""The benchmarks' own parts: the generator is seeded, and slates by a QR at every pick are the library's definition."""

from __future__ import annotations

import numpy as np

from benchmarks import rerank, serving_retrieval
from reqdedup.rerank import naive


def test_clustered_vectors_are_seeded_unit_vectors():
    vectors = serving_retrieval.clustered_vectors(500, 16, num_clusters=20)
    assert np.array_equal(vectors, serving_retrieval.clustered_vectors(500, 16, num_clusters=20))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    alone = serving_retrieval.clustered_vectors(500, 16, num_clusters=20, noise=0.0)
    assert len(np.unique(alone.round(4), axis=0)) <= 20


def test_a_qr_at_every_pick_is_the_definition():
    one = rerank.candidates(3)
    scores, vectors = one["scores"][:40], one["vectors"][:40]
    config = rerank.SlateConfig(length=12, window=4, terms=(rerank.Volume(weight=0.5),))
    found = rerank.by_qr(scores, vectors, length=12, window=4, weight=0.5)
    assert found == naive.slate(config, scores, item_id=np.arange(40), vectors=vectors)
    assert rerank.equal_slates(3)["value"] == 3
