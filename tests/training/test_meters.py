from __future__ import annotations

import pytest

from reqdedup.training.loader import RequestLoader
from reqdedup.training.meters import BatchMeters, CoreTimes
from tests.training.logs import random_log


@pytest.fixture(scope="module")
def batch():
    batch = next(iter(RequestLoader(random_log(), requests_per_batch=20)))
    batch.item_id_B.remainder_(11)
    return batch


def test_false_negatives_and_users_equal_counting_pairs(batch):
    meters = BatchMeters.of(batch)
    users = batch.user_id_R[batch.request_of_row_B].tolist()
    items = batch.item_id_B.tolist()
    pairs = [(i, k) for i in range(len(items)) for k in range(len(items)) if items[i] != items[k]]
    same_user = sum(users[i] == users[k] for i, k in pairs)
    assert meters.false_negative_rate == same_user / len(pairs) > 0
    shares = [users.count(user) / len(users) for user in set(users)]
    assert meters.effective_users == pytest.approx(1 / sum(share**2 for share in shares))
    assert (meters.users, meters.requests, meters.rows) == (len(set(users)), 20, len(items))


def test_duplicated_bytes_are_those_of_the_batch_with_one_request_per_row(batch):
    rows = batch.request_of_row_B
    duplicated = sum(batch.expand(values).nbytes for values in (batch.user_id_R, *batch.request.values()))
    duplicated += batch.item_id_B.nbytes + sum(values.nbytes for values in batch.row.values())
    lengths = batch.history_offsets_R1.diff()
    duplicated += sum(int(lengths[rows].sum()) * values.element_size() for values in batch.history.values())
    duplicated += 8 * (len(rows) + 1)
    meters = BatchMeters.of(batch)
    assert meters.duplicated_bytes == duplicated
    assert meters.moved_bytes == batch.num_bytes
    assert meters.dedup_factor == duplicated / batch.num_bytes > 1


def test_meters_of_an_empty_batch_are_neutral_in_a_sum(batch):
    empty = BatchMeters.of(RequestLoader(random_log(), requests_per_batch=1).empty_batch())
    assert (empty.rows, empty.users, empty.false_negative_rate, empty.effective_users) == (0, 0, 0.0, 0.0)
    total = empty + BatchMeters.of(batch)
    assert (total.rows, total.same_user_pairs) == (batch.num_rows, BatchMeters.of(batch).same_user_pairs)


def test_the_busiest_core_is_seen_beside_the_mean(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 100 800 0 0 0 0 0 0\ncpu1 0 0 0 1000 0 0 0 0 0 0\nintr 1\n")
    before = CoreTimes.now(stat)
    stat.write_text(
        "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 150 0 150 800 0 0 0 0 0 0\ncpu1 5 0 5 1060 30 0 0 0 0 0\ncpu2 1 1 1 1 1\n"
    )
    busy = before.busy_until(CoreTimes.now(stat))
    assert busy == [0.1, 1.0]
    assert before.busy_until(before) == []
    assert CoreTimes.now(tmp_path / "none").busy_until(before) == []
