"""The study as it is run: logs, blocks, hyper-parameters, seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.study.arms import (
    EPOCHS_ARMS,
    MANY_RANKS_RETRIEVAL_ARMS,
    NEGATIVES_ARMS,
    NO_NORM_ARMS,
    RANKING_ALL,
    RANKING_ARMS,
    RANKING_IID,
    RETRIEVAL_ALL,
    RETRIEVAL_ARMS,
    RETRIEVAL_IID,
    SAME_USER_ARMS,
    Block,
    Steps,
    Tuned,
    at_rates,
    sweep,
    with_all_fixes,
)
from benchmarks.study.log import StudyLog, movielens_log, synthetic_log

LARGE, MOVIELENS = "large catalogue", "movielens"
TUNING_SEED = 100
"""A log and weights of its own: no figure of the study uses it."""

TUNED: dict[tuple[str, str], Tuned] = {
    ("ranking", LARGE): Tuned(learning_rate=0.01, table_rate=0.1, weight_decay=0.01),
    ("ranking", MOVIELENS): Tuned(learning_rate=0.03, table_rate=0.1, weight_decay=0.01),
    ("retrieval", LARGE): Tuned(learning_rate=0.01, table_rate=0.3, weight_decay=0.01, temperature=0.2),
    ("retrieval", MOVIELENS): Tuned(learning_rate=0.001, table_rate=0.1, weight_decay=0.01, temperature=0.4),
}
"""Tuned once on the IID arm with every fix, by `--tune` (results/study_tuning.jsonl), then the same for all arms."""

MOVIELENS_STEPS = Steps(world_size=8, rows=32)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the study is.

    main_seeds, side_seeds: paired, each with its own log (MovieLens: split), weights and order; for the comparisons of
    every fix, and for the rest.  close_seeds: for ranking with all fixes beside IID, 0.1% apart.  movielens_seeds: for
    all arms of that small log.  held_out: share of the users.  ranking_rows, retrieval_rows: per rank and step, for
    each of world_sizes.  equal_passes: of the user tower, per rank and step.
    """

    main_seeds: int
    side_seeds: int
    close_seeds: int
    movielens_seeds: int
    held_out: float
    num_users: int
    num_items: int
    ranking_rows: int
    retrieval_rows: tuple[int, ...]
    equal_passes: tuple[int, ...]
    equal_pass_steps: int
    world_sizes: tuple[int, ...]
    gradient_seeds: int
    gradient_steps: int


FULL = Sizes(
    main_seeds=6,
    side_seeds=4,
    close_seeds=48,
    movielens_seeds=12,
    held_out=0.25,
    num_users=6_000,
    num_items=200_000,
    ranking_rows=128,
    retrieval_rows=(64, 32),
    equal_passes=(8, 32),
    equal_pass_steps=160,
    world_sizes=(8, 32),
    gradient_seeds=2,
    gradient_steps=100,
)
QUICK = Sizes(
    main_seeds=1,
    side_seeds=1,
    close_seeds=1,
    movielens_seeds=1,
    held_out=0.25,
    num_users=30,
    num_items=2_000,
    ranking_rows=64,
    retrieval_rows=(16,),
    equal_passes=(4,),
    equal_pass_steps=4,
    world_sizes=(4,),
    gradient_seeds=1,
    gradient_steps=4,
)


def make_log(name: str, seed: int, sizes: Sizes, movielens: Path | None) -> StudyLog:
    """LARGE: the synthetic log.  MOVIELENS: needs the folder of MovieLens 100K."""
    if name == LARGE:
        return synthetic_log(seed=seed, num_users=sizes.num_users, num_items=sizes.num_items, held_out=sizes.held_out)
    if movielens is None:
        raise ValueError("the movielens log needs its folder; give --movielens FOLDER")
    return movielens_log(movielens, seed=seed, held_out=0.2)


