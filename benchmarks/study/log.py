"""The log of the study in memory: rows in table order (user, request, item), requests once, users split in two.

It is the project's own synthetic log, or MovieLens, as arrays: the study draws the same rows in many orders, row by row
for the IID arms, which the project's loader never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from reqdedup.dedup.encoding import numpy_from_blobs
from reqdedup.logs import SyntheticLogConfig, read_log, synthesize
from reqdedup.logs.synthetic_config import make_catalogue

HISTORY = 16
ONE_HOT = {"device": 3, "surface": 4}


@dataclass(frozen=True, kw_only=True)
class StudyLog:
    """B rows in table order and their R requests; users and items are numbered from 0.

    item_B, request_B: int64.  click_B: float32.  position_B: float32, log(1 + position).
    user_R: int64, rising.  dense_RF: float32, what a model may know of a request.
    history_RH: int64, the newest items first, `num_items` where there is none; H = 0 where dense_RF
        sums the history up.
    category_V: int64 per item.  is_held_out_B: rows of the held-out users.
    """

    item_B: np.ndarray
    request_B: np.ndarray
    click_B: np.ndarray
    position_B: np.ndarray
    user_R: np.ndarray
    dense_RF: np.ndarray
    history_RH: np.ndarray
    category_V: np.ndarray
    is_held_out_B: np.ndarray

    @property
    def num_items(self) -> int:
        return len(self.category_V)

    def users_of(self, rows: np.ndarray) -> np.ndarray:
        """The user of each row number, in the same shape."""
        return self.user_R[self.request_B[rows]]

    def rows(self, *, held_out: bool, clicks_only: bool) -> np.ndarray:
        """Row numbers of one side of the split, in table order; retrieval learns from clicks alone."""
        chosen_B = self.is_held_out_B == held_out
        return np.flatnonzero(chosen_B & (self.click_B > 0) if clicks_only else chosen_B)

    def engaged_pairs(self) -> np.ndarray:
        """Sorted keys user * num_items + item of every click: a negative among them is a false one."""
        clicks = np.flatnonzero(self.click_B > 0)
        return np.unique(self.users_of(clicks) * self.num_items + self.item_B[clicks])


def synthetic_log(*, seed: int, num_users: int, num_items: int, held_out: float) -> StudyLog:
    """The project's generator as it is; only sizes are set, before any training and for reasons
    that are none of the arms'.

    popularity_exponent 0.6 instead of 0.9: under IID fewer than 0.5% of in-batch negatives are then items that the user
    clicked, instead of 4.8%. Histories of 16 events are given to the models as shares of item categories, so that a
    user tower is cheap enough for many runs.
    """
    config = SyntheticLogConfig(
        seed=seed,
        num_users=num_users,
        num_items=num_items,
        mean_requests_per_user=3,
        mean_fan_out=64,
        history_scale=1 / 200,
        max_history=HISTORY,
        popularity_exponent=0.6,
    )
    catalogue = make_catalogue(config)

    def features(batch: pa.RecordBatch, first: np.ndarray) -> dict[str, np.ndarray]:
        hour = _numbers(batch, "hour_of_day")[first] * (2 * np.pi / 24)
        history_RH = newest(*_sequences(batch, "history_item_id", "int64", first))
        categories = np.append(catalogue.category(np.arange(num_items)), config.num_categories)
        histogram = _one_hot(categories[history_RH], config.num_categories + 1).sum(1)[:, :-1]
        dense = [_sequences(batch, "user_embedding", "float32", first)[0].reshape(len(first), -1)]
        dense += [_one_hot(_numbers(batch, name)[first], width) for name, width in ONE_HOT.items()]
        dense += [np.sin(hour)[:, None], np.cos(hour)[:, None], histogram / HISTORY**0.5]
        return {
            "dense_R": np.concatenate(dense, axis=1, dtype=np.float32),
            "history_R": history_RH[:, :0],
            "position_B": np.log1p(_numbers(batch, "position")).astype(np.float32),
            "category_B": _numbers(batch, "item_category").astype(np.int64),
        }

    return _in_table_order(_gather(synthesize(config), features), seed=seed, held_out=held_out)


def movielens_log(path: Path, *, seed: int, held_out: float) -> StudyLog:
    """MovieLens 100K: a request is a sitting, a click a rating of 4 or more; nothing is known but
    histories of items."""

    def features(batch: pa.RecordBatch, first: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "dense_R": np.zeros((len(first), 0), np.float32),
            "history_R": newest(*_sequences(batch, "history_item_id", "int64", first)),
            "position_B": np.zeros(batch.num_rows, np.float32),
            "category_B": np.zeros(batch.num_rows, np.int64),
        }

    return _in_table_order(_gather(read_log(path, preset="movielens"), features), seed=seed, held_out=held_out)


def _gather(
    batches: Iterable[pa.RecordBatch], features: Callable[[pa.RecordBatch, np.ndarray], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Columns of all batches: names ending in _B per row, in _R per request.

    features: of a batch and the first row of each of its requests.
    """
    parts: dict[str, list[np.ndarray]] = {}
    num_requests = 0
    for batch in batches:
        key_R, first, request_B = np.unique(_numbers(batch, "request_id"), return_index=True, return_inverse=True)
        found = {
            "item_B": _numbers(batch, "item_id"),
            "request_B": request_B + num_requests,
            "click_B": _numbers(batch, "click").astype(np.float32),
            "user_R": _numbers(batch, "user_id")[first],
            "key_R": key_R,
            **features(batch, first),
        }
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
        num_requests += len(first)
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    if len(np.unique(columns["key_R"])) != num_requests:
        raise ValueError("the log's batches must hold whole requests, found a request in two of them")
    return columns


