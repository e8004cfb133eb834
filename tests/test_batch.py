"""RequestBatch: its invariants are checked, and nothing moves what is stored once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reqdedup.batch import RequestBatch


def a_batch() -> RequestBatch:
    """Two requests: user 7 with history [a b c] and four rows, user 9 with history [d] and two."""
    return RequestBatch(
        user_id_R=torch.tensor([7, 9]),
        item_id_B=torch.arange(6),
        request_of_row_B=torch.tensor([0, 0, 0, 0, 1, 1]),
        row_offsets_R1=torch.tensor([0, 4, 6]),
        history_offsets_R1=torch.tensor([0, 3, 4]),
        request={"device": torch.tensor([1, 2], dtype=torch.int32)},
        row={"click": torch.tensor([0.0, 1.0, 0.0, torch.nan, 1.0, 0.0])},
        history={"item_id": torch.tensor([10, 11, 12, 13])},
    )


def test_a_right_batch_validates_and_counts():
    batch = a_batch().validate()
    assert (batch.num_requests, batch.num_rows, batch.num_history_tokens, batch.fan_out) == (2, 6, 4, 3.0)
    assert batch.expand(batch.user_id_R).tolist() == [7, 7, 7, 7, 9, 9]
    assert batch.num_bytes == sum(t.numel() * t.element_size() for t in batch.tensors().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_offsets_R1": torch.tensor([0, 4])}, r"row_offsets_R1: \[3\] int64 required"),
        ({"row_offsets_R1": torch.tensor([0, 4, 6], dtype=torch.int32)}, "row_offsets_R1.*int32"),
        ({"row_offsets_R1": torch.tensor([0, 4, 5])}, "row_offsets_R1: must rise from 0 to 6 rows"),
        ({"row_offsets_R1": torch.tensor([0, 7, 6])}, "row_offsets_R1: must rise"),
        ({"row_offsets_R1": torch.tensor([1, 4, 6])}, "row_offsets_R1: must rise"),
        ({"history_offsets_R1": torch.tensor([0, 3, 5])}, "history_offsets_R1: must rise from 0 to 4 history tokens"),
        ({"request_of_row_B": torch.tensor([0, 0, 0, 1, 1, 1])}, "request_of_row_B"),
        ({"request": {"device": torch.zeros(6)}}, r"request\['device'\]: first axis R = 2 required"),
        ({"row": {"click": torch.zeros(2)}}, r"row\['click'\]: first axis B = 6 required"),
        ({"row": {"click": torch.tensor(1.0)}}, r"row\['click'\]"),
        ({"history": {"item_id": torch.zeros(4), "action": torch.zeros(3)}}, r"history\['action'\]: first axis T = 4"),
    ],
)
def test_each_broken_invariant_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(a_batch(), **change).validate()


def test_an_empty_batch_is_a_batch():
    empty = torch.zeros(0, dtype=torch.int64)
    offsets = torch.zeros(1, dtype=torch.int64)
    batch = RequestBatch(
        user_id_R=empty,
        item_id_B=empty,
        request_of_row_B=empty,
        row_offsets_R1=offsets,
        history_offsets_R1=offsets,
    ).validate()
    assert (batch.num_requests, batch.num_rows, batch.num_history_tokens, batch.fan_out) == (0, 0, 0, 0.0)


def test_to_moves_every_tensor():
    moved = a_batch().to("meta")
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert moved.tensors().keys() == a_batch().tensors().keys()
