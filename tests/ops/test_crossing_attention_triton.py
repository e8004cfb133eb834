"""The Triton kernels without a GPU: right in the interpreter, compiled for GPUs, refused where they cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reqdedup.ops.crossing_attention import crossing_attention
from tests.ops.attention_inputs import SHAPES, random_inputs

triton = pytest.importorskip("triton", reason="Triton has no wheel for this platform; its kernels are not checked")

INDICES = (
    *("history_begin", "history_end", "history_end_of_row", "row_offsets", "context_offsets", "context_row_offsets"),
    *("tile_request", "tile_context", "tile_start"),
)
SHARED_MEMORY_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@pytest.mark.slow
def test_the_kernels_equal_the_loop_in_the_interpreter():
    tests = Path(__file__).with_name("interpreted_triton.py")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=tests.parents[2],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_tensors_of_a_cpu_are_refused():
    tensors, offsets = random_inputs(SHAPES["ragged"], torch.float32)
    with pytest.raises(ValueError, match="needs CUDA tensors, found cpu"):
        crossing_attention(*tensors, *offsets, backend="triton")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "width"),
    [(80, torch.bfloat16, 128), (90, torch.bfloat16, 128), (80, torch.float32, 256)],
    ids=str,
)
def test_the_kernels_compile_without_a_gpu_and_fit_its_shared_memory(capability, dtype, width, monkeypatch, tmp_path):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from reqdedup.ops import crossing_attention_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointer = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    for kernel in (module.forward_kernel, module.row_gradient_kernel, module.context_gradient_kernel):
        launch = module.launch_for(width, dtype, backward=kernel is not module.forward_kernel)
        possible_constants = {
            "width": width,
            "block_width": width,
            "block_rows": launch.block_rows,
            "block_tokens": launch.block_tokens,
            "has_prefixes": True,
            "upcast": False,
        }
        signature = {}
        for name in (parameter.name for parameter in kernel.params):
            if name in possible_constants:
                signature[name] = "constexpr"
            elif name in INDICES:
                signature[name] = "*i64"
            elif name in ("lse", "row_term"):
                signature[name] = "*fp32"
            elif name.startswith("scale"):
                signature[name] = "fp32"
            else:
                signature[name] = "i32" if name.startswith("num_") or name.endswith("_stride") else pointer
        constants = {name: x for name, x in possible_constants.items() if name in signature}
        aligned = {  # pointers and row strides are multiples of 16 in practice, and Triton specialises on it
            (position,): [["tt.divisibility", 16]]
            for position, (name, kind) in enumerate(signature.items())
            if kind.startswith("*") or name.endswith("_stride")
        }
        compiled = triton.compile(
            ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": launch.num_warps, "num_stages": launch.num_stages},
        )
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_MEMORY_BYTES[capability]