def _in_table_order(found: dict[str, np.ndarray], *, seed: int, held_out: float) -> StudyLog:
    """Users and items numbered from 0, requests and rows in the order of the sorted table."""
    items, item_B = np.unique(found["item_B"], return_inverse=True)
    users, user_R = np.unique(found["user_R"], return_inverse=True)
    by_user = np.lexsort((found["key_R"], user_R))
    request_B = np.argsort(by_user)[found["request_B"]]
    order = np.lexsort((item_B, request_B))
    category_V = np.zeros(len(items), np.int64)
    category_V[item_B] = found["category_B"]
    place_RH = np.searchsorted(items, found["history_R"]).clip(max=len(items) - 1)
    is_known_RH = (found["history_R"] >= 0) & (items[place_RH] == found["history_R"])
    is_held_out_N = np.random.default_rng([seed, 7]).permutation(len(users)) < held_out * len(users)
    user_R = user_R[by_user]
    return StudyLog(
        item_B=item_B[order],
        request_B=request_B[order],
        click_B=found["click_B"][order],
        position_B=found["position_B"][order],
        user_R=user_R,
        dense_RF=found["dense_R"][by_user],
        history_RH=np.where(is_known_RH, place_RH, len(items))[by_user],
        category_V=category_V,
        is_held_out_B=is_held_out_N[user_R][request_B[order]],
    )


def newest(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The newest HISTORY values of each sequence, newest first, [R, HISTORY]; -1 where it is shorter."""
    place_RH = offsets[1:, None] - np.arange(1, HISTORY + 1)
    is_inside_RH = place_RH >= offsets[:-1, None]
    return np.where(is_inside_RH, np.append(values, -1)[np.where(is_inside_RH, place_RH, len(values))], -1)


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy(zero_copy_only=False)


def _sequences(batch: pa.RecordBatch, name: str, dtype: str, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of a sequence column, one sequence per request."""
    column = batch.column(name).take(pa.array(first))
    return numpy_from_blobs(column.dictionary.take(column.indices), dtype)


def _one_hot(value: np.ndarray, width: int) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[value]
