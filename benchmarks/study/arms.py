"""What is compared: arms (order of rows, fixes), steps (ranks, rows, length), blocks of arms beside their reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

ORDERS = ("iid", "sorted", "requests")
SAME_USER = ("kept", "masked", "capped")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to feed and train.

    order: `iid` rows at random; `sorted` the table's order; `requests` pieces shuffled inside the loader's window.
    chunk_rows: pieces are chunks of at most so many rows of a request; None keeps requests whole.
    norm: BatchNorm in the heads; False is the control without any norm.  sync: its statistics span all ranks.
    same_user: negatives of the row's own user are `kept`, `masked`, or `capped` to `same_user_share` of the weight.
    gather: negatives of all ranks.
    rate_factor: learning rates times this; the IID arm of other batch sizes is tuned once more.
    """

    name: str
    order: str = "iid"
    chunk_rows: int | None = None
    norm: bool = True
    sync: bool = False
    same_user: str = "kept"
    same_user_share: float = 0.0
    gather: bool = False
    rate_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in ORDERS or self.same_user not in SAME_USER:
            raise ValueError(f"arm {self.name}: order of {ORDERS} and same_user of {SAME_USER} required")


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How much a step takes and how long a run is.

    rows: per rank and step, in every arm; or passes: of the user tower, rows then follow from the arm's pieces.
    num_steps: None means `epochs` times over the training rows.
    buffer_requests: requests in a window of the loader's shuffle.
    """

    world_size: int
    rows: int = 0
    passes: int = 0
    epochs: float = 1.0
    num_steps: int | None = None
    buffer_requests: int = 2048

    def __post_init__(self) -> None:
        if (self.rows > 0) == (self.passes > 0):
            raise ValueError(f"steps: either rows or passes per rank required, found {self.rows} and {self.passes}")

    def rows_per_rank(self, rows_per_piece: float) -> int:
        """rows_per_piece: of the arm, 1 for IID."""
        return self.rows or max(1, round(self.passes * rows_per_piece))

    def count(self, num_rows: int, rows_per_rank: int) -> int:
        """Steps of a run over `num_rows` training rows."""
        return self.num_steps or max(1, int(self.epochs * num_rows) // (self.world_size * rows_per_rank))


@dataclass(frozen=True, kw_only=True)
class Block:
    """Arms that are compared with one of them, seed by seed: the best of the references, by default the first arm.

    task: `ranking` or `retrieval`.  log: a key of `plan.LOGS`.  With steps of equal rows every arm sees the same rows;
    with equal passes an arm that shares passes sees more of them.
    """

    name: str
    task: str
    log: str
    steps: Steps
    arms: tuple[Arm, ...]
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.arms[0].name,))
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or not set(self.references) <= set(names):
            raise ValueError(f"block {self.name}: distinct arms, the references {self.references} among them, required")


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Hyper-parameters, the same for every arm of a task and log: peak learning rates of AdamW and of the item table's
    row-wise Adagrad (both warm up over 5% of the steps, then decay linearly to 0), weight decay, temperature."""

    learning_rate: float
    table_rate: float
    weight_decay: float
    temperature: float = 0.1


RANKING_ARMS = (
    Arm(name="iid"),
    Arm(name="iid + sync", sync=True),
    Arm(name="sorted", order="sorted"),
    Arm(name="sorted + sync", order="sorted", sync=True),
    Arm(name="sorted + shuffle", order="requests"),
    Arm(name="sorted + sync + shuffle", order="requests", sync=True),
    Arm(name="all: sync + shuffle + chunks of 8", order="requests", chunk_rows=8, sync=True),
)
_ALL = Arm(
    name="all: sync + mask + shuffle + gather + chunks of 4",
    order="requests",
    chunk_rows=4,
    sync=True,
    same_user="masked",
    gather=True,
)
_WHOLE = replace(_ALL, name="all but chunks: sync + mask + shuffle + gather", chunk_rows=None)
RETRIEVAL_ARMS = (
    Arm(name="iid"),
    Arm(name="iid + sync + gather", sync=True, gather=True),
    Arm(name="sorted", order="sorted"),
    Arm(name="sorted + sync", order="sorted", sync=True),
    Arm(name="sorted + mask", order="sorted", same_user="masked"),
    Arm(name="sorted + sync + mask", order="sorted", sync=True, same_user="masked"),
    Arm(
        name="sorted + sync + same-user weight capped at 2%",
        order="sorted",
        sync=True,
        same_user="capped",
        same_user_share=0.02,
    ),
    Arm(name="sorted + sync + mask + gather", order="sorted", sync=True, same_user="masked", gather=True),
    Arm(name="sorted + sync + mask + shuffle", order="requests", sync=True, same_user="masked"),
    _WHOLE,
    _ALL,
    replace(_ALL, name="all, same-user weight capped at 0.2%", same_user="capped", same_user_share=0.002),
    replace(_ALL, name="all, no mask", same_user="kept"),
)
MANY_RANKS_RETRIEVAL_ARMS = tuple(
    arm
    for arm in RETRIEVAL_ARMS
    if arm.name in ("iid", "iid + sync + gather", "sorted", "sorted + sync + mask", _WHOLE.name, _ALL.name)
)
NO_NORM_ARMS = {
    "ranking": (
        Arm(name="no norm: iid", norm=False),
        Arm(name="no norm: sorted", order="sorted", norm=False),
        Arm(name="no norm: shuffle", order="requests", norm=False),
        Arm(name="no norm: shuffle + chunks of 8", order="requests", chunk_rows=8, norm=False),
    ),
    "retrieval": (
        Arm(name="no norm: iid + gather", norm=False, gather=True),
        replace(_WHOLE, name="no norm: mask + shuffle + gather", norm=False, sync=False),
    ),
}


def with_all_fixes(task: str, **options: Any) -> Arm:
    """An arm with synchronised norms, and in retrieval with all ranks' negatives and the user mask."""
    return Arm(sync=True, gather=True, same_user="masked" if task == "retrieval" else "kept", **options)


def sweep(task: str) -> tuple[Arm, ...]:
    """Ever smaller pieces, so ever more users per step; one reader, one set of statistics, all negatives."""
    pieces = (16, 8, 4, 2) if task == "ranking" else (8, 4, 2)
    return (
        with_all_fixes(task, name="iid"),
        with_all_fixes(task, name="sorted", order="sorted"),
        with_all_fixes(task, name="whole requests", order="requests"),
        *(with_all_fixes(task, name=f"chunks of {m}", order="requests", chunk_rows=m) for m in pieces),
    )
