"""An approximate index of many items, by faiss: inverted lists of vectors in one byte per dimension.

    build_index(vectors) -> index file          about a minute of CPU for a million vectors
    open_index(path, items) -> ItemIndex         a memory map, milliseconds; exact search if faiss is not installed

The lists of the cells nearest to the user are looked at, as many as recall asks for, measured when it is built: with
users of the model, since trained towers put these elsewhere than items (decision 65), else with items in their place;
what they propose, a few times k, is scored exactly by `item_index.nearest`, which also says when an answer
is short. Up to `EXACT_UP_TO` items exact search is as good and needs no file. faiss is the extra `reqdedup[ann]`.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from reqdedup.serving.requests import ItemFilter
from reqdedup.serving.retrieval.item_index import ExactIndex, ItemIndex, nearest
from reqdedup.serving.retrieval.item_vectors import ItemVectors

EXACT_UP_TO = 100_000
"""Items up to which exact search takes about a millisecond."""

INDEX_NAME = "item_index.faiss"
"""File of the index in a bundle."""

WANTED_RECALL = 0.97
"""Share of the 100 nearest that an index must find to be used, of those whom it is measured with."""

PROBED_SHARES = (1 / 128, 1 / 96, 1 / 64, 1 / 48, 1 / 32, 1 / 24, 1 / 16, 1 / 12, 1 / 8)
"""Shares of the lists that are tried; an index that needs more is not worth its file."""

NUM_TRIED = 64
"""Users whose recall is measured."""

OVERSAMPLED = 2
"""Times as many items are proposed as are asked for: one byte per dimension misorders neighbours."""

_log = logging.getLogger(__name__)


class ApproximateIndex:
    """Proposes rows from the inverted lists nearest to the user. Threads may share it."""

    def __init__(self, index: Any, kind: str) -> None:
        """index: of faiss, rows of the items as its ids."""
        self._index, self.kind = index, kind

    def propose(self, user_D: np.ndarray, k: int) -> np.ndarray:
        row = self._index.search(user_D[None], min(OVERSAMPLED * k, self._index.ntotal))[1][0]
        return row[row >= 0]


def index_kind(num_items: int) -> str | None:
    """What is built for so many items, as faiss spells it; None for exact search."""
    if num_items <= EXACT_UP_TO:
        return None
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(num_items)))},SQ8"


def build_index(
    vectors_ND: np.ndarray,
    path: Path,
    *,
    users: np.ndarray | None = None,
    kind: str | None = None,
    probed: float | None = None,
    seed: int = 0,
) -> bool:
    """Write the index of these vectors to a file; False, and no file, if exact search is better or faiss is missing.

    users: [U, D] vectors of users to measure recall with; None takes items.
    kind: as faiss spells it; None chooses by the number of items.
    probed: share of the lists that are looked at; None takes the least of `PROBED_SHARES` that finds `WANTED_RECALL`,
        and no index if none does.
    seed: of the samples that the cells are learned from and recall is measured on.
    """
    kind = kind or index_kind(len(vectors_ND))
    faiss = _faiss() if kind else None
    if faiss is None or kind is None:
        return False
    index = faiss.index_factory(vectors_ND.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.extract_index_ivf(index)
    wanted = min(len(vectors_ND), 50 * inverted.nlist)
    sample = np.random.default_rng(seed).choice(len(vectors_ND), wanted, replace=False)
    index.train(np.ascontiguousarray(vectors_ND[np.sort(sample)], np.float32))
    index.add(np.ascontiguousarray(vectors_ND, np.float32))
    shares, rng = PROBED_SHARES if probed is None else (probed,), np.random.default_rng(seed)
    items = ItemVectors(np.arange(len(vectors_ND)), np.ascontiguousarray(vectors_ND, np.float32))
    if users is None:
        users = items.vectors[rng.choice(len(items), min(NUM_TRIED, len(items)), replace=False)]
    for share in shares:
        inverted.nprobe = max(1, round(share * inverted.nlist))
        if probed is not None or recall(items, ApproximateIndex(index, kind), users) >= WANTED_RECALL:
            faiss.write_index(index, str(path))
            return True
    _log.warning(
        f"{kind} finds less than {WANTED_RECALL} of the nearest in 1/8 of its lists: exact search over all items"
    )
    return False


def recall(items: ItemVectors, index: ItemIndex, users: np.ndarray, *, k: int = 100) -> float:
    """Mean share of the k nearest items that the index proposes, over users [U, D]."""
    exact, everything, shares = ExactIndex(items), ItemFilter(), []
    for user_D in users:
        wanted = nearest(items, exact, user_D, k, everything)[0]
        shares.append(np.isin(wanted, index.propose(user_D, k)).mean())
    return float(np.mean(shares))


def open_index(path: Path, items: ItemVectors) -> ItemIndex:
    """The index of a file that the caller has checked, mapped into memory; exact search, said once in the log, if faiss
    is not installed.

    Raises ValueError for a file that is none of faiss, or one of other items.
    """
    faiss = _faiss()
    if faiss is None:
        return ExactIndex(items)
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        inverted = faiss.extract_index_ivf(index)
        # threads that touch the lists of every search: three times its own time once the file is in memory
        faiss.downcast_InvertedLists(inverted.invlists).prefetch_nthread = 0
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"{path}: an index with inverted lists of faiss required, found another file: {reason}"
        ) from None
    if (index.ntotal, index.d) != items.vectors.shape:
        raise ValueError(
            f"{path}: an index of the bundle's {len(items)} items required, found {index.ntotal} of width {index.d}; "
            "export the bundle again"
        )
    return ApproximateIndex(index, f"ivf{inverted.nlist}")


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        _log.warning("faiss is not installed: exact search over all items; pip install 'reqdedup[ann]' for the index")
        return None
    return faiss
