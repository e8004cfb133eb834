"""A context in blocks has the same bits kept, extended or fresh, and its request the same logits alone or in any batch."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import DCAT, naive
from reqdedup.models.dcat import BlockContexts, Blocks
from reqdedup.models.dcat.block_context import KV_TYPES
from tests.models.batches import SHAPES, dcat_config, random_batch

SIZES = {"width": 32, "num_heads": 4, "ffn_width": 64, "hidden_widths": (33, 16), "item_table_rows": 500}


def model(**changes) -> DCAT:
    """In evaluation, with attention and statistics that are not those of a fresh model."""
    torch.manual_seed(0)
    dcat = DCAT(dcat_config(**changes)).eval()
    with torch.no_grad():
        for layer in dcat.transformer:
            layer.query.weight *= 2
            layer.key_value.weight *= 2
        for norm in dcat.head.norms:
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return dcat


def first(history, end):
    return {name: x_T[:end] for name, x_T in history.items()}


def keys_values(context, num_layers, dtype=torch.float32):
    return [x for n in range(num_layers) for x in context.slab.first(context.num_tokens, n, dtype)]


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_logits_have_the_same_bits_kept_extended_fresh_and_in_any_batch(positions):
    check_bits(model(positions=positions, **SIZES), random.Random(positions), num_batches=10)


@pytest.mark.soak
@pytest.mark.parametrize("width", [8, 32, 64, 128])
def test_the_same_bits_at_many_sizes(width):
    sizes = {
        "width": width,
        "num_heads": 4,
        "ffn_width": 4 * width,
        "hidden_widths": (width, 17),
        "item_table_rows": 500,
    }
    for num_layers in (1, 2, 3):
        check_bits(model(num_layers=num_layers, **sizes), random.Random(width), num_batches=40)


def check_bits(dcat, rng, *, num_batches):
    num_layers = dcat.config.num_layers
    for trial in range(num_batches):
        num_requests = rng.randint(2, 6)
        lengths = [
            rng.choice([0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, *rng.choices(range(601), k=4)])
            for _ in range(num_requests)
        ]
        rows = [rng.randint(1, 60) for _ in lengths]
        batches = [random_batch([n], [m], seed=100 * trial + i) for i, (n, m) in enumerate(zip(lengths, rows))]
        contexts = []
        for batch, length in zip(batches, lengths):
            fresh, kept = dcat.encode_blocks(batch.history), None
            for end in sorted(rng.choices(range(length + 1), k=3)):
                kept = dcat.encode_blocks(first(batch.history, end), kept)
            extended = dcat.encode_blocks(batch.history, kept)
            assert extended.num_tokens == fresh.num_tokens == length
            assert all(map(torch.equal, keys_values(extended, num_layers), keys_values(fresh, num_layers)))
            contexts.append(extended)
        asked = [(batch.history, None, 0) for batch in batches]
        for one, context in zip(dcat.folded().encode_together(asked), contexts):
            assert all(map(torch.equal, keys_values(one, num_layers), keys_values(context, num_layers)))
        together = dcat.predict_exact(RequestBatch.concatenate(batches), contexts).split(rows)
        computed = dcat.predict_exact(RequestBatch.concatenate(batches)).split(rows)
        for batch, context, *found in zip(batches, contexts, together, computed):
            alone = dcat.predict_exact(batch, [context])
            assert all(torch.equal(alone, logits) for logits in found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("changes", [{}, {"positions": "rope"}, {"num_layers": 1}, {"request_categories": (), "request_vectors": (), "request_numbers": ()}], ids=str)  # fmt: skip
def test_exact_logits_equal_the_twin_computed_once_per_row(shape, changes):
    dcat, batch = model(**changes).double(), random_batch(*SHAPES[shape])
    twin = naive.DCAT(dcat.config).eval().double()
    twin.load_state_dict(dcat.state_dict())
    torch.testing.assert_close(dcat.predict_exact(batch), twin.predict(batch), rtol=1e-10, atol=1e-12)
    assert dcat.predict_exact(random_batch([], [])).shape == (0, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_padded_rows_and_requests_change_neither_values_nor_gradients(shape):
    batch = random_batch(*SHAPES[shape])
    dcat, twin = model().double(), naive.DCAT(dcat_config()).eval().double()
    twin.load_state_dict(dcat.state_dict())
    logits = dcat.score(dcat.encode_context(batch), batch, is_exact=True)
    torch.testing.assert_close(logits, twin(batch), rtol=1e-10, atol=1e-12)
    for y in (logits, twin(batch)):
        (y.sin() * torch.arange(1, y.numel() + 1).view_as(y)).sum().backward()
    for (name, ours), (_, theirs) in zip(dcat.named_parameters(), twin.named_parameters(), strict=True):
        wanted = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
        found = torch.zeros_like(ours) if ours.grad is None else ours.grad
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9, msg=name)


def test_a_timeline_that_forks_leaves_the_contexts_before_it_as_they_were():
    dcat = model(**SIZES)
    one, other = random_batch([300], [1], seed=1).history, random_batch([300], [1], seed=2).history
    other = {name: torch.cat([one[name][:130], x_T[130:]]) for name, x_T in other.items()}  # a correction, say
    kept = dcat.encode_blocks(first(one, 130))
    ends = {200: one, 300: one, 290: other, 131: other, 64: one, 0: one}
    contexts = {end: dcat.encode_blocks(first(history, end), kept) for end, history in ends.items()}
    assert contexts[200].slab is not contexts[290].slab
    for end, history in ends.items():
        fresh = dcat.encode_blocks(first(history, end))
        assert all(map(torch.equal, keys_values(contexts[end], 2), keys_values(fresh, 2))), end


@pytest.mark.slow
def test_threads_may_extend_one_context_side_by_side():
    dcat, histories = model(**SIZES), [random_batch([200], [1], seed=seed).history for seed in range(6)]
    for history in histories:
        history.update({name: torch.cat([histories[0][name][:64], x_T[64:]]) for name, x_T in history.items()})
    kept = dcat.encode_blocks(first(histories[0], 70))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda history: dcat.encode_blocks(history, kept), histories * 4))
    for context, history in zip(found, histories * 4):
        assert all(map(torch.equal, keys_values(context, 2), keys_values(dcat.encode_blocks(history), 2)))


def test_a_batch_reads_the_blocks_where_they_lie():
    dcat = model(**SIZES)
    kept = dcat.encode_blocks(random_batch([130], [1]).history)
    key, value = kept.slab.first(kept.num_tokens, 1, torch.float32)
    assert (len(key), kept.num_tokens, kept.slab.capacity) == (130, 130, 192)
    again = dcat.encode_blocks(random_batch([190], [1]).history, kept)
    assert again.slab is kept.slab
    assert again.slab.first(190, 1, torch.float32)[0].data_ptr() == key.data_ptr()
    assert value.data_ptr() == key.data_ptr() + 192 * 32 * 4
    assert kept.num_bytes == 2 * 2 * 192 * 32 * 4


def test_blocks_that_two_histories_have_in_common_are_computed_once():
    blocks, rng = Blocks((32, 8, 2)), random.Random(0)
    for _ in range(2000):
        kept, length = rng.randrange(140), rng.randrange(140)
        shared = rng.randint(0, min(kept, length))
        ours, theirs = list(blocks.between(0, length)), list(blocks.between(0, kept))
        assert [first for first, _ in ours] == ([0, *(end for _, end in ours[:-1])] if length else [])
        begin = blocks.reusable(kept, length, shared)
        assert begin <= shared
        wanted = [block for block in ours if block not in theirs or min(block[1], length) > shared]
        assert list(blocks.between(begin, length)) == wanted, (kept, length, shared)


@pytest.mark.slow
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_rounded_contexts_have_the_same_bits_too(kv_type):
    dcat, rng = model(**SIZES), random.Random(kv_type)
    batch = random_batch([600], [9])
    whole = dcat.predict_exact(batch)
    for _ in range(6):
        kept = None
        for end in sorted(rng.choices(range(601), k=4)):
            kept = dcat.encode_blocks(first(batch.history, end), kept, kv_type=kv_type)
        extended = dcat.encode_blocks(batch.history, kept, kv_type=kv_type)
        fresh = dcat.encode_blocks(batch.history, kv_type=kv_type)
        assert all(map(torch.equal, keys_values(extended, 2), keys_values(fresh, 2)))
        logits = dcat.predict_exact(batch, [extended])
        assert torch.equal(logits, dcat.predict_exact(batch, [fresh]))
    error = (logits - whole).abs().max() / whole.std()
    assert error <= {"full": 0, "float16": 1e-3, "int8": 3e-2}[kv_type]
    assert fresh.num_bytes == 2 * 2 * 640 * 32 * {"full": 4, "float16": 2, "int8": 1.5}[kv_type]


def test_a_context_appended_in_one_pass_has_the_same_values():
    dcat, batch = model(**SIZES).double(), random_batch([400], [5])
    kept = None
    for end in (0, 1, 150, 150, 399, 400):
        kept = dcat.encode_blocks(first(batch.history, end), kept, blocks=None)
    other = dcat.encode_blocks(first(batch.history, 300), kept, blocks=None)
    assert (kept.num_tokens, other.num_tokens, other.slab is kept.slab) == (400, 300, True)
    logits = dcat.score(BlockContexts((kept,)), batch)
    torch.testing.assert_close(logits, dcat.predict(batch), rtol=1e-10, atol=1e-12)


def test_what_blocks_cannot_do_is_refused():
    history = random_batch([31], [1]).history
    with pytest.raises(ValueError, match="evaluation mode required"):
        model().train().encode_blocks(history)
    for changes in ({"history_attention": "bidirectional"}, {"positions_from": "end"}):
        with pytest.raises(ValueError, match="causal attention and positions counted from the start required"):
            model(**changes).encode_blocks(history)
    with pytest.raises(ValueError, match="max_history = 30 events required, found 31"):
        model(max_history=30).encode_blocks(history)
    with pytest.raises(ValueError, match=r"Blocks\(sizes=\(256, 64, 16\)\) required, found None in `kept`"):
        model().encode_blocks(history, model().encode_blocks(history, blocks=None))
    with pytest.raises(ValueError, match=r"sizes that are multiples of the next required, found \(64, 48\)"):
        Blocks((64, 48))
    with pytest.raises(ValueError, match="a context of the batch's 2 requests required, found 1"):
        model().predict_exact(random_batch([3, 4], [1, 1]), [model().encode_blocks(history)])


def test_padded_rows_repeat_the_last_one_behind_the_others():
    batch = random_batch([5, 3, 0], [4, 9, 0])
    padded = batch.with_padded_rows(4)
    padded.validate()
    assert padded.row_offsets_R1.tolist() == [0, 4, 16, 16]
    for name, x_B in batch.row.items():
        assert torch.equal(padded.row[name], torch.cat([x_B, x_B[-1:].repeat(3)])), name
    assert padded.item_id_B.tolist() == [*batch.item_id_B.tolist(), *batch.item_id_B[-1:].tolist() * 3]
    assert padded.history is batch.history
    assert padded.with_padded_rows(8) is padded
    assert (none := random_batch([], [])).with_padded_rows(16) is none
