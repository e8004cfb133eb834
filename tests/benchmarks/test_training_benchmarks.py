"""What the training benchmarks stand on: gates that close, a baseline that trains on the same rows, honest predictions."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import operations, record, training
from benchmarks.training_end_to_end import check_same_training, config_of, loader_of, log_of, row_wise_batches
from benchmarks.workloads import (
    batch_of,
    check_equal,
    dcat_config,
    twins,
    two_tower_config,
    user_batch,
    write_tables,
)
from reqdedup.models import naive
from reqdedup.storage import Layout


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("make_config", [dcat_config, two_tower_config])
def test_the_gate_opens_for_twins_and_closes_for_another_model(make_config):
    batch = batch_of([5, 9, 0], [3, 1, 4])
    ours, duplicated = twins(make_config(width=8, max_history=16))
    check_equal(ours, duplicated, batch, batch)
    with torch.no_grad():
        duplicated.model.final_norm.weight[0] += 0.1
    with pytest.raises(ValueError, match="nothing is measured"):
        check_equal(ours, duplicated, batch, batch)


@pytest.mark.slow
def test_the_row_wise_baseline_reads_the_rows_of_the_loader(tmp_path):
    log = log_of(fan_out=6, num_requests=24, history=32)
    tables, schema = write_tables(tmp_path, log, (Layout.BY_REQUEST, Layout.SORTED))
    for task in ("ranking", "retrieval"):
        config = config_of(task, schema)
        ours, theirs = tables[Layout.BY_REQUEST], tables[Layout.SORTED]
        check_same_training(config, ours, theirs, 100)
        batch = naive.duplicate(next(iter(loader_of(config, ours, 40, shuffle="none"))))
        rows = next(row_wise_batches(theirs, config, batch.num_rows)).validate()
        assert torch.equal(rows.history_offsets_R1, batch.history_offsets_R1)
        for group in ("request", "row", "history"):
            for name in getattr(rows, group):
                assert torch.equal(getattr(rows, group)[name], getattr(batch, group)[name]), name


def test_requests_of_a_user_share_most_events_of_their_windows():
    batch = user_batch(num_users=3, requests_per_user=5, rows=2, max_history=64, new_events=2)
    groups = batch.context_groups()
    assert 3 <= len(groups.longest_G) <= 6
    lengths = batch.history_offsets_R1.diff()
    assert lengths.min() >= 48
    assert lengths.max() <= 64


def test_predicted_operations_are_those_that_torch_counts():
    """torch counts causal attention in full, so the half that a causal kernel leaves out is added to ours."""
    config = dcat_config(width=32, max_history=64, request_categories=(), request_vectors=())
    batch = batch_of([40, 40], [3, 3])
    ours, duplicated = twins(config)
    ours.model.backend = "sdpa"
    predicted = operations.dcat_step(config, [40, 40], [3, 3])
    hidden = {
        "ours": 2 * (40 * 39) * 2 * 32 + 2 * 2 * 3 * 2 * 4 * 32,  # sdpa shows the other two candidates, masked
        "duplicated": 6 * (41 * 40) * 2 * 32,
    }
    for model, count, left_out in (
        (ours.model, predicted[0], hidden["ours"]),
        (duplicated.model, predicted[1], hidden["duplicated"]),
    ):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(batch)
        assert counter.get_total_flops() == count + left_out


def test_some_claims_can_be_measured_alone_and_the_others_keep_their_rows(monkeypatch, tmp_path, capsys):
    def row_of(claim):
        return lambda: iter([{"claim": claim, "value": 2.0, "unit": "x", "target": 1.0}])

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    (tmp_path / "training.jsonl").write_text('{"claim": "small", "value": 1.0}\n{"claim": "other", "value": 1.0}\n')
    monkeypatch.setattr(training, "CLAIMS", {"small": row_of("small"), "other": row_of("other")})
    assert training.main(["--only", "small"]) == 0
    assert capsys.readouterr().out.count("small") == 1
    rows = map(json.loads, (tmp_path / "training.jsonl").read_text().splitlines())
    assert {row["claim"]: row["value"] for row in rows} == {"small": 2.0, "other": 1.0}
