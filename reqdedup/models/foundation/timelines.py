"""Which histories of a batch pre-training passes over: as few as hold every event of it.

    timeline     a b c d e f g h    of one user; S = 4, windows begin at multiples of 2
    request 0    a b c d            read
    request 1        c d e f        left out: requests 0 and 2 have its events
    request 2            e f g h    read
    request 3            e f        left out

A pair of events on both sides of a border, d and e, is asked by none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.config import ModelConfig
from reqdedup.models.histories import Histories
from reqdedup.schema import HISTORY_END, TIMELINE_VERSION


def timelines_of(batch: RequestBatch, config: ModelConfig) -> tuple[Histories, torch.Tensor]:
    """The histories, and whose they are: [G] int64.

    All of the requests', unless config.share_context is user, which needs the columns that say where histories lie.
    Requests without a place in a timeline (negative) are read all.
    """
    if config.share_context != "user":
        return Histories.of(batch, config), batch.user_id_R
    spans = torch.stack(
        [
            batch.user_id_R,
            batch.request[TIMELINE_VERSION],
            batch.request[HISTORY_END] - batch.history_offsets_R1.diff(),
            batch.request[HISTORY_END],
        ]
    ).T
    request_G = torch.tensor(sorted(covering(spans.tolist())), dtype=torch.int64, device=spans.device)
    return Histories(*batch.histories_of(request_G), None), batch.user_id_R[request_G]


def covering(spans: list[list[int]]) -> Iterator[int]:
    """Numbers of spans that together hold every event of all: of those that begin where what was taken before ends, or
    earlier, the one that reaches furthest.

    spans: (user, version, first event, end) each.
    """
    timeline, covered, best = None, 0, -1
    for number in sorted(range(len(spans)), key=spans.__getitem__):
        *of, start, end = spans[number]
        if of[1] < 0 or start < 0:
            yield number
            continue
        if best >= 0 and (of != timeline or start > covered):
            yield best
            covered, best = spans[best][3], -1
        if of != timeline or start > covered:
            timeline, covered = of, start
        if end > (covered if best < 0 else spans[best][3]):
            best = number
    if best >= 0:
        yield best
