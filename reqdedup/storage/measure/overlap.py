"""User overlap: how much of a user's requests repeats an earlier one. It is not fan-out, and is stated apart from it.

Fan-out is repetition inside a request, which deduplication removes exactly. Overlap is repetition between requests of
one user, whose histories grow by a few events from one to the next; sorting puts them side by side, and only a codec
with a window longer than a history removes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.arrays.hashing import mix
from reqdedup.arrays.keys import run_starts
from reqdedup.dedup.encoding import numpy_from_blobs, take_blobs
from reqdedup.schema import REQUEST_ID, REQUEST_TS, USER_ID
from reqdedup.storage.iceberg.layout import table_layout
from reqdedup.storage.read.table_source import TableSource


@dataclass(frozen=True, kw_only=True)
class UserOverlap:
    """requests: looked at.  events: in their histories together.  repeated_events: that the user's request before, in
    order of time, held already, in one unbroken piece."""

    requests: int
    events: int
    repeated_events: int

    @property
    def share(self) -> float:
        """Part of all history events that repeats an earlier request of the same user, 0 to 1."""
        return self.repeated_events / self.events if self.events else 0.0

    @property
    def factor(self) -> float:
        """What storing shared history once could save on top of deduplication by request."""
        return self.events / (self.events - self.repeated_events) if self.events else 1.0


def user_overlap(table: Table) -> UserOverlap:
    """The overlap between successive requests of a user, from the values of the sequence columns.

    table: of a layout in request order. Raises ValueError for another one.
    """
    source = TableSource(table)
    if not table_layout(table).is_bucketed:
        raise ValueError(
            f"{'.'.join(table.name())}: a table in (user_id, request_id) order required, found layout "
            f"{table_layout(table).name}"
        )
    sequences = source.schema.sequences
    requests = events = repeated = 0
    user: int | None = None
    of_user: list[tuple[int, np.ndarray]] = []
    for batch in source.batches([USER_ID, REQUEST_ID, REQUEST_TS, *(column.name for column in sequences)]):
        starts = run_starts([batch.column(name).to_numpy() for name in (USER_ID, REQUEST_ID)])
        tokens, token_offsets = None, None
        for column in sequences:
            array = batch.column(column.name)
            values, offsets = numpy_from_blobs(
                take_blobs(array.dictionary, array.indices.to_numpy()[starts]), column.dtype
            )
            hashed = mix(
                np.ascontiguousarray(values)
                .astype(np.float64 if values.dtype.kind == "f" else np.int64)
                .view(np.uint64)
            )
            tokens = hashed if tokens is None else mix(tokens) + hashed
            token_offsets = offsets
        if tokens is None or token_offsets is None:
            continue
        times = batch.column(REQUEST_TS).cast(pa.int64()).to_numpy()[starts]
        for index, next_user in enumerate(batch.column(USER_ID).to_numpy()[starts].tolist()):
            if next_user != user:
                repeated += _repeated(of_user)
                user, of_user = next_user, []
            history = tokens[token_offsets[index] : token_offsets[index + 1]]
            of_user.append((int(times[index]), history))
            requests, events = requests + 1, events + len(history)
    return UserOverlap(requests=requests, events=events, repeated_events=repeated + _repeated(of_user))


def _repeated(of_user: list[tuple[int, np.ndarray]]) -> int:
    histories = [history for _, history in sorted(of_user, key=lambda request: request[0])]
    return sum(_common(before, after) for before, after in pairwise(histories))


def _common(before: np.ndarray, after: np.ndarray) -> int:
    """Length of the piece that ends `before` and starts `after` (a window that moved on), or of a
    whole inside the other."""
    if len(before) == 0 or len(after) == 0:
        return 0
    for start in np.flatnonzero(before == after[0]).tolist():
        length = min(len(before) - start, len(after))
        if np.array_equal(before[start : start + length], after[:length]):
            return length
    for start in np.flatnonzero(after == before[0]).tolist():  # a window that now begins earlier
        length = min(len(after) - start, len(before))
        if np.array_equal(after[start : start + length], before[:length]):
            return length
    return 0
