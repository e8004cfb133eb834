"""A two-tower with real-time context, trained: one user vector a row where the context is the positive's, and beside the
model's figures those without context and with another request's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reqdedup.models import TwoTowerConfig
from reqdedup.models.checkpoint import load_model
from reqdedup.training import TrainingConfig
from reqdedup.training.judgement.judge import judge
from reqdedup.training.loss import info_nce_naive
from reqdedup.training.rank_run import RankRun, run_rank
from reqdedup.training.written import config_for
from tests.training.logs import random_log, with_signal

pytestmark = pytest.mark.slow
SIZES = {"width": 8, "num_layers": 1, "item_table_rows": 64, "category_table_rows": 16, "hidden_widths": (8,)}


def config(schema, **changes) -> TrainingConfig:
    model = TwoTowerConfig.from_schema(
        schema, output_width=8, context_categories=(("device", "", "is_new"),), context_from="positive", **SIZES
    )
    return TrainingConfig(
        model=model, num_steps=8, max_epochs=0, requests_per_step=16, learning_rate=0.02, world_size=1, held_out=0.3,
        **changes,
    )  # fmt: skip


def test_the_loss_of_row_heads_is_the_double_loop_over_rows(tmp_path):
    log = with_signal(random_log())
    run = RankRun(lambda _: None, config(log.schema), log, tmp_path, None)
    batch = next(iter(run.loader))
    user_BD, item_BD = run.model.train()(batch)
    assert len(user_BD) == batch.num_rows
    loss_sum, num_terms = run.task.loss((user_BD, item_BD), batch)
    expected = info_nce_naive(
        user_BD,
        item_BD,
        request_of_row_B=torch.arange(batch.num_rows),
        user_id_R=batch.user_id_R[batch.request_of_row_B],
        item_id_B=batch.item_id_B,
        log_q_B=run.task._log_q(batch.item_id_B),
        temperature=run.config.temperature,
    )
    torch.testing.assert_close(loss_sum / num_terms, expected, rtol=1e-4, atol=1e-5)


def test_a_run_says_what_no_context_and_another_one_are_worth(tmp_path):
    log = with_signal(random_log())
    result = run_rank(lambda _: None, config(log.schema), log, str(tmp_path))
    assert set(result.rivals) == {"no context", "shuffled context"}
    rows = judge(result.outcomes, result.rivals, replicates=5)["figures"]
    (row,) = [row for row in rows if (row["metric"], row["slice"]) == ("mean_log_rank", "all")]
    assert set(row["baselines"]) == {"no context", "shuffled context"}
    assert all(len(rival) == len(result.outcomes) for rival in result.rivals.values())
    assert load_model(tmp_path / "checkpoint.pt").config.has_row_heads


def test_a_context_of_the_candidates_is_refused_by_name():
    with pytest.raises(ValueError, match="context columns of the request required, found is_new; it has device"):
        TwoTowerConfig.from_schema(random_log().schema, context_categories=(("is_new", "", "is_new"),))


def test_a_softmax_over_the_catalogue_beside_row_heads_is_refused(tmp_path):
    log = with_signal(random_log())
    with pytest.raises(ValueError, match="negatives='batch' required with context_from='positive'"):
        RankRun(lambda _: None, config(log.schema, negatives="catalogue"), log, tmp_path, None)


def test_a_file_names_a_context_as_lists():
    schema = random_log().schema
    model = {
        "context_categories": [["device", "", "is_new"]],
        "context_vectors": [["user_embedding", 3]],
        "tower": "stacked",
    }
    found = config_for("retrieval", schema, {"model": model}, said_in="a.toml").model
    assert found.context_columns == ("device", "user_embedding")
    assert found.request_categories == found.request_vectors == ()
    with pytest.raises(
        ValueError, match=r"model\.context_vectors: a list of which each is a list of a text, a whole number"
    ):
        config_for("retrieval", schema, {"model": {"context_vectors": [["user_embedding"]]}}, said_in="a.toml")


def test_a_model_without_context_has_no_such_rivals(tmp_path):
    log = with_signal(random_log())
    plain = config(log.schema)
    plain = replace(plain, model=TwoTowerConfig.from_schema(log.schema, output_width=8, **SIZES))
    assert RankRun(lambda _: None, plain, log, tmp_path, None).task.rivals() == {}
