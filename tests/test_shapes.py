"""Names say shapes, and a wrong one is found."""

from __future__ import annotations

import pytest
import torch

from tests.models.batches import random_batch
from tests.shapes import check_library, checked, sizes


def test_one_letter_is_one_size_in_all_arguments():
    batch = random_batch([3, 0], [2, 4])
    found = sizes({"batch": batch, "user_RD": torch.zeros(2, 5), "mask_B1SS": torch.zeros(6, 1, 3, 3)}, "f")
    assert found == {"R": 2, "B": 6, "D": 5, "S": 3}
    for name, shape, message in (
        ("item_BD", (2, 5), r"item_BD has shape \(2, 5\), and batch.item_id_B has B = 6"),
        ("other_offsets_R1", (2,), "and batch.user_id_R has R = 2"),
        ("score_BH", (6,), r"score_BH has shape \(6,\)"),
        ("mask_B1", (6, 2), r"mask_B1 has shape \(6, 2\)"),
    ):
        with pytest.raises(AssertionError, match=message):
            sizes({"batch": batch, name: torch.zeros(shape)}, "f")


def test_an_error_of_the_function_itself_comes_first():
    def refuses(x_R, y_R):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        checked(refuses)(torch.zeros(2), torch.zeros(3))


def test_the_tensor_half_of_the_library_is_checked():
    names = check_library()
    assert len(names) > 60
    assert {
        "reqdedup.ops.crossing_attention.crossing_attention",
        "reqdedup.training.loss.info_nce",
        "reqdedup.batch.RequestBatch.expand",
        "reqdedup.models.dcat.model.DCAT.cross",
        "reqdedup.models.transformer.HistoryTransformer.forward",
    } <= set(names)
