"""What a log must hold before a model can learn from it: looked at once, before the first step, over all ranks' shares.

Labels and the request's numbers and vectors are read, the histories are not. What one rank finds all of them know, so a
run is refused, or warned of, in the same words on any number of ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.config import ModelConfig
from reqdedup.schema import REQUEST_ID, REQUEST_TS
from reqdedup.training.blocks import RequestBlock
from reqdedup.training.plan import Wanted
from reqdedup.training.ranks import from_all_ranks, rank_and_world_size
from reqdedup.training.split import Split

LARGEST_IN_VECTOR = 1e18
"""Above it the squares of a BatchNorm overflow float32, and every output becomes the same."""


@dataclass(frozen=True, order=True)
class Fault:
    """A value that its column must not have, and where; the least of several is the one that is shown."""

    user_id: int
    request_id: int
    value: float


@dataclass
class Survey:
    """What a pass over the log met.

    numbers, vectors: names of the request's inputs, whose values must be finite.  labels: names of
        what must be in 0..1.
    maturity_s: by label, its attribution window [s].
    counted: requests whose rows the model learns from.  positive_label: label that is positive in
        these rows (None: all rows).

    faults, num_faults: first fault and number of them, by column.  num_known, sum_known: labels of counted users.
    oldest_known_us: by label, time of the oldest request of counted users that knows it.
    num_requests: counted requests with a row that is learned from, or chunks of `chunk_rows` of such rows, in each row
        group or bucket of the source, by its number.
    num_rows: rows of counted users.  lowest_user, highest_user: among them, of rows that are learned from.
    """

    numbers: tuple[str, ...]
    vectors: tuple[str, ...]
    counted: Split
    labels: tuple[str, ...] = ()
    maturity_s: Mapping[str, float] = field(default_factory=dict)
    positive_label: str | None = None
    chunk_rows: int | None = None
    faults: dict[str, Fault] = field(default_factory=dict)
    num_faults: dict[str, int] = field(default_factory=dict)
    num_known: dict[str, int] = field(default_factory=dict)
    sum_known: dict[str, float] = field(default_factory=dict)
    oldest_known_us: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    num_requests: dict[int, int] = field(default_factory=dict)
    lowest_user: int = 2**63 - 1
    highest_user: int = -(2**63)
    newest_us: int = 0
    newest_counted_us: int = 0

    @classmethod
    def of(cls, model: ModelConfig, counted: Split, **options: Any) -> Survey:
        vectors = tuple(name for name, _ in model.vector_columns)
        return cls(model.number_columns, vectors, counted, **options)

    @property
    def columns(self) -> tuple[str, ...]:
        """What must be read."""
        positive = (self.positive_label,) if self.positive_label else ()
        return (*self.numbers, *self.vectors, *self.labels, *positive)

    def passing(self, batches: Iterable[RequestBatch]) -> Iterator[RequestBatch]:
        """The same batches, each looked at."""
        for batch in batches:
            self._look(batch)
            yield batch

    def count(self, number: int, block: RequestBlock) -> None:
        """What a loader tells of its blocks (`on_block`)."""
        wanted = Wanted(users=self.counted, positive_label=self.positive_label, chunk_rows=self.chunk_rows)
        self.num_requests[number] = self.num_requests.get(number, 0) + wanted.number_of(block)

    def over_ranks(self) -> Survey:
        """The surveys of all ranks as one, the same on each; a collective."""
        total, *others = from_all_ranks(self)
        for other in others:
            for name, fault in other.faults.items():
                total.faults[name] = min(fault, total.faults.get(name, fault))
            for name in ("num_faults", "num_known", "sum_known", "num_requests"):
                mine, theirs = getattr(total, name), getattr(other, name)
                mine.update({key: mine.get(key, 0) + value for key, value in theirs.items()})
            for name, time_us in other.oldest_known_us.items():
                total.oldest_known_us[name] = min(time_us, total.oldest_known_us.get(name, time_us))
            total.num_rows += other.num_rows
            total.lowest_user = min(total.lowest_user, other.lowest_user)
            total.highest_user = max(total.highest_user, other.highest_user)
            total.newest_us = max(total.newest_us, other.newest_us)
            total.newest_counted_us = max(total.newest_counted_us, other.newest_counted_us)
        return total

    def check_rows(self) -> None:
        """Raises ValueError if there is nothing to learn from."""
        if not self.num_rows:
            after_us = getattr(self.counted, "after_us", None)
            later = (
                "" if after_us is None else f" later than {datetime.fromtimestamp(after_us / 1e6, UTC):%Y-%m-%d %H:%M}"
            )
            raise ValueError(
                f"training: requests to learn from{later} required, found none; "
                + ("use more of the log" if after_us is None else "the warm start has learned from all that there are")
            )

    def check_inputs(self) -> None:
        """Raises ValueError for a number that is infinite or a vector that is not finite, or as good as."""
        for names, required in (
            (self.numbers, "finite numbers (or missing ones)"),
            (self.vectors, f"vectors of numbers up to {LARGEST_IN_VECTOR:g}"),
        ):
            self._refuse(names, required, "correct the log, or leave the column out of the model")

    def warn_of_impressions(self, varying: Iterable[str]) -> None:
        """varying: item columns of a retrieval model that differ between rows of one item."""
        if names := ", ".join(sorted(varying)):
            _warn(
                f"a retrieval model knows one value of each item, and {names} differ between rows of one item: they "
                "are of an impression. Vectors of items are served, and judged, with those of an item's earliest row; "
                "leave the columns out of the model (exclude) unless they change slowly, as a price does"
            )

    def check_labels(self) -> None:
        """Raises ValueError for labels outside 0..1 and if no label has a value, or a mature one; warns of one that
        says nothing."""
        advice = "map it to 0 and 1 (a threshold, say), or leave it out of the model's labels"
        self._refuse(self.labels, "labels from 0 to 1 (or missing ones)", advice)
        known = {name: self.num_known.get(name, 0) for name in self.labels}
        if not any(known.values()):
            raise ValueError(
                f"training: a value of one of the labels {', '.join(self.labels)} required, found none in the "
                f"{self.num_rows:,} rows of the training users; choose other labels"
            )
        young = [name for name, count in known.items() if count and not self._is_mature(name)]
        if len(young) == sum(count > 0 for count in known.values()):
            newest = f"{datetime.fromtimestamp(self.newest_us / 1e6, UTC):%Y-%m-%d %H:%M}"
            windows = ", ".join(f"{name} {self.maturity_s[name]:g} s" for name in young)
            raise ValueError(
                f"training: a label at least as old as its label_maturity_s ({windows}) required, found none in the "
                f"{self.num_rows:,} rows of the training users beside the log's newest request, {newest}; shorten the "
                "windows, or use more of the log"
            )
        for name, count in known.items():
            if name in young:
                _warn(f"label {name} is nowhere as old as its label_maturity_s: its logit learns nothing")
            elif not count:
                _warn(
                    f"label {name} is missing in all {self.num_rows:,} rows of the training users: its logit learns "
                    "nothing"
                )
            elif self.sum_known[name] in (0.0, count):
                _warn(
                    f"label {name} is {int(self.sum_known[name] > 0)} in all {count:,} rows that have it: nothing to "
                    "tell apart"
                )

    def _is_mature(self, name: str) -> bool:
        """Whether a known label is as old as its window."""
        window_us = 1_000_000 * self.maturity_s.get(name, 0.0)
        return self.newest_us - self.oldest_known_us[name] >= window_us

    def check_contrast(self, num_items: int, *, mask_same_user: bool) -> None:
        """Raises ValueError if no row can have a negative. num_items: distinct items of the rows
        that are learned from."""
        rows = f"rows with positive {self.positive_label!r}" if self.positive_label else "rows"
        if num_items < 2:
            raise ValueError(
                f"training: {rows} of at least two items required, found {num_items}; a row's negatives are other items"
            )
        if mask_same_user and self.lowest_user == self.highest_user:
            raise ValueError(
                f"training: {rows} of at least two training users required, found user {self.lowest_user} alone; with "
                "mask_same_user a row's negatives are other users' items"
            )

    def _refuse(self, names: Sequence[str], required: str, advice: str) -> None:
        for name in names:
            if name in self.faults:
                fault, more = self.faults[name], self.num_faults[name] - 1
                raise ValueError(
                    f"training: {required} required in {name}, found {fault.value:g} in request {fault.request_id} of "
                    f"user {fault.user_id}{f' and {more:,} more' if more else ''}; {advice}"
                )

    def _look(self, batch: RequestBatch) -> None:
        for name in self.numbers:
            x_R = batch.request[name]
            if x_R.is_floating_point():
                self._note(name, x_R, x_R.isinf(), batch.user_id_R, batch.request[REQUEST_ID])
        for name in self.vectors:
            x_RV = batch.request[name].float()
            bad_RV = ~(x_RV.abs() <= LARGEST_IN_VECTOR)
            first_R = x_RV.gather(1, bad_RV.int().argmax(1, keepdim=True)).squeeze(1) if x_RV.numel() else x_RV.sum(1)
            self._note(name, first_R, bad_RV.any(1), batch.user_id_R, batch.request[REQUEST_ID])
        is_counted_R = torch.from_numpy(
            self.counted.contains(batch.user_id_R.numpy(), batch.request[REQUEST_TS].numpy())
        )
        time_R = batch.request[REQUEST_TS]
        self.newest_us = max(self.newest_us, _newest(time_R))
        self.newest_counted_us = max(self.newest_counted_us, _newest(time_R[is_counted_R]))
        is_counted_B = is_counted_R[batch.request_of_row_B]
        self.num_rows += int(is_counted_B.sum())
        for name in self.labels:
            x_B, request_of_row_B = batch.row[name], batch.request_of_row_B
            user_id_B, request_id_B = batch.user_id_R[request_of_row_B], batch.request[REQUEST_ID][request_of_row_B]
            self._note(name, x_B, (x_B < 0) | (x_B > 1), user_id_B, request_id_B)
            is_known_B = is_counted_B & ~x_B.isnan()
            known = x_B[is_known_B]
            if len(known):
                oldest_us = int(time_R[request_of_row_B[is_known_B]].min())
                self.oldest_known_us[name] = min(oldest_us, self.oldest_known_us.get(name, oldest_us))
            self.num_known[name] = self.num_known.get(name, 0) + len(known)
            self.sum_known[name] = self.sum_known.get(name, 0.0) + float(known.double().sum())
        if self.positive_label:
            is_counted_B &= batch.row[self.positive_label] > 0
        users = batch.user_id_R[batch.request_of_row_B[is_counted_B]]
        if len(users):
            self.lowest_user = min(self.lowest_user, int(users.min()))
            self.highest_user = max(self.highest_user, int(users.max()))

    def _note(
        self, name: str, x: torch.Tensor, is_fault: torch.Tensor, user_id: torch.Tensor, request_id: torch.Tensor
    ) -> None:
        found = torch.nonzero(is_fault).squeeze(1)
        if len(found):
            faults = zip(user_id[found].tolist(), request_id[found].tolist(), x[found].tolist())
            first = min(Fault(*values) for values in faults)
            self.faults[name] = min(first, self.faults.get(name, first))
            self.num_faults[name] = self.num_faults.get(name, 0) + len(found)


def _newest(time_us_R: torch.Tensor) -> int:
    return int(time_us_R.max()) if len(time_us_R) else 0


def _warn(text: str) -> None:
    """All ranks come here; the first one speaks."""
    if rank_and_world_size()[0] == 0:
        warnings.warn(f"training: {text}", stacklevel=2)