def blocks(sizes: Sizes, *, with_movielens: bool) -> list[Block]:
    """Every comparison: all of them on the large catalogue, the main one on the other logs too."""
    first, rows = sizes.world_sizes[0], {"ranking": sizes.ranking_rows, "retrieval": sizes.retrieval_rows[0]}
    step = {task: Steps(world_size=first, rows=rows[task]) for task in rows}
    found = _main(LARGE, step["ranking"], step["retrieval"], sizes)
    for ranks, retrieval_rows in zip(sizes.world_sizes[1:], sizes.retrieval_rows[1:], strict=True):
        many = Steps(world_size=ranks, rows=rows["ranking"]), Steps(world_size=ranks, rows=retrieval_rows)
        ranking, retrieval = _main(LARGE, *many, sizes)
        found += [ranking, replace(retrieval, arms=MANY_RANKS_RETRIEVAL_ARMS)]
    for passes in sizes.equal_passes:
        found += [_equal_passes(task, first, passes, sizes) for task in rows]
    one_reader = {task: Steps(world_size=1, rows=rows[task] * first) for task in rows}
    side = [
        *((f"{task}, users per step", task, one_reader[task], sweep(task)) for task in rows),
        *((f"{task}, no norm", task, step[task], NO_NORM_ARMS[task]) for task in rows),
        ("ranking, rates", "ranking", step["ranking"], at_rates(RANKING_IID, RANKING_ALL)),
        ("retrieval, rates", "retrieval", step["retrieval"], at_rates(RETRIEVAL_IID, RETRIEVAL_ALL)),
        ("retrieval, same-user weight", "retrieval", step["retrieval"], SAME_USER_ARMS),
        ("retrieval, negatives", "retrieval", step["retrieval"], NEGATIVES_ARMS),
        ("retrieval, epochs", "retrieval", step["retrieval"], EPOCHS_ARMS),
    ]
    for name, task, steps, arms in side:
        references = tuple(arm.name for arm in arms if arm.name.startswith("iid") and "rates" in arm.name)
        found.append(
            Block(
                name=name,
                task=task,
                log=LARGE,
                steps=steps,
                arms=arms,
                references=references,
                num_seeds=sizes.side_seeds,
            )
        )
    if with_movielens:
        found += _main(MOVIELENS, MOVIELENS_STEPS, MOVIELENS_STEPS, sizes)
    return found


def _main(log: str, ranking: Steps, retrieval: Steps, sizes: Sizes) -> list[Block]:
    """Every fix alone and together, at equal rows; the reference is IID with every fix that is not about order."""
    num_seeds = sizes.movielens_seeds if log == MOVIELENS else sizes.main_seeds
    return [
        Block(
            name=f"ranking, {ranking.world_size} ranks",
            task="ranking",
            log=log,
            steps=ranking,
            arms=RANKING_ARMS,
            references=(RANKING_IID.name,),
            num_seeds=num_seeds,
            close_arms=(RANKING_IID.name, RANKING_ALL.name) if log == LARGE else (),
            close_seeds=sizes.close_seeds,
        ),
        Block(
            name=f"retrieval, {retrieval.world_size} ranks",
            task="retrieval",
            log=log,
            steps=retrieval,
            arms=RETRIEVAL_ARMS,
            references=(RETRIEVAL_IID.name,),
            num_seeds=num_seeds,
        ),
    ]


def _equal_passes(task: str, ranks: int, passes: int, sizes: Sizes) -> Block:
    """Every arm at the same few rates, the reference being IID's best: steps of so different sizes
    want different ones."""
    chunk = 4 if task == "retrieval" else 8
    arms = [
        with_all_fixes(task, name="iid"),
        with_all_fixes(task, name=f"chunks of {chunk}", order="requests", chunk_rows=chunk),
    ]
    if passes == min(sizes.equal_passes):
        arms.append(with_all_fixes(task, name="whole requests", order="requests"))
    every = at_rates(*arms)
    return Block(
        name=f"{task}, {passes * ranks} passes per step",
        task=task,
        log=LARGE,
        steps=Steps(world_size=ranks, passes=passes, num_steps=sizes.equal_pass_steps),
        arms=every,
        references=tuple(arm.name for arm in every if arm.name.startswith("iid")),
        num_seeds=sizes.side_seeds,
    )
