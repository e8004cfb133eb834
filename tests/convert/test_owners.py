"""Request ids that several users have are counted, in a conversion and an append, and in little memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.convert import ColumnMapping, convert_table, owners
from reqdedup.convert.owners import RequestOwners

MAPPING = ColumnMapping(user="u", request="r", item="i", time="t")


def counted(request: np.ndarray, user: np.ndarray) -> int:
    found = RequestOwners()
    for start in range(0, len(request), 700):
        found.add(request[start : start + 700], user[start : start + 700])
    return found.num_shared()


@pytest.mark.parametrize("num_rows", [0, 1, 5_000])
def test_the_count_is_that_of_a_plain_loop(num_rows):
    rng = np.random.default_rng(num_rows)
    request, user = rng.integers(-400, 400, num_rows), rng.integers(0, 2, num_rows)
    users_of: dict[int, set[int]] = {}
    for one, who in zip(request.tolist(), user.tolist()):
        users_of.setdefault(one, set()).add(who)
    assert counted(request, user) == sum(len(users) > 1 for users in users_of.values())


def test_with_little_memory_the_count_is_about_right(monkeypatch):
    monkeypatch.setattr(owners, "MAX_PAIRS", 4_000)
    request = np.repeat(np.arange(20_000), 2)
    user = np.where(np.arange(40_000) % 8 == 1, 1, 0)  # every fourth request has two
    assert counted(request, user) == pytest.approx(5_000, rel=0.15)
    assert counted(request, np.zeros(40_000, np.int64)) == 0


def test_a_request_id_of_two_users_is_said(catalog, tmp_path):
    rows = pa.table(
        {"u": ["a", "a", "b", "b"], "r": [1, 2, 2, 3], "i": [1, 2, 3, 4], "t": pa.array([0] * 4, pa.timestamp("us"))}
    )
    pq.write_table(rows, tmp_path / "f.parquet")
    for append in (False, True):
        report = convert_table(tmp_path / "f.parquet", catalog, "lake.t", MAPPING, append=append)
        assert report.requests == 4
        assert any(note.startswith("1 request id of more than one user") for note in report.notes)
    alone = convert_table(
        tmp_path / "f.parquet", catalog, "lake.u", ColumnMapping(**{**vars(MAPPING), "request": ["u", "r"]})
    )
    assert not any("more than one user" in note for note in alone.notes)
