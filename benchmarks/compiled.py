"""What `torch.compile` is worth to training on ragged batches: the token-wise half of a transformer layer, compiled.

    python -m benchmarks.compiled

All else of a layer is a matrix product or attention over ragged histories, which have kernels of their own; output,
norm, FFN and residual of packed tokens [N, D] are what a compiler could fuse. Each step has another N, as batches do.
One thread, CPU time forward and backward, eager and compiled in turns; compiling is timed on its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.interleaved import interleaved, ratio_row
from benchmarks.record import write_results
from reqdedup.models import DCATConfig
from reqdedup.models.transformer import SoftmaxLayer

WIDTHS = (32, 64, 128)
STEPS, ROUNDS = 8, 9
TOKENS = (4_000, 30_000)
"""Least and most of a step."""

Finish = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def steps(finish: Finish, width: int, num_heads: int) -> None:
    """Forward and backward of STEPS steps, each of another size."""
    for num_tokens in np.random.default_rng(0).integers(*TOKENS, STEPS).tolist():
        x = torch.ones(num_tokens, width, requires_grad=True)
        attended = torch.ones(num_tokens, num_heads, width // num_heads, requires_grad=True)
        finish(x, attended).sum().backward()


def measure(width: int) -> Iterator[dict[str, Any]]:
    config = DCATConfig(labels=("click",), width=width, num_heads=2, ffn_width=2 * width)
    layer = SoftmaxLayer(config)
    compiled: Finish = torch.compile(layer.finish, dynamic=True)
    started = time.process_time()
    steps(compiled, width, config.num_heads)
    first_s = time.process_time() - started
    runs = {
        "eager": partial(steps, layer.finish, width, config.num_heads),
        "compiled": partial(steps, compiled, width, config.num_heads),
    }
    timings = interleaved(runs, rounds=ROUNDS)
    claim = f"torch.compile of a layer's token-wise half, width {width}"
    sizes = {"steps": STEPS, "tokens": TOKENS, "width": width, "ffn_width": 2 * width}
    yield ratio_row(claim, timings, baseline="eager", ours="compiled", sizes=sizes)
    for name, value in (("first steps, compiling", first_s), ("eager steps", timings.median("eager"))):
        yield {"claim": claim, "variant": name, "value": value, "unit": "s of CPU", "target": None, "sizes": sizes}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    rows = [row for width in WIDTHS for row in measure(width)]
    for row in rows:
        print(f"{row['claim']}: {row['variant']} {row['value']:.3g} {row['unit']} {row.get('spread', '')}")
    print(write_results("compiled", rows))


if __name__ == "__main__":
    main()
