"""`python -m reqdedup.training run.json`: train as the file says, with its own ranks or, under
torchrun, as one of them.

python -m reqdedup.training out_dir/run.json [--resume]
torchrun --nproc-per-node 2 -m reqdedup.training out_dir/run.json

When torchrun starts its ranks again (`--max-restarts`), they go on from the last checkpoint without being told to.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from reqdedup.environment import variables
from reqdedup.models.checkpoint import CHECKPOINT_NAME
from reqdedup.training.columns import check_columns
from reqdedup.training.devices import backend_of
from reqdedup.training.export import export_checkpoint
from reqdedup.training.launch import RankError
from reqdedup.training.loop import BUNDLE_NAME, read_run, train
from reqdedup.training.progress import TrainingProgress
from reqdedup.training.rank_run import run_rank
from reqdedup.training.ranks import sum_over_ranks
from reqdedup.training.replacing import resumed_folder


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reqdedup.training", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run as JSON, as train() writes it: run.json")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint of the run's out_dir")
    options = parser.parse_args(arguments)
    try:
        folder, is_torchrun = options.run.parent, dist.is_torchelastic_launched()
        if options.resume and not is_torchrun:  # whose ranks write into out_dir itself
            folder = resumed_folder(folder)
        config, source, out_dir, snapshot_id = read_run(folder / options.run.name)
        check_columns(config, source.schema)
        if is_torchrun:
            torch.set_num_threads(1)
            dist.init_process_group(backend_of(config.device), timeout=timedelta(seconds=config.collective_timeout_s))
            resume = options.resume or (_is_restarted() and (out_dir / CHECKPOINT_NAME).exists())
            metrics = run_rank(_print_progress, config, source, str(out_dir), snapshot_id, resume).metrics
            is_first = dist.get_rank() == 0
            dist.destroy_process_group()
            if is_first:
                export_checkpoint(out_dir / CHECKPOINT_NAME, source, out_dir / BUNDLE_NAME)
        else:
            result = train(
                config,
                source,
                out_dir=out_dir,
                progress=_print_progress,
                resume=options.resume,
                snapshot_id=snapshot_id,
            )
            metrics, is_first = result.metrics, True
    except (ValueError, RankError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if is_first:
        print(json.dumps(metrics, indent=2))
    return 0


def _is_restarted() -> bool:
    """Whether torchrun has started the ranks before; only the agent whose rank failed counts it, so all are asked."""
    return sum_over_ranks([int(variables().get("TORCHELASTIC_RESTART_COUNT", 0))])[0] > 0


def _print_progress(progress: TrainingProgress) -> None:
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
