"""A log that nothing can be learned from is refused, or warned of, before the first step, whatever the number of ranks."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.schema import Column, EngagementSchema, Level
from reqdedup.training import TrainingConfig, train
from reqdedup.training import survey as survey_module
from reqdedup.training.launch import RankError
from reqdedup.training.loader import RequestLoader
from reqdedup.training.metrics_file import METRICS_NAME
from reqdedup.training.rank_run import run_rank
from reqdedup.training.split import UserSplit
from reqdedup.training.survey import Survey
from tests.training.logs import SCHEMA, RandomLog, random_log, with_signal

SIZES = {"width": 8, "num_layers": 1, "item_table_rows": 64, "category_table_rows": 8, "hidden_widths": (4,)}
WITH_SCORE = EngagementSchema(
    (*SCHEMA.columns, Column(name="score", dtype="float64", level=Level.REQUEST, nullable=True))
)


def log_with(schema=SCHEMA, **columns) -> RandomLog:
    """A log whose columns are replaced by these functions of (row number, request id, old values)."""
    log, groups, start = with_signal(random_log()), [], 0
    for group in log.groups:
        number, request_id = np.arange(start, start + group.num_rows), group.column("request_id").to_numpy()
        start += group.num_rows
        arrays = {name: group.column(name) for name in group.schema.names}
        for name, make in columns.items():
            kind = group.schema.field(name).type if name in arrays else pa.float64()
            arrays[name] = pa.array([make(*values) for values in zip(number.tolist(), request_id.tolist())], kind)
        fields = [pa.field(name, array.type, nullable=schema[name].nullable) for name, array in arrays.items()]
        groups.append(pa.RecordBatch.from_arrays(list(arrays.values()), schema=pa.schema(fields)))
    return RandomLog(groups, {}, schema)


def config(log, task="ranking", **options):
    sizes = {**SIZES, "output_width": 4} if task == "retrieval" else {**SIZES, "labels": ("click",)}
    model = (TwoTowerConfig if task == "retrieval" else DCATConfig).from_schema(log.schema, **sizes)
    defaults = {
        "num_steps": 3,
        "requests_per_step": 12,
        "learning_rate": 0.01,
        "world_size": 1,
        "eval_requests": 0,
        "max_epochs": 0,
    }
    return TrainingConfig(model=model, **{**defaults, **options})


def run(log, tmp_path, task="ranking", **options):
    return run_rank(lambda progress: None, config(log, task, **options), log, str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "task", "message"),
    [
        ({"click": lambda n, r: n % 5}, "ranking", r"labels from 0 to 1 .* required in click, found 2 in request 100\d of user 0 and \d+ more"),
        ({"click": lambda n, r: -1 if n == 7 else 0}, "ranking", r"required in click, found -1 in request 100\d of user \d+; map it"),
        ({"click": lambda n, r: None}, "ranking", r"a value of one of the labels click required, found none in the \d+ rows"),
        ({"score": lambda n, r: float("inf") if r == 1203 else 1.0}, "ranking", r"finite numbers .* required in score, found inf in request 1203"),
        ({"score": lambda n, r: -float("inf") if r == 1203 else 1.0}, "retrieval", r"required in score, found -inf in request 1203"),
        ({"user_id": lambda n, r: 5}, "retrieval", "of at least two training users required, found user 5 alone"),
        ({"item_id": lambda n, r: 3}, "retrieval", "rows with positive 'click' of at least two items required, found 1"),
        ({"click": lambda n, r: 0}, "retrieval", "of at least two items required, found 0"),
    ],
    ids=["above 1", "below 0", "all missing", "inf", "-inf, retrieval", "one user", "one item", "no positive"],
)  # fmt: skip
def test_it_is_refused_before_the_first_step(columns, task, message, tmp_path):
    log = log_with(WITH_SCORE, **{"score": lambda n, r: 0.5, **columns})
    with pytest.raises(ValueError, match=message):
        run(log, tmp_path, task, held_out=0.0)
    assert not (tmp_path / METRICS_NAME).exists()


@pytest.mark.parametrize("value", [np.nan, -np.inf, 3e38])
def test_a_vector_that_no_statistic_survives_is_refused(value, tmp_path):
    log, groups = with_signal(random_log()), []
    for group in log.groups:
        blobs, at = group.column("user_embedding"), group.schema.get_field_index("user_embedding")
        vectors = np.stack([np.frombuffer(blob.as_py(), np.float32) for blob in blobs.dictionary])
        vectors[2, 1] = value
        changed = pa.array([vector.tobytes() for vector in vectors], pa.binary())
        column = pa.DictionaryArray.from_arrays(blobs.indices, changed)
        groups.append(group.set_column(at, group.schema.field(at), column))
    with pytest.raises(
        ValueError, match=rf"up to 1e\+18 required in user_embedding, found {value:g}".replace("+38", r"\+38")
    ):
        run(RandomLog(groups, {}, log.schema), tmp_path)


def test_one_request_a_step_has_no_negatives(tmp_path):
    with pytest.raises(ValueError, match="two requests that are contrasted in a step required, found 1"):
        run(with_signal(random_log()), tmp_path, "retrieval", requests_per_step=1)


@pytest.mark.soak
def test_two_ranks_refuse_in_the_words_of_one(tmp_path):
    log = log_with(WITH_SCORE, score=lambda n, r: float("inf") if r % 100 > 8 else 1.0)
    messages = []
    with pytest.raises(ValueError, match="required in score") as one:
        run(log, tmp_path)
    messages.append(str(one.value))
    with pytest.raises(RankError) as two:
        train(config(log, world_size=2), log.write(tmp_path / "log.parquet"), out_dir=tmp_path / "two")
    assert messages[0] in str(two.value)


def test_surveys_of_shares_add_up_to_that_of_the_whole(monkeypatch):
    log = log_with(
        WITH_SCORE, score=lambda n, r: float("inf") if r % 7 == 0 else None, click=lambda n, r: n % 3 or None
    )

    def survey(rank, world_size):
        users = UserSplit(held_out=0.2, part="train")
        found = Survey(("score",), ("user_embedding",), users, labels=("click",), positive_label="click")
        loader = RequestLoader(log, requests_per_batch=5, columns=found.columns, rank=rank, world_size=world_size)
        assert sum(batch.num_rows for batch in found.passing(loader)) > 10
        return found

    whole, shares = survey(0, 1), [survey(rank, 3) for rank in range(3)]
    monkeypatch.setattr(survey_module, "from_all_ranks", lambda one: shares)
    assert shares[0].over_ranks() == whole
    assert whole.num_faults["click"] > 5


@pytest.mark.slow
def test_what_teaches_nothing_of_one_label_is_warned_of(tmp_path):
    log = log_with(click=lambda n, r: 1)
    with pytest.warns(UserWarning, match=r"label click is 1 in all \d+ rows that have it: nothing to tell apart"):
        run(log, tmp_path)


def test_labels_that_are_all_younger_than_their_window_are_refused(tmp_path):
    log = with_signal(random_log())
    with pytest.raises(ValueError, match=r"as old as its label_maturity_s \(click 2e\+09 s\) required, found none in"):
        run(log, tmp_path, label_maturity_s={"click": 2e9})
    assert not (tmp_path / METRICS_NAME).exists()


@pytest.mark.slow
def test_soft_labels_missing_ones_and_large_numbers_are_learned_from(tmp_path):
    log = log_with(
        WITH_SCORE,
        score=lambda n, r: {0: 1e300, 1: -1e300, 2: None, 3: float("nan")}.get(r % 5, 2.0),
        click=lambda n, r: n % 2 if n % 3 else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = run(log, tmp_path, held_out=0.2, eval_requests=100)
    assert np.isfinite(result.losses).all()
    assert np.isfinite(result.metrics["log_loss_click"])


@pytest.mark.slow
def test_steps_without_a_term_are_counted_and_an_epoch_of_them_ends_the_run(tmp_path):
    log = with_signal(
        random_log(num_groups=2)
    )  # rows in the order of users, a batch of two requests is often one user's
    with pytest.warns(UserWarning, match=r"\d+ of 6 steps had no loss term"):
        run(log, tmp_path, "retrieval", requests_per_step=2, num_steps=6, shuffle="none", held_out=0.0)
    alone = log_with(user_id=lambda n, r: r // 200, click=lambda n, r: int(r % 100 == 1))
    with pytest.raises(ValueError, match=re.escape("a loss term in at least one of the")):
        run(alone, tmp_path, "retrieval", requests_per_step=2, num_steps=50, shuffle="none", held_out=0.0)
