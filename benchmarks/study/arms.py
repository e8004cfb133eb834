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
    gather: negatives of all ranks.  negative_rows: instead, negatives of so many consecutive rows.
    rate_factor: both learning rates times this.  epochs: steps times this.
    """

    name: str
    order: str = "iid"
    chunk_rows: int | None = None
    norm: bool = True
    sync: bool = False
    same_user: str = "kept"
    same_user_share: float = 0.0
    gather: bool = False
    negative_rows: int | None = None
    rate_factor: float = 1.0
    epochs: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in ORDERS or self.same_user not in SAME_USER:
            raise ValueError(f"arm {self.name}: order of {ORDERS} and same_user of {SAME_USER} required")

    def negative_groups(self, rows: int, ranks: int) -> int:
        """Into how many groups of rows a step of `rows` falls that are each other's negatives."""
        if self.negative_rows:
            return rows // self.negative_rows
        return 1 if self.gather else ranks


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
    num_seeds: pairs, seeds 0, 1, ...  close_arms: names of those that differ so little that they need `close_seeds`.
    """

    name: str
    task: str
    log: str
    steps: Steps
    arms: tuple[Arm, ...]
    references: tuple[str, ...] = ()
    num_seeds: int = 1
    close_arms: tuple[str, ...] = ()
    close_seeds: int = 0

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.arms[0].name,))
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or not set(self.references) <= set(names):
            raise ValueError(f"block {self.name}: distinct arms, the references {self.references} among them, required")

    def seeds(self, arm: Arm) -> range:
        return range(max(self.num_seeds, self.close_seeds) if arm.name in self.close_arms else self.num_seeds)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Hyper-parameters, the same for every arm of a task and log: peak learning rates of AdamW and of the item table's
    row-wise Adagrad (both warm up over 5% of the steps, then decay linearly to 0), weight decay, temperature."""

    learning_rate: float
    table_rate: float
    weight_decay: float
    temperature: float = 0.1


RANKING_ALL = Arm(name="all: sync + shuffle + chunks of 8", order="requests", chunk_rows=8, sync=True)
RANKING_IID = Arm(name="iid + sync", sync=True)
RANKING_ARMS = (
    Arm(name="iid"),
    RANKING_IID,
    Arm(name="sorted", order="sorted"),
    Arm(name="sorted + sync", order="sorted", sync=True),
    Arm(name="sorted + shuffle", order="requests"),
    Arm(name="sorted + sync + shuffle", order="requests", sync=True),
    RANKING_ALL,
)
RETRIEVAL_ALL = Arm(
    name="all: sync + mask + shuffle + gather + chunks of 4",
    order="requests",
    chunk_rows=4,
    sync=True,
    same_user="masked",
    gather=True,
)
RETRIEVAL_WHOLE = replace(RETRIEVAL_ALL, name="all but chunks: sync + mask + shuffle + gather", chunk_rows=None)
RETRIEVAL_IID = Arm(name="iid + sync + gather", sync=True, gather=True)
RETRIEVAL_ARMS = (
    Arm(name="iid"),
    RETRIEVAL_IID,
    Arm(name="sorted", order="sorted"),
    Arm(name="sorted + sync", order="sorted", sync=True),
    Arm(name="sorted + mask", order="sorted", same_user="masked"),
    Arm(name="sorted + sync + mask", order="sorted", sync=True, same_user="masked"),
    Arm(name="sorted + sync + mask + gather", order="sorted", sync=True, same_user="masked", gather=True),
    Arm(name="sorted + sync + mask + shuffle", order="requests", sync=True, same_user="masked"),
    RETRIEVAL_WHOLE,
    RETRIEVAL_ALL,
)
MANY_RANKS_RETRIEVAL_ARMS = tuple(
    arm
    for arm in RETRIEVAL_ARMS
    if arm.name not in ("sorted + sync", "sorted + mask", "sorted + sync + mask + shuffle")
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
        replace(RETRIEVAL_WHOLE, name="no norm: mask + shuffle + gather", norm=False, sync=False),
    ),
}
SAME_USER_ARMS = (
    RETRIEVAL_IID,
    *(
        replace(RETRIEVAL_WHOLE, name=name, same_user=same_user, same_user_share=share)
        for name, same_user, share in (
            ("masked", "masked", 0.0),
            ("at most 0.1%", "capped", 0.001),
            ("at most 1%", "capped", 0.01),
            ("at most 10%", "capped", 0.1),
            ("kept", "kept", 0.0),
        )
    ),
)
NEGATIVES_ARMS = (
    RETRIEVAL_IID,
    *(Arm(name=f"iid + sync, negatives of {n} rows", sync=True, negative_rows=n) for n in (64, 32, 16)),
    Arm(name="sorted + sync, no mask", order="sorted", sync=True),
    Arm(name="sorted + sync + mask", order="sorted", sync=True, same_user="masked"),
    Arm(
        name="sorted + sync + same-user weight at most 10%",
        order="sorted",
        sync=True,
        same_user="capped",
        same_user_share=0.1,
    ),
)
"""How many negatives, and of how many users, make the mask harmful on sorted rows without a gather."""
EPOCHS_ARMS = tuple(
    replace(arm, name=f"{name}, {epochs:g} {'epoch' if epochs == 1 else 'epochs'}", epochs=epochs)
    for name, arm in (("iid", RETRIEVAL_IID), ("all", RETRIEVAL_ALL))
    for epochs in (1.0, 1.5)
)
RATES = (0.3, 1.0, 3.0)


def at_rates(*arms: Arm) -> tuple[Arm, ...]:
    """Every arm at each of the same few rates: neither side keeps the advantage of having been tuned."""
    return tuple(replace(arm, name=f"{arm.name}, rates x {rate:g}", rate_factor=rate) for arm in arms for rate in RATES)


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
