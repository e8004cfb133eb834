"""Candidates of held-out requests with the ranking model's scores and the retrieval model's item vectors: what slates
are composed of offline (`reqdedup.rerank.scored`)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import torch

from reqdedup.models import DCAT, TwoTower
from reqdedup.models.checkpoint import load_checkpoint, load_model
from reqdedup.schema import REQUEST_ID
from reqdedup.training.config import TrainingConfig
from reqdedup.training.judgement.baselines import splits_of
from reqdedup.training.loader import RequestLoader
from reqdedup.training.plan import Source

BATCH_REQUESTS = 64


@torch.no_grad()
def scored_candidates(ranking: Path, retrieval: Path, source: Source, *, num_requests: int = 500) -> pa.Table:
    """A row per candidate: user_id, request_id, item_id, score (probability of the first label), vector, and the
    item columns that the retrieval model reads.

    ranking, retrieval: checkpoints of models trained on `source`, whose held-out users' requests are scored.
    Raises ValueError for checkpoints that cannot be read, and if no user was held out.
    """
    training = TrainingConfig.from_dict(load_checkpoint(ranking)["config"])
    if not training.held_out:
        raise ValueError(f"{ranking}: a model with held-out users required, found one that was trained on all")
    ranker, tower = cast(DCAT, load_model(ranking)), cast(TwoTower, load_model(retrieval))
    categories = tower.config.item_columns
    loader = RequestLoader(
        source,
        requests_per_batch=BATCH_REQUESTS,
        shuffle="requests",
        seed=training.seed,
        columns=tuple(dict.fromkeys((*ranker.config.columns, *categories))),
        users=splits_of(training, source).test,
        cut=training.history_cut,
    )
    parts: list[pa.Table] = []
    left = num_requests
    for batch in loader:
        request_of_row = batch.request_of_row_B.numpy()
        is_wanted = request_of_row < left
        row = {name: batch.row[name].numpy() for name in categories}
        vectors = tower.encode_items(batch.item_id_B, batch.row)
        columns = {
            "user_id": batch.user_id_R.numpy()[request_of_row],
            "request_id": batch.request[REQUEST_ID].numpy()[request_of_row],
            "item_id": batch.item_id_B.numpy(),
            "score": ranker.predict(batch)[:, 0].sigmoid().numpy(),
            "vector": _lists(vectors.numpy()),
            **row,
        }
        parts.append(pa.table(columns).filter(pa.array(is_wanted)))
        left -= batch.num_requests
        if left <= 0:
            break
    if not parts:
        raise ValueError("requests of held-out users required, found none; use more of the log")
    return pa.concat_tables(parts)


def _lists(vectors_ND: np.ndarray) -> pa.Array:
    offsets = np.arange(len(vectors_ND) + 1, dtype=np.int32) * vectors_ND.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors_ND.ravel()))
