"""The study as it is run: logs, blocks, hyper-parameters, seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.study.arms import (
    LEARNING_RATE,
    RANKING_ARMS,
    RANKING_DEFAULT,
    RANKING_IID,
    RANKING_SORTED,
    RETRIEVAL_ARMS,
    RETRIEVAL_DEFAULT,
    RETRIEVAL_IID,
    RETRIEVAL_MASKED,
    RETRIEVAL_SORTED,
    Arm,
    Block,
    at_rates,
    recipe,
)
from benchmarks.study.log import HISTORY, StudyLog, movielens_log, synthetic_log
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.training import TrainingConfig

LARGE, MOVIELENS = "large catalogue", "movielens"
TASKS = ("ranking", "retrieval")
MODEL: dict[str, Any] = {
    "width": 32,
    "num_layers": 1,
    "ffn_width": 64,
    "hidden_widths": (64, 32),
    "max_history": HISTORY,
}
"""The library's models in small, for many runs."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the study is.

    ranks: processes W of the comparisons of every fix; the others have one.
    main_seeds, side_seeds, movielens_seeds: paired, each with its own log (MovieLens: split), weights and order; for
        the comparisons of every fix, and for the rest, and for that log.
    ranking_rows, retrieval_rows: of a step over all ranks.
    equal_passes, equal_pass_steps: of the user tower per step, and steps.
    """

    ranks: int = 4
    main_seeds: int = 4
    side_seeds: int = 3
    movielens_seeds: int = 3
    num_users: int = 2_000
    num_items: int = 50_000
    ranking_rows: int = 1024
    retrieval_rows: int = 512
    equal_passes: int = 64
    equal_pass_steps: int = 64
    gradient_seeds: int = 1
    gradient_steps: int = 64
    catalogue_items: int = 5_000


FULL = Sizes()
QUICK = Sizes(
    ranks=2,
    main_seeds=1,
    side_seeds=1,
    movielens_seeds=1,
    num_users=30,
    num_items=2_000,
    ranking_rows=256,
    retrieval_rows=64,
    equal_passes=8,
    equal_pass_steps=2,
    gradient_seeds=1,
    gradient_steps=4,
    catalogue_items=200,
)


def make_log(name: str, seed: int, sizes: Sizes, folder: Path, movielens: Path | None) -> StudyLog:
    """LARGE: the synthetic log.  MOVIELENS: needs the folder of MovieLens 100K."""
    if name == LARGE:
        return synthetic_log(folder, seed=seed, num_users=sizes.num_users, num_items=sizes.num_items)
    if movielens is None:
        raise ValueError("the movielens log needs its folder; give --movielens FOLDER")
    return movielens_log(folder, movielens)


def blocks(sizes: Sizes, *, with_movielens: bool) -> list[Block]:
    """Every comparison: all of them on the large catalogue, the main one on MovieLens too."""
    rows = {"ranking": sizes.ranking_rows, "retrieval": sizes.retrieval_rows}
    main = {"ranking": (RANKING_ARMS, RANKING_IID), "retrieval": (RETRIEVAL_ARMS, RETRIEVAL_IID)}
    found = [
        Block(
            name=f"{task}, {sizes.ranks} ranks",
            task=task,
            log=LARGE,
            rows=rows[task],
            ranks=sizes.ranks,
            arms=arms,
            references=(iid.name,),
            num_seeds=sizes.main_seeds,
        )
        for task, (arms, iid) in main.items()
    ]
    for task, default in (("ranking", RANKING_DEFAULT), ("retrieval", RETRIEVAL_DEFAULT)):
        arms = at_rates(main[task][1], default)
        found.append(
            Block(
                name=f"{task}, {sizes.equal_passes} passes per step",
                task=task,
                log=LARGE,
                passes=sizes.equal_passes,
                num_steps=sizes.equal_pass_steps,
                arms=arms,
                references=tuple(arm.name for arm in arms if arm.name.startswith("iid")),
                num_seeds=sizes.side_seeds,
            )
        )
        found.append(
            Block(
                name=f"{task}, recipe",
                task=task,
                log=LARGE,
                rows=rows[task],
                arms=recipe(task, default),
                num_seeds=sizes.side_seeds,
            )
        )
    few = {
        "ranking": (RANKING_IID, RANKING_SORTED, RANKING_DEFAULT),
        "retrieval": (RETRIEVAL_IID, RETRIEVAL_SORTED, RETRIEVAL_MASKED, RETRIEVAL_DEFAULT),
    }
    for task in TASKS if with_movielens else ():
        name = f"{task}, {sizes.ranks} ranks"
        seeds = sizes.movielens_seeds
        found.append(
            Block(name=name, task=task, log=MOVIELENS, rows=256, ranks=sizes.ranks, arms=few[task], num_seeds=seeds)
        )
    return found


def configuration(block: Block, arm: Arm, log: StudyLog, sizes: Sizes, seed: int) -> TrainingConfig:
    """The library's defaults, but for sizes and what the arm changes."""
    schema = log.source.schema
    if block.task == "ranking":
        model: DCATConfig | TwoTowerConfig = DCATConfig.from_schema(schema, labels=["click"], **MODEL)
    else:
        model = TwoTowerConfig.from_schema(schema, output_width=MODEL["width"], **MODEL)
    rows_per_piece = log.rows_per_piece(block.task, arm.chunk_rows)
    values: dict[str, Any] = {
        "num_steps": block.num_steps or 1_000_000,
        "requests_per_step": block.pieces_per_step(rows_per_piece),
        "learning_rate": LEARNING_RATE,
        "world_size": block.ranks,
        "seed": seed,
        "held_out": 0.25,
        "eval_requests": 1_000_000,
        "catalogue_items": sizes.catalogue_items,
        "checkpoint_every": 1_000_000,
        "prefetch_batches": 0,
        **arm.changes,
    }
    return TrainingConfig(model=model, **values)
