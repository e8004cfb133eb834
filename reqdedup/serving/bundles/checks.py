"""What must hold of a bundle before it is served: that it answers as the model that was trained, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from reqdedup.arrays.windows import HistoryCut
from reqdedup.batch import RequestBatch
from reqdedup.models.bundle import Bundle
from reqdedup.models.checkpoint import load_checkpoint, load_model
from reqdedup.models.config import ModelConfig
from reqdedup.models.transforms import OF_WINDOW, history_name
from reqdedup.schema import HISTORY_END, REQUEST_ID, TIMELINE_VERSION, USER_ID
from reqdedup.serving.threads import one_thread
from reqdedup.storage import TableSource
from reqdedup.training import RequestLoader, TrainingConfig
from reqdedup.training.plan import Source


@dataclass(frozen=True, kw_only=True)
class Parity:
    """requests, rows: compared.  differing: of the requests, those whose answers differ in any bit."""

    requests: int
    rows: int
    differing: int

    @property
    def holds(self) -> bool:
        return self.requests > 0 and self.differing == 0


def parity(bundle: Bundle, checkpoint: Path, source: TableSource, *, num_requests: int = 16) -> Parity:
    """Answers of the bundle to plain values of stored requests, against the checkpoint's model on the loader's.

    source: the table that the model was trained on. So weights, transforms, null rules and cut are compared at once.
    """
    training = TrainingConfig.from_dict(load_checkpoint(checkpoint)["config"])
    cut = HistoryCut(max_events=training.model.max_history, stride=training.history_stride)
    wanted = _stored(training.model, source, cut, num_requests)
    found = RequestBatch.concatenate(_from_plain_values(bundle, source, wanted))
    with one_thread(), torch.no_grad():
        answers = _answering(load_model(checkpoint))(wanted), _answering(bundle.model)(found)
    per_request = [x.split(wanted.row_offsets_R1.diff().tolist()) if len(x) == wanted.num_rows else x for x in answers]
    differing = sum(not torch.equal(a, b) for a, b in zip(*per_request, strict=True))
    return Parity(requests=wanted.num_requests, rows=wanted.num_rows, differing=differing)


def latency_ms(bundle: Bundle, source: TableSource, *, num_requests: int = 16) -> float:
    """Median time of a request without a kept context, from plain values to the answer, one thread [ms]."""
    batch = _stored(bundle.config, source, bundle.transforms.cut, num_requests)
    requests = _from_plain_values(bundle, source, batch)
    answer = _answering(bundle.model)  # once, as a server does
    with one_thread(), torch.no_grad():
        answer(requests[0])
        times = []
        for request in requests:
            started = time.perf_counter()
            answer(request)
            times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))


def user_vectors(bundle: Bundle, source: Source, *, num_requests: int = 64) -> np.ndarray:
    """[R, D] float32: requests of the table, drawn by chance, through a retrieval model's user tower."""
    batch = _stored(bundle.config, source, bundle.transforms.cut, num_requests, shuffle="requests")
    with one_thread(), torch.no_grad():
        vectors: torch.Tensor = _answering(bundle.model)(batch)
    return vectors.numpy()


def _answering(model: nn.Module) -> Callable[[RequestBatch], torch.Tensor]:
    """What gives logits [B, labels], or user vectors [R, D]."""
    given: Any = model
    return given.folded().predict_exact if hasattr(model, "folded") else given.user_tower


def _stored(
    config: ModelConfig,
    source: Source,
    cut: HistoryCut,
    num_requests: int,
    *,
    shuffle: Literal["requests", "none"] = "none",
) -> RequestBatch:
    """The table's first requests, or some of all, as training reads them."""
    columns = [*config.columns, *(name for name in OF_WINDOW if name in source.schema)]
    loader = RequestLoader(
        source, requests_per_batch=num_requests, columns=columns, shuffle=shuffle, cut=cut, prefetch_batches=0
    )
    for batch in loader:
        return batch
    raise ValueError("stored requests required to compare answers, found none in the table")


def _from_plain_values(bundle: Bundle, source: TableSource, wanted: RequestBatch) -> list[RequestBatch]:
    """The same requests, read as rows of plain values."""
    transforms = bundle.transforms
    users, requests = wanted.user_id_R.tolist(), wanted.request[REQUEST_ID].tolist()
    of_window = [name for name in OF_WINDOW if name in source.schema]
    names = {USER_ID, REQUEST_ID, *of_window, *(column.name for column in transforms.columns)}
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in source.to_arrow(sorted(names), users=np.unique(users)).to_pylist():
        rows.setdefault((row[USER_ID], row[REQUEST_ID]), []).append(row)
    batches = []
    for key in zip(users, requests, strict=True):
        first = rows[key][0]
        end, version = first.get(HISTORY_END), first.get(TIMELINE_VERSION)
        batches.append(
            transforms.batch(
                user_id=key[0],
                request=first,
                history={history_name(column.name): first[column.name] for column in transforms.history_columns},
                history_end=-1 if end is None else end,
                timeline_version=-1 if version is None else version,
                candidates={name: [row[name] for row in rows[key]] for name in first},
            )
        )
    return batches
