"""All claims about training on a CPU: `make bench-training`, at most ten minutes on two shared cores.

    python -m benchmarks.training [--only retrieval_step share_context]

Each claim passes its correctness gate (loss and gradients of both variants) before anything is timed. One torch thread;
CPU time, interleaved, ratios within a round (`benchmarks.interleaved`). A whole run replaces
`benchmarks/results/training.jsonl`, one of some claims their rows.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from benchmarks import training_end_to_end, training_steps
from benchmarks.interleaved import line
from benchmarks.record import write_results

CLAIMS = {
    "retrieval_step": training_steps.retrieval_step,
    "retrieval_and_ranking_end_to_end": training_end_to_end.end_to_end,
    "ranking_step": training_steps.ranking_step,
    "scoring": training_steps.scoring,
    "loader": training_end_to_end.loader_against_appetite,
    "break_even": training_steps.break_even,
    "share_context": training_steps.share_context,
    "last_event": training_steps.last_event,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", choices=list(CLAIMS), help="some of the claims; the others keep their rows"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, measure in CLAIMS.items():
        if arguments.only is None or name in arguments.only:
            for row in measure():
                rows.append(row)
                print(line(row), flush=True)
    measured = [""] if arguments.only is None else [row["claim"] for row in rows]
    print(write_results("training", rows, replaced=tuple(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
