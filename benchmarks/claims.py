"""The command line of benchmarks whose claims are functions of a number of rounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from benchmarks.interleaved import line
from benchmarks.record import write_results


def run(
    name: str,
    about: str,
    claims: Mapping[str, Callable[[int], Iterable[dict[str, Any]]]],
    argv: list[str] | None = None,
) -> int:
    """Measure all claims, on one thread, and record them in benchmarks/results/NAME.jsonl; some of them only print."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(claims), help="some of them; nothing is recorded then")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds of each comparison (default 9)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for claim, measure in claims.items():
        if arguments.only is None or claim in arguments.only:
            for row in measure(arguments.rounds):
                rows.append(row)
                print(line(row), flush=True)
    if arguments.only is None:
        print(write_results(name, rows))
    return 0
