from __future__ import annotations

import pytest
import torch

from reqdedup.training.loss import Columns, info_nce, info_nce_naive, row_losses, scale_for_mean_over_ranks

TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


def _batch(num_requests=7, num_users=4, num_items=9, width=5, largest_fan_out=6, seed=0, scale=1.0, log_q_scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    fan_out_R = torch.randint(0, largest_fan_out + 1, (num_requests,), generator=generator)
    fan_out_R[0] = max(int(fan_out_R[0]), 1)
    num_rows = int(fan_out_R.sum())
    return {
        "user_RD": scale * torch.randn(num_requests, width, generator=generator, dtype=torch.float64),
        "item_BD": torch.randn(num_rows, width, generator=generator, dtype=torch.float64),
        "request_of_row_B": torch.repeat_interleave(torch.arange(num_requests), fan_out_R),
        "user_id_R": torch.randint(-3, num_users - 3, (num_requests,), generator=generator),
        "item_id_B": torch.randint(0, num_items, (num_rows,), generator=generator),
        "log_q_B": -log_q_scale * torch.rand(num_rows, generator=generator, dtype=torch.float64) * 10,
    }


def _value_and_gradients(function, batch, **options):
    leaves = {name: batch[name].clone().requires_grad_() for name in ("user_RD", "item_BD", "log_q_B")}
    loss = function(**{**batch, **leaves}, **options)
    return loss.detach(), torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True, allow_unused=True)


def _assert_equals_the_double_loop(batch, tolerance=TOLERANCE, **options):
    found, found_gradients = _value_and_gradients(info_nce, batch, **options)
    wanted, wanted_gradients = _value_and_gradients(info_nce_naive, batch, **options)
    torch.testing.assert_close(found, wanted, **tolerance)
    for gradient, wanted_gradient in zip(found_gradients, wanted_gradients):
        assert torch.isfinite(gradient).all()
        torch.testing.assert_close(gradient, wanted_gradient, **tolerance)
    return found


SAME_USER = [{"mask_same_user": True}, {"mask_same_user": False}, {"same_user_share": 0.05}, {"same_user_share": 0.9}]


@pytest.mark.slow
@pytest.mark.parametrize("same_user", SAME_USER, ids=str)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"num_users": 1},
        {"num_users": 2, "num_items": 3},
        {"num_items": 1},
        {"num_items": 2, "num_requests": 20},
        {"num_requests": 1},
        {"num_requests": 1, "largest_fan_out": 1},
        {"num_requests": 63, "num_users": 40, "num_items": 1000, "largest_fan_out": 3},
        {"scale": 30.0},
        {"scale": 1e4},
        {"log_q_scale": 1e3},
    ],
    ids=str,
)
def test_it_equals_the_double_loop(sizes, seed, same_user):
    _assert_equals_the_double_loop(_batch(**sizes, seed=seed), **same_user, temperature=0.7)


def test_an_excluded_item_that_dwarfs_every_negative_costs_no_digit():
    # Subtracting its exponential from the shared sum would leave nothing of the others: they are 1e-26 of it.
    batch = _batch(num_requests=12, num_users=5, num_items=30, largest_fan_out=5, seed=1)
    favourite = batch["item_BD"][0] / batch["item_BD"][0].norm()
    batch["item_id_B"][::3] = 99
    batch["item_BD"][::3] = favourite * 60
    batch["user_RD"] = favourite + 0.1 * batch["user_RD"]
    for same_user in SAME_USER:
        loss = _assert_equals_the_double_loop(batch, **same_user)
        assert 0 < loss < 100


def test_a_user_is_never_their_own_negative():
    batch = _batch(num_requests=6, num_users=3, num_items=1000)
    batch["item_BD"].requires_grad_()
    own = batch["user_id_R"][batch["request_of_row_B"]] == batch["user_id_R"][0]
    rows = torch.nonzero(batch["request_of_row_B"] == 0).squeeze(1)
    others = torch.nonzero(own & (batch["request_of_row_B"] != 0)).squeeze(1)
    moved = {**batch, "item_BD": batch["item_BD"].detach().clone()}
    moved["item_BD"][others] += 100.0

    def losses(b):
        columns = Columns(
            item_ND=b["item_BD"],
            item_id_N=b["item_id_B"],
            user_id_N=b["user_id_R"][b["request_of_row_B"]],
            log_q_N=b["log_q_B"],
        )
        keys = {name: b[name] for name in ("request_of_row_B", "user_id_R", "item_id_B")}
        return row_losses(b["user_RD"], columns, **keys).loss_B[rows]

    assert torch.equal(losses(batch), losses(moved))


