"""Every backend of crossing attention against the plain loop, values and gradients, at awkward shapes."""

from __future__ import annotations

import pytest
import torch

from reqdedup.ops.crossing_attention import BACKENDS, crossing_attention
from tests.ops.attention_inputs import NAMES, SHAPES, SHARED, random_inputs, shared_inputs, value_and_gradients

FAST = ("sdpa", "flash")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_backend_equals_the_loop(shape, backend):
    tensors, offsets = random_inputs(SHAPES[shape])
    grad = torch.randn_like(tensors[0])
    expected = value_and_gradients("naive", tensors, offsets, grad)
    found = value_and_gradients(backend, tensors, offsets, grad)
    for name, ours, law in zip(("out", *NAMES), found, expected, strict=True):
        torch.testing.assert_close(ours, law, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", SHARED)
def test_requests_that_share_a_context_see_their_own_prefix(shape, backend):
    tensors, offsets, prefixes = shared_inputs(SHARED[shape])
    grad = torch.randn_like(tensors[0])
    expected = value_and_gradients("naive", tensors, offsets, grad, prefixes)
    found = value_and_gradients(backend, tensors, offsets, grad, prefixes)
    for name, ours, law in zip(("out", *NAMES), found, expected, strict=True):
        torch.testing.assert_close(ours, law, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("backend", ["naive", *FAST])
def test_a_shared_context_equals_a_copy_of_each_prefix(backend):
    """The law itself: requests with prefixes are requests with histories of their own, gradients summed."""
    tensors, offsets, prefixes = shared_inputs(SHARED["ragged"])
    begin_R = prefixes.begin(offsets[0])
    token = torch.cat([torch.arange(b, b + n) for b, n in zip(begin_R, prefixes.prefix_length_R)])
    copied = [*tensors[:3], *(x[token] for x in tensors[3:])]
    history_offsets_R1 = torch.cat([torch.zeros(1, dtype=torch.int64), prefixes.prefix_length_R.cumsum(0)])
    expected = crossing_attention(*copied, history_offsets_R1, offsets[1], backend="naive")
    grad = torch.randn_like(tensors[0])
    found = value_and_gradients(backend, tensors, offsets, grad, prefixes)
    for ours, law in zip(found, [expected, *torch.autograd.grad(expected, tensors, grad)], strict=True):
        torch.testing.assert_close(ours, law, rtol=1e-12, atol=1e-12)


def test_prefixes_that_do_not_fit_the_offsets_are_refused():
    tensors, (history, rows), prefixes = shared_inputs(SHARED["ragged"])
    with pytest.raises(ValueError, match=r"found \(3,\) and \(9,\) with 8 prefixes of 3 contexts"):
        crossing_attention(*tensors, history[:-1], rows, prefixes=prefixes)
    with pytest.raises(ValueError, match=r"found \(4,\) and \(8,\) with 8 prefixes of 3 contexts"):
        crossing_attention(*tensors, history, rows[:-1], prefixes=prefixes)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
def test_narrow_types_stay_close_to_the_loop_in_float64(dtype, tolerance, backend):
    tensors, offsets = random_inputs(SHAPES["ragged"], dtype)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    grad = torch.randn_like(tensors[0])
    expected = value_and_gradients("naive", exact, offsets, grad.double())
    found = value_and_gradients(backend, tensors, offsets, grad)
    for name, ours, law in zip(("out", *NAMES), found, expected, strict=True):
        assert ours.dtype is dtype
        torch.testing.assert_close(
            ours.double(), law, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("backend", FAST)
def test_large_scores_do_not_overflow(backend):
    tensors, offsets = random_inputs(SHAPES["ragged"], torch.float32)
    with torch.no_grad():
        tensors[0] *= 1e3
    found = value_and_gradients(backend, tensors, offsets, torch.ones_like(tensors[0]))
    assert all(torch.isfinite(x).all() for x in found)


@pytest.mark.parametrize("backend", FAST)
def test_a_candidate_reads_its_request_and_itself_only(backend):
    tensors, offsets = random_inputs(SHAPES["ragged"])
    before = crossing_attention(*tensors, *offsets, backend=backend)
    with torch.no_grad():
        for x in tensors[:3]:
            x[1] += 1  # a candidate of the first request
        for x in tensors[3:]:
            x[3:] += 1  # every history but the first request's
    after = crossing_attention(*tensors, *offsets, backend=backend)
    unchanged = (before == after).flatten(1).all(1).tolist()
    # row 0 is of request 0, rows 2 to 5 of request 1, which has no history
    assert unchanged == [True, False, True, True, True, True, *[False] * 7]


@pytest.mark.parametrize("backend", FAST)
def test_every_input_keeps_a_gradient_in_a_batch_without_rows(backend):
    tensors, offsets = random_inputs(SHAPES["no rows"])
    crossing_attention(*tensors, *offsets, backend=backend).sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(self_key=a["self_key"][1:]), "one shape"),
        (lambda a: a.update(key=a["key"][:, :1]), "key and value"),
        (lambda a: a.update(rows=a["rows"][1:]), "offsets"),
        (lambda a: a.update(value=a["value"].float()), "one dtype"),
        (lambda a: a.update(backend="fastest"), "backend one of auto"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    tensors, (history, rows) = random_inputs(SHAPES["ragged"])
    arguments = dict(zip(NAMES, tensors, strict=True), history=history, rows=rows, backend="auto")
    change(arguments)
    backend = arguments.pop("backend")
    with pytest.raises(ValueError, match=message):
        crossing_attention(*arguments.values(), backend=backend)


def test_auto_is_one_of_the_backends():
    tensors, offsets = random_inputs(SHAPES["ragged"])
    found = crossing_attention(*tensors, *offsets)
    assert any(torch.equal(found, crossing_attention(*tensors, *offsets, backend=name)) for name in BACKENDS)
