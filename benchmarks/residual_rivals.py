"""Stronger rivals of a ranking model on ratings: neighbours of residuals, and a GBM on everything that these know.

    base       item's mean + the user's mean difference over earlier rows: `reqdedup.models.baselines.ItemUserMean`
    residual   a row's label - its item's mean - the user's mean difference
    kNN        base + sum of s(item, earlier item) residual / (c + sum of s), over the user's earlier rows
    s(i, j)    cosine of the residuals of users who rated both, positive ones, times co / (co + shrinkage)
    GBM        of base, kNN, sum of s, means, counts and their ages: gradient boosting, `gbm_worker.py`

A request sees rows of an earlier time alone. Shrinkage and c do best on a part of the training rows, the last by time
or some users as the test is. Features of training rows come from means and neighbours of other users (five folds), else
the GBM would trust what it has seen.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from reqdedup.models.baselines import ItemMean, ItemUserMean
from reqdedup.schema import REQUEST_ID, REQUEST_TS
from reqdedup.storage import TableSource
from reqdedup.training import RequestLoader
from reqdedup.training.judgement.metrics import auc
from reqdedup.training.judgement.outcomes import Outcomes, Scored
from reqdedup.training.split import Split

SHRINKAGES, DAMPINGS = (20.0, 100.0), (1.0, 4.0)
FOLDS = 5
WORKER = Path(__file__).with_name("gbm_worker.py")


@dataclass(frozen=True)
class Ratings:
    """N rows by (user, time). user_N, time_N, item_N: int64, users and items numbered from 0.  label_N: 0 or 1."""

    user_N: np.ndarray
    time_N: np.ndarray
    item_N: np.ndarray
    label_N: np.ndarray

    @property
    def num_items(self) -> int:
        return int(self.item_N.max()) + 1

    def of_users(self) -> Iterator[slice]:
        """The rows of each."""
        ends = np.flatnonzero(np.diff(self.user_N)) + 1
        for begin, end in zip([0, *ends], [*ends, len(self.user_N)], strict=True):
            yield slice(int(begin), int(end))


@dataclass(frozen=True)
class Neighbours:
    """What is fitted on some rows: means and counts of items, and how alike two are."""

    mean: ItemMean
    count_V: np.ndarray
    alike_VV: np.ndarray

    @classmethod
    def of(cls, rows: Ratings, fits_N: np.ndarray, shrinkage: float) -> Neighbours:
        item_N, label_N = rows.item_N[fits_N], rows.label_N[fits_N]
        item_V, count = np.unique(item_N, return_counts=True)
        total = np.bincount(item_N, label_N, minlength=rows.num_items)[item_V]
        mean = ItemMean(item_V, total, count.astype(np.float64))
        residual_UV, rated_UV = (np.zeros((int(rows.user_N.max()) + 1, rows.num_items), np.float32) for _ in range(2))
        at = rows.user_N[fits_N], item_N
        difference_N = label_N - mean.predict(item_N)
        count_U = np.bincount(at[0], minlength=len(rated_UV))
        own_U = np.bincount(at[0], difference_N, minlength=len(rated_UV)) / (count_U + 10.0)
        residual_UV[at], rated_UV[at] = difference_N - own_U[at[0]], 1.0
        together_VV = rated_UV.T @ rated_UV
        product_VV, square_VV = residual_UV.T @ residual_UV, (residual_UV**2).T @ rated_UV
        alike_VV = product_VV / np.sqrt(square_VV * square_VV.T + 1e-9) * together_VV / (together_VV + shrinkage)
        np.fill_diagonal(alike_VV, 0.0)
        return cls(mean, np.bincount(item_N, minlength=rows.num_items), alike_VV.clip(min=0.0))

    def features(self, rows: Ratings, damping: float) -> np.ndarray:
        """[N, 9] of all rows: base, kNN, sum of s, item's mean, user's, their counts, and times since the user's first
        and newest earlier row."""
        base_N = ItemUserMean(self.mean).predict(rows.user_N, rows.time_N, rows.item_N, rows.label_N)
        mean_N = self.mean.predict(rows.item_N)
        difference_N, own_N = rows.label_N - mean_N, base_N - mean_N
        parts = []
        for part in rows.of_users():
            item, time = rows.item_N[part], rows.time_N[part]
            is_earlier = time[None] < time[:, None]
            alike = self.alike_VV[np.ix_(item, item)] * is_earlier
            sum_n = alike.sum(1)
            knn_n = base_N[part] + (alike @ difference_N[part] - sum_n * own_N[part]) / (sum_n + damping)
            earlier_n = is_earlier.sum(1)
            newest_n = np.where(is_earlier, time[None], 0).max(1)
            since_n = np.where(earlier_n > 0, time - newest_n, -1)
            known = (
                mean_N[part],
                own_N[part],
                np.log1p(self.count_V[item]),
                np.log1p(earlier_n),
                time - time[0],
                since_n,
            )
            parts.append(np.stack([base_N[part], knn_n, sum_n, *known], axis=1))
        return np.concatenate(parts)


def rivals(source: TableSource, model: Scored, train: Split, python: Path | None) -> dict[str, Outcomes]:
    """kNN on residuals of the label `click` and, with the `python` of an environment that has scikit-learn, the GBM;
    other labels stay the model's own."""
    rows, train_N, place_B = _rows(source, model, train)
    held_N = _inner(rows, train_N, by_time=len(np.intersect1d(rows.user_N[train_N], rows.user_N[place_B])) > 0)
    found = {}
    for shrinkage, damping in product(SHRINKAGES, DAMPINGS):
        score_N = Neighbours.of(rows, train_N & ~held_N, shrinkage).features(rows, damping)[:, 1]
        found[shrinkage, damping] = auc(torch.from_numpy(score_N[held_N]), torch.from_numpy(rows.label_N[held_N]))
    shrinkage, damping = max(found, key=lambda one: found[one])
    feature_NF = Neighbours.of(rows, train_N, shrinkage).features(rows, damping)
    scores = {"kNN on residuals": feature_NF[place_B, 1]}
    if python is not None:
        fold_N = rows.user_N % FOLDS
        own_NF = np.empty_like(feature_NF)
        for fold in range(FOLDS):
            others = Neighbours.of(rows, train_N & (fold_N != fold), shrinkage).features(rows, damping)
            own_NF[fold_N == fold] = others[fold_N == fold]
        scores["GBM"] = _boosted(python, own_NF[train_N], rows.label_N[train_N], feature_NF[place_B])
    column = model.labels.index("click")
    outcomes: dict[str, Outcomes] = {}
    for name, score_B in scores.items():
        logit_BL = model.logit_BL.copy()
        chance_B = score_B.clip(0.01, 0.99)  # a mean; beyond these its order alone matters
        straight_B = np.log(chance_B / (1 - chance_B)) + 100 * (score_B - chance_B)
        logit_BL[:, column] = score_B if name == "GBM" else straight_B
        outcomes[name] = replace(model, logit_BL=logit_BL)
    return outcomes


