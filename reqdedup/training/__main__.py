"""Train as a run.json says, with ranks of its own or, under torchrun, as one of its ranks.

python -m reqdedup.training out_dir/run.json [--resume]
torchrun --nproc-per-node 2 -m reqdedup.training out_dir/run.json

When torchrun starts its ranks again (`--max-restarts`), they go on from the last checkpoint without being told to.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist

from reqdedup.training.launch import RankError
from reqdedup.training.loop import TrainingResult, read_run, train
from reqdedup.training.progress import TrainingProgress
from reqdedup.training.replacing import resumed_folder
from reqdedup.training.torchrun import train_as_rank


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reqdedup.training", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run as JSON, as train() writes it: run.json")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint of the run's out_dir")
    options = parser.parse_args(arguments)
    try:
        folder = resumed_folder(options.run.parent) if options.resume else options.run.parent
        config, source, out_dir, snapshot_id = read_run(folder / options.run.name)
        run: Callable[..., TrainingResult | None] = train_as_rank if dist.is_torchelastic_launched() else train
        result = run(
            config,
            source,
            out_dir=out_dir,
            progress=_print_progress,
            resume=options.resume,
            snapshot_id=snapshot_id,
        )
    except (ValueError, RankError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if result is not None:
        print(json.dumps(result.metrics, indent=2))
    return 0


def _print_progress(progress: TrainingProgress) -> None:
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