def test_without_a_legal_negative_the_loss_is_zero_with_a_gradient():
    batch = _batch(num_users=1)
    loss, gradients = _value_and_gradients(info_nce, batch)
    assert loss == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_an_empty_batch_has_a_loss_of_zero_with_a_gradient():
    for num_requests in (0, 2):
        user_RD = torch.zeros(num_requests, 3, requires_grad=True)
        item_BD = torch.zeros(0, 3, requires_grad=True)
        none = torch.zeros(0, dtype=torch.int64)
        loss = info_nce(
            user_RD,
            item_BD,
            request_of_row_B=none,
            user_id_R=torch.arange(num_requests),
            item_id_B=none,
            log_q_B=torch.zeros(0),
        )
        loss.backward()
        assert loss == 0
        assert torch.equal(user_RD.grad, torch.zeros_like(user_RD))
        assert torch.equal(item_BD.grad, torch.zeros_like(item_BD))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_float32_and_bfloat16_stay_near_the_double_loop(scale):
    batch = _batch(num_requests=20, num_users=10, num_items=30, seed=2, scale=scale)
    wanted = info_nce_naive(**batch)
    narrow = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    torch.testing.assert_close(info_nce(**narrow).double(), wanted, rtol=1e-4, atol=1e-4)
    half = {**narrow, "user_RD": narrow["user_RD"].bfloat16(), "item_BD": narrow["item_BD"].bfloat16()}
    loss = info_nce(**half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_gradients_pass_gradcheck():
    batch = _batch(num_requests=5, num_users=3, num_items=4, seed=5)
    fixed = {name: batch.pop(name) for name in ("request_of_row_B", "user_id_R", "item_id_B")}
    names = list(batch)
    inputs = [batch[name].requires_grad_() for name in names]
    for same_user in SAME_USER:
        assert torch.autograd.gradcheck(
            lambda *values, same_user=same_user: info_nce(**dict(zip(names, values)), **fixed, **same_user), inputs
        )


def test_the_share_of_same_user_negatives_leads_from_the_mask_to_keeping_them_all():
    batch = _batch(num_requests=12, num_users=3, num_items=1000, largest_fan_out=5, seed=3)
    masked, kept = info_nce(**batch), info_nce(**batch, mask_same_user=False)
    torch.testing.assert_close(info_nce(**batch, same_user_share=1e-13), masked, **TOLERANCE)
    torch.testing.assert_close(info_nce(**batch, same_user_share=0.999), kept, **TOLERANCE)
    losses = [float(info_nce(**batch, same_user_share=share)) for share in (0.0, 0.01, 0.1, 0.3, 0.999)]
    assert losses == sorted(losses)
    assert len(set(losses)) == len(losses)


def test_same_user_negatives_of_equal_score_hold_their_share_of_the_sum():
    # Every logit is 0, so the loss counts: exp(loss) - 1 is the negatives' total weight, others / (1 - share).
    num_same, num_others, share = 5, 20, 0.1
    users = torch.tensor([0, *range(1, num_others + 1)])
    fan_out = torch.tensor([num_same + 1, *[1] * num_others])
    loss = row_losses(
        torch.zeros(len(users), 2, dtype=torch.float64),
        Columns(
            item_ND=torch.zeros(int(fan_out.sum()), 2, dtype=torch.float64),
            item_id_N=torch.arange(int(fan_out.sum())),
            user_id_N=users.repeat_interleave(fan_out),
            log_q_N=torch.zeros(int(fan_out.sum()), dtype=torch.float64),
        ),
        request_of_row_B=torch.arange(len(users)).repeat_interleave(fan_out),
        user_id_R=users,
        item_id_B=torch.arange(int(fan_out.sum())),
        same_user_share=share,
    ).loss_B[0]
    assert loss.expm1().item() == pytest.approx(num_others / (1 - share), rel=1e-9)


@pytest.mark.parametrize(
    "options", [{"same_user_share": 1.0}, {"same_user_share": -0.1}, {"same_user_share": 0.1, "mask_same_user": False}]
)
def test_a_share_that_says_nothing_is_refused(options):
    with pytest.raises(ValueError, match="0 <= share < 1 required"):
        info_nce(**_batch(), **options)


def test_scaled_losses_of_uneven_ranks_average_to_the_gradient_of_the_global_mean():
    weight = torch.tensor(2.0, requires_grad=True)
    rows = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0])
    wanted = torch.autograd.grad((weight * rows).square().mean(), weight)[0]
    shards = [rows[:4], rows[4:], rows[:0]]
    gradients = [
        torch.autograd.grad(scale_for_mean_over_ranks((weight * shard).square().sum(), 5, 3), weight)[0]
        for shard in shards
    ]
    torch.testing.assert_close(sum(gradients) / 3, wanted)
