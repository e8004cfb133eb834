"""What needs no model: items by popularity, rows by the mean label of their item; measured on a run's held-out users.

A model that is not better has learned nothing that was worth its training. Counts and means are those of the users that
the run trained on; ranks are among the items that it was ranked against.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig
from reqdedup.models.checkpoint import CHECKPOINT_NAME, load_checkpoint
from reqdedup.training import metrics
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.config import TrainingConfig
from reqdedup.training.loader import RequestLoader
from reqdedup.training.plan import Source, UserSplit
from reqdedup.training.tasks.retrieval import RECALL_AT

BATCH_REQUESTS = 256
PRIOR_ROWS = 10.0
"""Rows of the mean over all items that each item's mean is drawn to."""
_RULES = {"retrieval": "popularity", "ranking": "the item's mean"}


def simple_baseline(run_dir: Path | str, source: Source) -> dict[str, float]:
    """Held-out figures of the simple rule for the run's task, by the names that the run's own have.

    source: the table that it was trained on. Empty if the run held nobody out.
    """
    config = TrainingConfig.from_dict(load_checkpoint(Path(run_dir) / CHECKPOINT_NAME)["config"])
    if not config.held_out or not config.eval_requests:
        return {}
    return _popularity(config, source) if config.task == "retrieval" else _item_mean(config, source)


def no_better(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a training report says against its models: figures that are no better than chance or the simple rule.

    rows: model, metric, value, chance, simple_rule. Mean log-rank (less is better) and AUC are judged; recall at few
    items is too noisy. A figure that is not known, as an AUC of one class, is not judged.
    """
    found = []
    for row in rows:
        metric, sign = row["metric"], -1 if row["metric"] == "mean_log_rank" else 1
        if metric != "mean_log_rank" and not metric.startswith("auc_"):
            continue
        for name in ("chance", "simple_rule"):
            rival, value = row[name], row["value"]
            if rival is not None and not math.isnan(rival) and not math.isnan(value) and sign * (value - rival) <= 0:
                other = "chance" if name == "chance" else _RULES.get(row["model"].partition("_")[0], "the simple rule")
                found.append(f"{row['model']}: {metric} {value:.4g}, {other} {rival:.4g}")
    return found


def _popularity(config: TrainingConfig, source: Source) -> dict[str, float]:
    label = config.positive_label
    columns = (label,) if label else ()
    loader = _loader(config, source, columns)
    catalogue = Catalogue.read(loader, (), counted=config.training_users, label=label)
    item_id_C, _ = catalogue.sample(config.catalogue_items, config.seed)

    def count(item_id_N: torch.Tensor) -> torch.Tensor:
        at = np.searchsorted(catalogue.item_id_V, item_id_N.numpy())
        return torch.from_numpy(catalogue.count_V[at].astype(np.float32))[:, None]

    ranks = [torch.zeros(0, dtype=torch.float64)]
    for batch in _held_out(config, source, columns, positive_label=label):
        ranks.append(
            metrics.ranks_in_catalogue(
                torch.ones(batch.num_requests, 1),
                count(batch.item_id_B),
                count(item_id_C),
                request_of_row_B=batch.request_of_row_B,
                item_id_B=batch.item_id_B,
                catalogue_item_id_C=item_id_C,
            )
        )
    rank_B = torch.cat(ranks)
    recall = {f"recall_at_{k}": value for k, value in metrics.recall_at_k(rank_B, RECALL_AT).items()}
    return {"mean_log_rank": metrics.mean_log_rank(rank_B), **recall}


def _item_mean(config: TrainingConfig, source: Source) -> dict[str, float]:
    labels = cast(DCATConfig, config.model).labels  # or any other with labels
    parts = [
        (batch.item_id_B.numpy(), _labels(batch, labels))
        for batch in _loader(config, source, labels, users=config.training_users)
    ]
    item_id_B = np.concatenate([np.zeros(0, np.int64), *(items for items, _ in parts)])
    label_BL = np.concatenate([np.zeros((0, len(labels))), *(values for _, values in parts)])
    item_id_V, item_of_row_B = np.unique(item_id_B, return_inverse=True)
    held = list(_held_out(config, source, labels))
    wanted_B = np.concatenate([np.zeros(0, np.int64), *(batch.item_id_B.numpy() for batch in held)])
    truth_BL = np.concatenate([np.zeros((0, len(labels))), *(_labels(batch, labels) for batch in held)])
    at_B = np.searchsorted(item_id_V, wanted_B).clip(max=max(len(item_id_V) - 1, 0))
    is_known_B = item_id_V[at_B] == wanted_B if len(item_id_V) else np.zeros(len(wanted_B), bool)
    figures: dict[str, float] = {}
    for column, label in enumerate(labels):
        value_B = label_BL[:, column]
        is_labelled_B = ~np.isnan(value_B)
        of_B, value_B = item_of_row_B[is_labelled_B], value_B[is_labelled_B]
        mean = float(value_B.mean()) if len(value_B) else math.nan
        sum_V = np.bincount(of_B, weights=value_B, minlength=len(item_id_V))
        mean_V = (sum_V + PRIOR_ROWS * mean) / (np.bincount(of_B, minlength=len(item_id_V)) + PRIOR_ROWS)
        predicted_B = torch.from_numpy(np.where(is_known_B, mean_V[at_B], mean)) if len(item_id_V) else torch.zeros(0)
        truth_B = torch.from_numpy(truth_BL[:, column])
        figures[f"auc_{label}"] = metrics.auc(predicted_B, truth_B)
        figures[f"log_loss_{label}"] = metrics.log_loss(torch.logit(predicted_B, eps=1e-6), truth_B)
    return figures


def _labels(batch: RequestBatch, labels: tuple[str, ...]) -> np.ndarray:
    return np.stack([batch.row[label].double().numpy() for label in labels], axis=1)


def _held_out(
    config: TrainingConfig, source: Source, columns: tuple[str, ...], *, positive_label: str | None = None
) -> Iterator[RequestBatch]:
    """At most as many held-out requests as the run was evaluated on."""
    users = UserSplit(held_out=config.held_out, part="eval", seed=config.seed)
    left = config.eval_requests
    for batch in _loader(config, source, columns, users=users, positive_label=positive_label):
        yield batch
        left -= batch.num_requests
        if left <= 0:
            return


def _loader(
    config: TrainingConfig,
    source: Source,
    columns: tuple[str, ...],
    *,
    users: UserSplit | None = None,
    positive_label: str | None = None,
) -> RequestLoader:
    return RequestLoader(
        source,
        requests_per_batch=BATCH_REQUESTS,
        shuffle="requests",
        seed=config.seed,
        columns=columns,
        users=users,
        positive_label=positive_label,
    )
