"""`train` by the ranks that torchrun started: each calls `train_as_rank`, rank 0 begins and ends the run.

torchrun starts its ranks again if one dies (`--max-restarts`). A run that it has begun then goes on from its last
checkpoint without being told to; whose a run is, a file beside the checkpoint says until the run has ended.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from reqdedup.environment import variables
from reqdedup.models.checkpoint import CHECKPOINT_NAME
from reqdedup.training.config import TrainingConfig
from reqdedup.training.devices import backend_of
from reqdedup.training.launch import RankError
from reqdedup.training.loop import TrainingResult, begun_run, ended_run
from reqdedup.training.plan import Source, opened, snapshot_id_of
from reqdedup.training.progress import TrainingProgress
from reqdedup.training.rank_run import run_rank
from reqdedup.training.ranks import from_all_ranks, rank_and_world_size, sum_over_ranks
from reqdedup.training.replacing import LAUNCH_NAME, is_left_by


def train_as_rank(
    config: TrainingConfig,
    source: Source,
    *,
    out_dir: Path | str,
    progress: Callable[[TrainingProgress], None] | None = None,
    resume: bool = False,
    snapshot_id: int | None = None,
) -> TrainingResult | None:
    """`train` on all of torchrun's ranks, each of which calls this once, before it has a process group.

    out_dir: a folder that every rank sees.
    Returns the result on rank 0, None on the others. Raises as `train` does, on every rank; a rank that hangs or died
    is known after `config.collective_timeout_s`.
    """
    started, config, out_dir = time.monotonic(), config.with_absolute_paths(), Path(out_dir)
    files, snapshot_id = opened(source), snapshot_id_of(source) or snapshot_id
    torch.set_num_threads(1)
    dist.init_process_group(backend_of(config.device), timeout=timedelta(seconds=config.collective_timeout_s))
    rank, world_size = rank_and_world_size()
    begun: tuple[Path, bool] | Exception | None = None
    is_restarted = sum_over_ranks([int(variables().get("TORCHELASTIC_RESTART_COUNT", 0))])[0] > 0
    if rank == 0:
        try:
            if world_size != config.world_size:
                raise ValueError(
                    f"torchrun: {config.world_size} ranks required, the world_size of the run, found {world_size}; "
                    "start so many, or change world_size, by which the requests of a step are dealt"
                )
            resume |= is_restarted and is_left_by(_launch(), out_dir)
            begun = begun_run(config, files, out_dir, snapshot_id, resume), resume
            (begun[0] / LAUNCH_NAME).write_text(_launch())
        except (ValueError, OSError) as error:
            begun = error
    begun = from_all_ranks(begun)[0]
    if isinstance(begun, Exception):
        dist.destroy_process_group()
        raise begun
    assert begun is not None
    folder, resume = begun
    try:
        mine = run_rank(progress or (lambda _: None), config, files, str(folder), snapshot_id, resume)
    except RuntimeError as error:  # of a collective too, if another rank died
        has_checkpoint = (folder / CHECKPOINT_NAME).exists()
        go_on = (
            f"the last checkpoint is in {folder}, --resume goes on" if has_checkpoint else "no checkpoint was written"
        )
        raise RankError(f"rank {rank} of {world_size} failed, or lost another: {error}; {go_on}", rank=rank) from error
    # outcomes are rank 0's own, and every rank gets what is gathered
    results = [mine, *from_all_ranks(replace(mine, outcomes=None, rivals={}))[1:]]
    dist.destroy_process_group()  # what comes now is rank 0's alone
    return ended_run(config, source, folder, out_dir, snapshot_id, results, started) if rank == 0 else None


def _launch() -> str:
    """The start of torchrun that this rank belongs to, whose restarts have the same; rank 0's."""
    run_id = variables().get("TORCHELASTIC_RUN_ID", "none")  # of --standalone or --rdzv-id
    return f"{socket.gethostname()} {os.getppid()}" if run_id == "none" else run_id
