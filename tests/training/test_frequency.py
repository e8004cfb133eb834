from __future__ import annotations

import math

import duckdb
import numpy as np
import pytest
import torch

from reqdedup.training.frequency import ItemFrequency, StreamingFrequency


def test_exact_counts_equal_sql():
    rng = np.random.default_rng(0)
    chunks = [rng.integers(-50, 50, size) * 10**15 for size in (1000, 1, 0, 777)]
    frequency = ItemFrequency.from_rows(chunks, smoothing=0.5)
    items = np.concatenate(chunks)
    counted = dict(
        duckdb.sql("select item, count(*) from (select unnest($1) item) group by 1", params=[items]).fetchall()
    )
    total = len(items) + 0.5 * (len(counted) + 1)
    asked = torch.tensor([*counted, 7])
    wanted = torch.tensor([math.log((n + 0.5) / total) for n in [*counted.values(), 0]])
    torch.testing.assert_close(frequency.log_q(asked), wanted)
    assert math.isclose(
        float(frequency.log_p_V.double().exp().sum()) + math.exp(frequency.unseen_log_p), 1, rel_tol=1e-5
    )


def test_without_any_row_every_item_is_unseen_and_finite():
    frequency = ItemFrequency.from_rows([])
    assert torch.equal(frequency.log_q(torch.tensor([1, 2])), torch.zeros(2))


def _zipf_rows(num_items, num_rows, seed, largest_cluster=1):
    """Rows drawn from a Zipf law, in runs of one item of 1 to `largest_cluster` rows, and the law."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, num_items + 1) ** 1.1
    p /= p.sum()
    runs = rng.choice(num_items, num_rows, p=p)
    return np.repeat(runs, rng.integers(1, largest_cluster + 1, num_rows))[:num_rows], p


@pytest.mark.slow
@pytest.mark.parametrize("largest_cluster", [1, 15])
def test_streaming_estimate_of_hot_items_is_unbiased_where_they_repeat_within_a_batch(largest_cluster):
    rows = 512
    items, p = _zipf_rows(2000, 1000 * rows, seed=1, largest_cluster=largest_cluster)
    streaming = StreamingFrequency(1 << 14, decay=0.005)
    for batch in torch.from_numpy(items).split(rows):
        streaming.update(batch)
    error = streaming.log_q(torch.arange(10)).double() - torch.from_numpy(p[:10]).log()
    assert error.abs().max() < 0.2, error  # one item is also noisy
    assert abs(float(error.mean())) < 0.1


def test_streaming_estimate_survives_a_checkpoint():
    rows = torch.from_numpy(_zipf_rows(100, 4096, seed=3)[0]).split(256)
    whole, first = StreamingFrequency(512), StreamingFrequency(512)
    for batch in rows[:8]:
        whole.update(batch)
        first.update(batch)
    second = StreamingFrequency(512)
    second.load_state_dict(first.state_dict())
    for batch in rows[8:]:
        whole.update(batch)
        second.update(batch)
    assert torch.equal(whole.log_q(torch.arange(200)), second.log_q(torch.arange(200)))
    assert torch.isfinite(whole.log_q(torch.tensor([-(2**63), 2**63 - 1, 12345]))).all()