def _boosted(python: Path, feature_NF: np.ndarray, label_N: np.ndarray, feature_BF: np.ndarray) -> np.ndarray:
    """Logits [B] of what was fitted on the rows N."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, feature_NF=feature_NF, label_N=label_N, feature_BF=feature_BF)
        subprocess.run([str(python), str(WORKER), str(given), str(out)], check=True)
        with np.load(out) as arrays:
            return arrays["logit_B"]


def _inner(rows: Ratings, train_N: np.ndarray, *, by_time: bool) -> np.ndarray:
    """[N] bool: an eighth of the training rows, by which parameters are chosen."""
    if by_time:
        return train_N & (rows.time_N > np.quantile(rows.time_N[train_N], 0.875))
    return train_N & (rows.user_N % 8 == 0)


def _rows(source: TableSource, model: Scored, train: Split) -> tuple[Ratings, np.ndarray, np.ndarray]:
    """All rows, which of them are trained on ([N] bool), and where the model's are ([B])."""

    def read(users: Split | None) -> list[np.ndarray]:
        """user, time, item, request and label of each row."""
        loader = RequestLoader(
            source, requests_per_batch=4096, shuffle="none", columns=("click",), users=users, prefetch_batches=0
        )
        parts = []
        for batch in loader:
            of_request = (batch.user_id_R, batch.request[REQUEST_TS], batch.request[REQUEST_ID])
            user, time, request = (x_R[batch.request_of_row_B].numpy() for x_R in of_request)
            parts.append((user, time, batch.item_id_B.numpy(), request, batch.row["click"].numpy()))
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def keys(user: np.ndarray, item: np.ndarray, request: np.ndarray) -> list[tuple[int, int, int]]:
        return list(zip(user.tolist(), item.tolist(), request.tolist(), strict=True))

    everything = read(None)
    order = np.lexsort((everything[1], everything[0]))
    user, time, item, request, label = (column[order] for column in everything)
    at = {key: place for place, key in enumerate(keys(user, item, request))}
    of_train = read(train)
    train_N = np.zeros(len(user), bool)
    train_N[[at[key] for key in keys(of_train[0], of_train[2], of_train[3])]] = True
    wanted = keys(model.user_id_B, model.item_id_B, model.request_id_B)
    user_N, item_N = (np.unique(column, return_inverse=True)[1] for column in (user, item))
    return Ratings(user_N, time, item_N, label), train_N, np.array([at[key] for key in wanted])
