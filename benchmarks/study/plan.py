"""The study as it is run: logs, blocks, hyper-parameters, seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.study.arms import (
    MANY_RANKS_RETRIEVAL_ARMS,
    NO_NORM_ARMS,
    RANKING_ARMS,
    RETRIEVAL_ARMS,
    Block,
    Steps,
    Tuned,
    sweep,
    with_all_fixes,
)
from benchmarks.study.log import StudyLog, movielens_log, synthetic_log

LARGE, HEAD_HEAVY, MOVIELENS = "large catalogue", "head-heavy", "movielens"
TUNING_SEED = 100
"""A log and weights of its own: no figure of the study uses it."""

TUNED: dict[tuple[str, str], Tuned] = {
    ("ranking", LARGE): Tuned(learning_rate=1e-2, table_rate=0.1, weight_decay=0.01),
    ("ranking", HEAD_HEAVY): Tuned(learning_rate=1e-2, table_rate=0.1, weight_decay=0.01),
    ("ranking", MOVIELENS): Tuned(learning_rate=1e-2, table_rate=0.1, weight_decay=0.01),
    ("retrieval", LARGE): Tuned(learning_rate=3e-3, table_rate=0.1, weight_decay=0.01),
    ("retrieval", HEAD_HEAVY): Tuned(learning_rate=3e-3, table_rate=0.1, weight_decay=0.01),
    ("retrieval", MOVIELENS): Tuned(learning_rate=3e-3, table_rate=0.1, weight_decay=0.01),
}
"""Tuned once on the IID arm with every fix, by `--tune` (results/study_tuning.jsonl), then the same for all arms."""


GRADIENT_SEEDS = 2
MOVIELENS_STEPS = Steps(world_size=8, rows=32, epochs=4)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the study is.

    seeds: paired, each with its own log (MovieLens: split), weights and order.  ranking_rows, retrieval_rows: per rank
    and step, for each of world_sizes.  equal_passes: of the user tower, per rank and step.
    """

    seeds: tuple[int, ...]
    num_users: int
    num_items: int
    ranking_rows: int
    retrieval_rows: tuple[int, ...]
    equal_passes: tuple[int, ...]
    equal_pass_steps: int
    world_sizes: tuple[int, ...]
    gradient_steps: int
    with_head_heavy: bool = True


FULL = Sizes(
    seeds=(0, 1, 2, 3),
    num_users=5_000,
    num_items=200_000,
    ranking_rows=128,
    retrieval_rows=(64, 32),
    equal_passes=(8, 32),
    equal_pass_steps=256,
    world_sizes=(8, 32),
    gradient_steps=100,
)
QUICK = Sizes(
    seeds=(0, 1),
    num_users=30,
    num_items=2_000,
    ranking_rows=64,
    retrieval_rows=(16,),
    equal_passes=(4,),
    equal_pass_steps=4,
    world_sizes=(4,),
    gradient_steps=4,
    with_head_heavy=False,
)


def make_log(name: str, seed: int, sizes: Sizes, movielens: Path | None) -> StudyLog:
    """LARGE: low popularity skew.  HEAD_HEAVY: the generator's default.  MOVIELENS: needs the folder of MovieLens 100K."""
    if name == MOVIELENS:
        if movielens is None:
            raise ValueError("the movielens log needs its folder; give --movielens FOLDER")
        return movielens_log(movielens, seed=seed, held_out=0.2)
    exponent = {LARGE: 0.6, HEAD_HEAVY: 0.9}[name]
    return synthetic_log(
        seed=seed, num_users=sizes.num_users, num_items=sizes.num_items, exponent=exponent, held_out=0.1
    )


def blocks(sizes: Sizes, *, with_movielens: bool) -> list[Block]:
    """Every comparison: all of them on the large catalogue, the main one on the other logs too."""
    first, rows = sizes.world_sizes[0], {"ranking": sizes.ranking_rows, "retrieval": sizes.retrieval_rows[0]}
    found = _main(LARGE, *(Steps(world_size=first, rows=rows[task]) for task in rows))
    for ranks, retrieval_rows in zip(sizes.world_sizes[1:], sizes.retrieval_rows[1:], strict=True):
        ranking, retrieval = _main(
            LARGE, Steps(world_size=ranks, rows=rows["ranking"]), Steps(world_size=ranks, rows=retrieval_rows)
        )
        found += [ranking, replace(retrieval, arms=MANY_RANKS_RETRIEVAL_ARMS)]
    for passes in sizes.equal_passes:
        found += [_equal_passes(task, first, passes, sizes) for task in rows]
    for task, arms in NO_NORM_ARMS.items():
        steps, one_reader = Steps(world_size=first, rows=rows[task]), Steps(world_size=1, rows=rows[task] * first)
        found.append(Block(name=f"{task}, no norm", task=task, log=LARGE, steps=steps, arms=arms))
        found.append(Block(name=f"{task}, users per step", task=task, log=LARGE, steps=one_reader, arms=sweep(task)))
    if sizes.with_head_heavy:
        found += _main(HEAD_HEAVY, *(Steps(world_size=first, rows=rows[task]) for task in rows))
    return found + (_main(MOVIELENS, MOVIELENS_STEPS, MOVIELENS_STEPS) if with_movielens else [])


def _main(log: str, ranking: Steps, retrieval: Steps) -> list[Block]:
    """Every fix alone and together, at equal rows; the reference is IID with every fix that is not about order."""
    return [
        Block(
            name=f"{task}, {steps.world_size} ranks",
            task=task,
            log=log,
            steps=steps,
            arms=arms,
            references=(reference,),
        )
        for task, steps, arms, reference in (
            ("ranking", ranking, RANKING_ARMS, "iid + sync"),
            ("retrieval", retrieval, RETRIEVAL_ARMS, "iid + sync + gather"),
        )
    ]


def _equal_passes(task: str, ranks: int, passes: int, sizes: Sizes) -> Block:
    """IID gets the best of three learning rates at its own, much smaller batch; the others keep theirs."""
    iid = [with_all_fixes(task, name=f"iid, rates x {factor:g}", rate_factor=factor) for factor in (0.3, 1.0, 3.0)]
    chunk = 4 if task == "retrieval" else 8
    shared = [with_all_fixes(task, name=f"chunks of {chunk}", order="requests", chunk_rows=chunk)]
    if passes == min(sizes.equal_passes):
        shared.append(with_all_fixes(task, name="whole requests", order="requests"))
    return Block(
        name=f"{task}, {passes * ranks} passes per step",
        task=task,
        log=LARGE,
        steps=Steps(world_size=ranks, passes=passes, num_steps=sizes.equal_pass_steps),
        arms=(*iid, *shared),
        references=tuple(arm.name for arm in iid),
    )
