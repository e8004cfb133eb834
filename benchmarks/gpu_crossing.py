"""Crossing attention on a GPU beside every other way to compute it: `make bench-gpu`.

    python -m benchmarks.gpu_crossing [--dtype bfloat16]

The correctness gate first: each variant against crossing attention by padded SDPA in float32, which the tests compare
with the plain loop. Then time by CUDA events, variants in turns. Result rows hold TFLOP/s, the fraction of the measured
peak of a large matrix product, and the time against the duplicated baseline (expanded K/V). A variant that fails has a
row that says why; where it is ours the exit code is 1. Without a CUDA device it says so and exits with code 2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.crossing_variants import VARIANTS, Inputs, Variant, Workload
from benchmarks.gpu_models import model_rows, serving_rows
from benchmarks.record import write_results

NO_DEVICE = 2
PUBLISHED = "621 TFLOP/s, 63% of peak, forward on a forked Triton; 425, 43%, on plain Triton (H100)"
FORWARD_TARGET, BACKWARD_TARGET = 0.63, 0.50
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
WORKLOADS = (
    Workload(requests=32, length=1024, candidates=64, heads=2, head_width=128),
    Workload(requests=32, length=2048, candidates=64, heads=2, head_width=128),
    *(
        Workload(requests=max(1, 65_536 // length), length=length, candidates=128, heads=4, head_width=64)
        for length in (256, 1024, 4096, 16_384)
    ),
)


class Milliseconds(NamedTuple):
    median: float
    low: float
    high: float


def matrix_product_peak(dtype: torch.dtype, *, size: int = 8192) -> float:
    """TFLOP/s of one large matrix product on this device: the peak that a kernel can be compared with."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    times = time_in_turns({"peak": lambda: a @ b}, rounds=20)["peak"]
    return 2 * size**3 / times.median / 1e9


def time_in_turns(
    runs: dict[str, Callable[[], object]], *, rounds: int = 15, warm_up: int = 3
) -> dict[str, Milliseconds]:
    """Milliseconds of one call by CUDA events; the L2 cache is overwritten before each."""
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    for run in runs.values():
        for _ in range(warm_up):
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            taken[name].append(begin.elapsed_time(end))
    return {name: Milliseconds(statistics.median(ms), min(ms), max(ms)) for name, ms in taken.items()}


def check(variant: Variant, inputs: Inputs, *, backward: bool) -> None:
    """The correctness gate; raises ValueError where the variant differs from padded SDPA in float32."""
    exact = inputs.to(torch.float32)
    wanted = [VARIANTS["sdpa"].forward(exact)]
    found = [variant.forward(inputs)]
    if backward:
        wanted += torch.autograd.grad(wanted[0], exact.tensors, exact.grad)
        found += torch.autograd.grad(found[0], inputs.tensors, inputs.grad)
    tolerance = TOLERANCE[inputs.dtype]
    for name, ours, law in zip(("out", "query", "self_key", "self_value", "key", "value"), found, wanted, strict=False):
        error, scale = (ours.float() - law).abs().max(), law.abs().max()
        if not error <= tolerance * scale + tolerance:
            raise ValueError(f"gate: {name} differs by {error:.3g} of {scale:.3g}")


def measure(workload: Workload, dtype: torch.dtype, peak: float) -> list[dict[str, Any]]:
    """Result rows of one shape, forward and backward; a variant that fails gets a row that says why."""
    inputs = Inputs.random(workload, dtype=dtype, device="cuda")
    rows: list[dict[str, Any]] = []
    for direction, target in (("forward", FORWARD_TARGET), ("backward", BACKWARD_TARGET)):
        backward = direction == "backward"
        runs: dict[str, Callable[[], object]] = {}
        for name, variant in VARIANTS.items():
            if backward and not variant.has_backward:
                continue
            try:
                check(variant, inputs, backward=backward)
                runs[name] = variant.backward_run(inputs) if backward else variant.forward_run(inputs)
            except (
                ValueError,
                RuntimeError,
            ) as error:  # out of memory, no kernel for this shape: theirs, not the run's
                rows.append(_row(workload, dtype, name, direction) | {"value": None, "error": str(error)[:200]})
                torch.cuda.empty_cache()
        timed = time_in_turns(runs)
        duplicated = timed.get("expanded")
        for name, ms in timed.items():
            achieved = workload.flops(backward=backward) / ms.median / 1e9
            rows.append(
                _row(workload, dtype, name, direction)
                | {
                    "value": achieved,
                    "unit": "TFLOP/s",
                    "fraction_of_peak": achieved / peak,
                    "peak": peak,
                    "target": target * peak if name == "triton" else None,
                    "milliseconds": ms.median,
                    "spread": [ms.low, ms.high],
                    "times_expanded": duplicated.median / ms.median if duplicated else None,
                    "published": PUBLISHED if name == "triton" and not backward else None,
                }
            )
    return rows


def _row(workload: Workload, dtype: torch.dtype, variant: str, direction: str) -> dict[str, Any]:
    sizes = workload._asdict() | {"dtype": str(dtype).removeprefix("torch.")}
    return {"claim": f"crossing attention {direction}", "variant": variant, "sizes": sizes, "target": None}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_crossing", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(
            f"bench-gpu: a CUDA device required, found none (torch {torch.__version__}, CUDA {torch.version.cuda}); "
            "run it on a machine with an NVIDIA GPU and a CUDA build of torch. Nothing was measured.",
            file=sys.stderr,
        )
        return NO_DEVICE
    dtype = getattr(torch, arguments.dtype)
    device = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    peak = matrix_product_peak(dtype)
    print(f"{device['device']}: {peak:.0f} TFLOP/s in a matrix product, {arguments.dtype}")
    rows = []
    for workload in WORKLOADS:
        rows += measure(workload, dtype, peak)
        torch.cuda.empty_cache()
    rows += [*model_rows(time_in_turns), *serving_rows(time_in_turns)]
    for row in rows:
        value = "failed: " + row["error"] if row["value"] is None else f"{row['value']:.1f} {row['unit']}"
        print(f"{row['claim']:<28} {row['variant']:<16} {row['sizes']}  {value}")
    print(write_results("gpu_crossing", [row | device for row in rows]))
    ours_failed = [row for row in rows if row["value"] is None and row["variant"] in ("triton", "reqdedup")]
    return 1 if ours_failed else 0


if __name__ == "__main__":
    sys.exit(main())
