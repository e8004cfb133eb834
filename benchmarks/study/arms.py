"""What is compared: arms (what each changes of the library's defaults) and blocks of arms beside their reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reqdedup.training import TrainingConfig

IID: dict[str, Any] = {"chunk_rows": 1, "buffer_requests": 1_000_000}
"""Every row is a request of its own, and a rank's whole share is shuffled at once."""
SORTED: dict[str, Any] = {"shuffle": "none"}
NO_SYNC: dict[str, Any] = {"sync_batchnorm": False}
NO_MASK: dict[str, Any] = {"mask_same_user": False}
NO_GATHER: dict[str, Any] = {"gather_negatives": False}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to feed and train.

    changes: fields of `TrainingConfig` that are not as the library has them; none is its default.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chunk_rows(self) -> int | None:
        """Most rows of a piece, the unit that is shuffled and costs a pass of the user tower; None: whole requests."""
        found: int | None = self.changes.get("chunk_rows")
        return found


@dataclass(frozen=True, kw_only=True)
class Block:
    """Arms that are compared with one of them, seed by seed: the best of the references, by default the first arm.

    task: `ranking` or `retrieval`.  log: a key of `plan.LOGS`.
    rows, passes: of a step over all ranks, on average: with equal rows every arm sees the same rows; with equal passes
        of the user tower an arm that shares them sees more. One of the two is 0.
    ranks: processes.  num_steps: of a run; 0: as many as the passes over the log give.
    num_seeds: pairs, seeds 0, 1, ...
    """

    name: str
    task: str
    log: str
    arms: tuple[Arm, ...]
    references: tuple[str, ...] = ()
    rows: int = 0
    passes: int = 0
    ranks: int = 1
    num_steps: int = 0
    num_seeds: int = 1

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.arms[0].name,))
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or not set(self.references) <= set(names):
            raise ValueError(f"block {self.name}: distinct arms, the references {self.references} among them, required")
        if (self.rows > 0) == (self.passes > 0):
            raise ValueError(f"block {self.name}: rows or passes required, found {self.rows} and {self.passes}")

    def pieces_per_step(self, rows_per_piece: float) -> int:
        """`requests_per_step` of an arm whose pieces have so many rows on average: as many on each rank."""
        wanted = self.passes or self.rows / rows_per_piece
        return self.ranks * max(1, round(wanted / self.ranks))


RANKING_IID = Arm(name="iid + sync", changes=IID)
RANKING_DEFAULT = Arm(name="default: sync + shuffle")
RANKING_CHUNKS = Arm(name="default, chunks of 8", changes={"chunk_rows": 8})
RANKING_SORTED = Arm(name="sorted", changes=SORTED | NO_SYNC)
RANKING_ARMS = (
    Arm(name="iid", changes=IID | NO_SYNC),
    RANKING_IID,
    RANKING_SORTED,
    Arm(name="sorted + sync", changes=SORTED),
    Arm(name="sorted + shuffle", changes=NO_SYNC),
    RANKING_DEFAULT,
    RANKING_CHUNKS,
)
RETRIEVAL_IID = Arm(name="iid + sync + gather", changes=IID | NO_MASK)
RETRIEVAL_DEFAULT = Arm(name="default: sync + mask + shuffle + gather")
RETRIEVAL_CHUNKS = Arm(name="default, chunks of 4", changes={"chunk_rows": 4})
RETRIEVAL_SORTED = Arm(name="sorted", changes=SORTED | NO_SYNC | NO_MASK | NO_GATHER)
RETRIEVAL_MASKED = Arm(name="sorted + sync + mask", changes=SORTED | NO_GATHER)
RETRIEVAL_ARMS = (
    Arm(name="iid", changes=IID | NO_SYNC | NO_MASK | NO_GATHER),
    Arm(name="iid + sync", changes=IID | NO_MASK | NO_GATHER),
    RETRIEVAL_IID,
    RETRIEVAL_SORTED,
    Arm(name="sorted + sync", changes=SORTED | NO_MASK | NO_GATHER),
    Arm(name="sorted + mask", changes=SORTED | NO_SYNC | NO_GATHER),
    RETRIEVAL_MASKED,
    Arm(name="sorted + sync + mask + gather", changes=SORTED),
    Arm(name="sorted + sync + mask + shuffle", changes=NO_GATHER),
    RETRIEVAL_DEFAULT,
    Arm(name="default, same-user negatives kept", changes=NO_MASK),
    RETRIEVAL_CHUNKS,
)
LEARNING_RATE, RATES = 0.003, (1.0, 3.0, 10.0)
"""The one hyper-parameter that the library leaves to its user, and factors on it and on that of the tables."""


def recipe(task: str, default: Arm) -> tuple[Arm, ...]:
    """The default, and what else its optimisers, temperature and passes over the log could be: one at a time."""
    others: dict[str, tuple[Any, ...]] = {
        "learning_rate": (0.001, 0.01),
        "table_learning_rate": (0.02, 0.3),
        "table_optimizer": ("adamw",),
        "max_epochs": (2,),
        **({"temperature": (0.1, 0.4), "log_q": ("none",)} if task == "retrieval" else {}),
    }
    ones = (Arm(name=f"{name} = {value}", changes={name: value}) for name, values in others.items() for value in values)
    return (default, *ones)


def at_rates(*arms: Arm) -> tuple[Arm, ...]:
    """Every arm at each of the same few rates: steps of so different sizes want different ones."""
    return tuple(
        Arm(
            name=f"{arm.name}, rates x {rate:g}",
            changes={
                **arm.changes,
                "learning_rate": rate * LEARNING_RATE,
                "table_learning_rate": rate * TrainingConfig.table_learning_rate,
            },
        )
        for arm in arms
        for rate in RATES
    )
