"""RequestBatch: its invariants are checked, and nothing moves what is stored once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@st.composite
def requests(draw) -> list[dict]:
    """Requests of a few users: events of their timelines from `begin` to `end` (-1: nobody logged where it ends)."""
    made = []
    for user in range(draw(st.integers(0, 3))):
        for _ in range(draw(st.integers(1, 4))):
            length = draw(st.integers(0, 4))
            version, begin = draw(st.integers(-1, 1)), draw(st.sampled_from([0, 0, 3]))
            end = draw(st.sampled_from([begin + length, begin + length, -1]))
            made.append(
                {"user": user, "version": version, "end": end, "length": length, "rows": draw(st.integers(1, 3))}
            )
    return made


@settings(max_examples=15, derandomize=True, deadline=None)
@given(requests())
def test_offsets_rows_and_groups_follow_plain_loops(made):
    rows = [r for r, request in enumerate(made) for _ in range(request["rows"])]
    tokens = [
        (q["user"], q["end"] - q["length"] + i if q["end"] >= 0 else r)
        for r, q in enumerate(made)
        for i in range(q["length"])
    ]
    events = [1000 * user + position for user, position in tokens]
    batch = RequestBatch(
        user_id_R=torch.tensor([q["user"] for q in made], dtype=torch.int64),
        item_id_B=torch.arange(len(rows)),
        request_of_row_B=torch.tensor(rows, dtype=torch.int64),
        row_offsets_R1=torch.tensor([rows.index(r) for r in range(len(made))] + [len(rows)]),
        history_offsets_R1=torch.tensor([sum(q["length"] for q in made[:r]) for r in range(len(made) + 1)]),
        request={
            "history_end": torch.tensor([q["end"] for q in made], dtype=torch.int64),
            "timeline_version": torch.tensor([q["version"] for q in made], dtype=torch.int64),
        },
        history={"item_id": torch.tensor(events, dtype=torch.int64)},
    ).validate()
    assert (batch.num_requests, batch.num_rows, batch.num_history_tokens) == (len(made), len(rows), len(events))
    assert batch.expand(torch.arange(len(made)) * 10).tolist() == [10 * r for r in rows]

    wanted: list[list[int]] = []
    for r, q in enumerate(made):
        key = (q["user"], q["version"], q["end"] - q["length"])
        is_known = q["version"] >= 0 and key[2] >= 0
        before = made[r - 1] if r else None
        same = before is not None and key == (before["user"], before["version"], before["end"] - before["length"])
        if same and is_known:
            wanted[-1].append(r)
        else:
            wanted.append([r])
    groups = batch.context_groups()
    bounds = groups.prefixes.request_offsets_G1.tolist()
    assert [list(range(a, b)) for a, b in pairwise(bounds)] == wanted
    longest = [max(group, key=lambda r: made[r]["length"]) for group in wanted]  # the first of the longest
    assert groups.longest_G.tolist() == longest
    history, offsets = groups.history(batch)
    begins = batch.history_offsets_R1.tolist()
    assert history["item_id"].tolist() == [x for r in longest for x in events[begins[r] : begins[r + 1]]]
    assert offsets.diff().tolist() == [made[r]["length"] for r in longest]

    for r in {0, len(made) // 2, len(made)}:  # one wrong offset is seen
        offsets = batch.row_offsets_R1.clone()
        offsets[r] += 1
        with pytest.raises(ValueError, match=r"row_offsets_R1|request_of_row_B"):
            replace(batch, row_offsets_R1=offsets).validate()
