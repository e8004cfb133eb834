"""A run's baselines on the rows that the run was judged on, from the same split and the same histories.

    retrieval   popularity, last item, item-kNN, EASE, and iALS if the package `implicit` is installed
    ranking     item mean, item + user mean

They are fitted on the training part and know of a held-out request what its model knows: the history as it was cut, and
for the user's mean the rows of the user's earlier requests. A model that is not better has learned nothing that was
worth its training. One process reads them: scalar columns, and for retrieval histories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from reqdedup.batch import RequestBatch
from reqdedup.models.baselines import ItemMean, ItemUserMean
from reqdedup.schema import REQUEST_ID, REQUEST_TS
from reqdedup.training.config import TrainingConfig
from reqdedup.training.judgement.judge import judge
from reqdedup.training.judgement.outcomes import Outcomes, Ranked, Scored, mature_labels
from reqdedup.training.judgement.retrieval_baselines import retrieval_baselines
from reqdedup.training.loader import RequestLoader
from reqdedup.training.plan import Source
from reqdedup.training.split import Split, Splits, TheseUsers

BATCH_REQUESTS = 1024
SMALLEST_PROBABILITY = 0.01


def baselines_of(config: TrainingConfig, source: Source, model: Outcomes) -> dict[str, Outcomes]:
    """What each baseline says of the model's held-out rows, by name. source: the table that the run was trained on."""
    if not len(model):
        return {}
    splits = splits_of(config, source)
    if isinstance(model, Scored):
        return ranking_baselines(config, source, model, splits.train)
    assert isinstance(model, Ranked)
    return retrieval_baselines(config, source, model, splits.train)


def judge_run(
    config: TrainingConfig, source: Source, model: Outcomes | None, rivals: Mapping[str, Outcomes] | None = None
) -> dict[str, Any] | None:
    """The judgement of a run's held-out rows, with its baselines unless config.baselines is off; None without rows.

    rivals: more of them, of the same rows.
    """
    if model is None:
        return None
    baselines = baselines_of(config, source, model) if config.baselines else {}
    return judge(model, {**baselines, **(rivals or {})}, seed=config.seed)


def splits_of(config: TrainingConfig, source: Source) -> Splits:
    """The parts of a table as a run with this configuration has them."""
    loader = RequestLoader(source, requests_per_batch=BATCH_REQUESTS, shuffle="none", columns=(), prefetch_batches=0)
    return config.splits(loader)


def ranking_baselines(config: TrainingConfig, source: Source, model: Scored, train: Split) -> dict[str, Outcomes]:
    """Item mean, and item + user mean; they know the labels that the model may know."""
    labels = model.labels

    def loader(users: Split | None) -> RequestLoader:
        return RequestLoader(
            source,
            requests_per_batch=BATCH_REQUESTS,
            shuffle="none",
            columns=labels,
            users=users,
            prefetch_batches=0,
        )

    newest_us = 0
    if config.label_maturity_s:
        newest_us = max(int(batch.request[REQUEST_TS].max()) for batch in loader(None))

    def labels_of(batch: RequestBatch) -> np.ndarray:
        mature_BL = mature_labels(batch, labels, maturity_s=config.label_maturity_s, newest_us=newest_us)
        return mature_BL.double().numpy()

    item_id_V, sum_VL, count_VL = _label_sums(loader(train), labels_of, len(labels))
    own = list(loader(TheseUsers(np.unique(model.user_id_B))))
    user_N, time_N, item_N, request_N = (np.concatenate(values) for values in zip(*(_keys(batch) for batch in own)))
    label_NL = np.concatenate([labels_of(batch) for batch in own])
    place_B = _find((user_N, request_N, item_N), (model.user_id_B, model.request_id_B, model.item_id_B))
    found: dict[str, list[np.ndarray]] = {"item mean": [], "item + user mean": []}
    for column in range(len(labels)):
        item_mean = ItemMean(item_id_V, sum_VL[:, column], count_VL[:, column])
        of_user = ItemUserMean(item_mean).predict(user_N, time_N, item_N, label_NL[:, column])
        found["item mean"].append(item_mean.predict(model.item_id_B))
        found["item + user mean"].append(of_user[place_B])
    return {name: replace(model, logit_BL=_logits(np.stack(columns, axis=1))) for name, columns in found.items()}


def _label_sums(
    loader: RequestLoader, labels_of: Callable[[RequestBatch], np.ndarray], num_labels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items [V], and of each label sum and number of those that are known, [V, labels]."""
    item_id_V = np.zeros(0, np.int64)
    sum_VL, count_VL = (np.zeros((0, num_labels)) for _ in range(2))
    for batch in loader:
        label_BL = labels_of(batch)
        known_BL = ~np.isnan(label_BL)
        item_id_V, number = np.unique(np.concatenate([item_id_V, batch.item_id_B.numpy()]), return_inverse=True)
        sum_VL, count_VL = (
            _added(np.concatenate([old_VL, new_BL]), number, len(item_id_V))
            for old_VL, new_BL in ((sum_VL, np.nan_to_num(label_BL)), (count_VL, known_BL))
        )
    return item_id_V, sum_VL, count_VL


def _added(values_NL: np.ndarray, number_N: np.ndarray, size: int) -> np.ndarray:
    columns = [np.bincount(number_N, weights=x_N, minlength=size) for x_N in values_NL.T]
    return np.stack(columns, axis=1)


def _keys(batch: RequestBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """user, time, item and request of each row."""
    of_request = (batch.user_id_R, batch.request[REQUEST_TS], batch.request[REQUEST_ID])
    user, time, request = (x_R[batch.request_of_row_B].numpy() for x_R in of_request)
    return user, time, batch.item_id_B.numpy(), request


def _find(keys_N: tuple[np.ndarray, ...], wanted_B: tuple[np.ndarray, ...]) -> np.ndarray:
    """[B]: where each wanted key is among the keys, of equal ones any. Each must be there."""
    columns = np.stack([np.concatenate(pair) for pair in zip(keys_N, wanted_B)])
    number = np.unique(columns, axis=1, return_inverse=True)[1].ravel()
    num_keys = len(keys_N[0])
    place = np.empty(number.max(initial=-1) + 1, np.int64)
    place[number[:num_keys]] = np.arange(num_keys)
    return place[number[num_keys:]]


def _logits(mean: np.ndarray) -> np.ndarray:
    """Log-odds; below SMALLEST_PROBABILITY, and above 1 less it, on along the tangent, so that the order stays."""
    inside = mean.clip(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    slope = 1 / (SMALLEST_PROBABILITY * (1 - SMALLEST_PROBABILITY))
    return np.log(inside) - np.log1p(-inside) + slope * (mean - inside)
