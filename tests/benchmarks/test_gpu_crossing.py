"""The GPU benchmark without a GPU: its variants are right, and it says clearly that it needs one."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_crossing, gpu_models
from benchmarks.crossing_variants import VARIANTS, Inputs, Workload
from reqdedup.ops.crossing_attention import crossing_attention

SMALL = Workload(requests=3, length=7, candidates=4, heads=2, head_width=8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "triton"])  # that one has tests of its own
def test_every_variant_equals_the_loop(name):
    inputs, variant = Inputs.random(SMALL, dtype=torch.float32, device="cpu"), VARIANTS[name]
    law = crossing_attention(*inputs.tensors, inputs.history_offsets_R1, inputs.row_offsets_R1, backend="naive")
    if name == "flex" or not variant.has_backward:  # flex has no backward on a CPU
        for x in inputs.tensors:
            x.requires_grad_(False)
    out = variant.forward(inputs)
    torch.testing.assert_close(out, law, rtol=1e-5, atol=1e-5)
    if out.requires_grad:
        wanted = torch.autograd.grad(law, inputs.tensors, inputs.grad)
        for ours, theirs in zip(torch.autograd.grad(out, inputs.tensors, inputs.grad), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_gate_closes_for_a_wrong_variant(monkeypatch):
    inputs = Inputs.random(SMALL, dtype=torch.float32, device="cpu")
    gpu_crossing.check(VARIANTS["expanded"], inputs, backward=True)
    wrong = gpu_crossing.Variant(lambda inputs: VARIANTS["expanded"].forward(inputs) * 1.01)
    with pytest.raises(ValueError, match="gate: out differs"):
        gpu_crossing.check(wrong, inputs, backward=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: `make bench-gpu` would run")
def test_without_a_gpu_it_says_so_and_fails(capsys):
    assert gpu_crossing.main([]) == gpu_crossing.NO_DEVICE
    assert "a CUDA device required, found none" in capsys.readouterr().err


@pytest.mark.slow
def test_the_row_of_serving_is_timed_once_its_answers_agree():
    def once(runs):
        for run in runs.values():
            run()
        return {name: gpu_crossing.Milliseconds(ms, ms, ms) for name, ms in zip(runs, (2.0, 5.0), strict=True)}

    (row,) = gpu_models.serving_rows(once, lengths=(64,), device="cpu")
    assert (row["claim"], row["value"], row.get("error")) == ("ranking, kept context", 2.5, None)
