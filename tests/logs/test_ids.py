import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqdedup.logs.ids import hash_string, hash_strings, timed_request_ids


def test_string_ids_are_what_other_programs_compute_too():
    """Literal goldens: `b2sum -l 64` of the text, little-endian, top bit cleared. They must never change."""
    assert hash_string("U13740") == int.from_bytes(bytes.fromhex("4abe40ba7a4ed1fb"), "little") & (2**63 - 1)
    assert hash_string("") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little") & (2**63 - 1)


@pytest.mark.slow
@given(st.lists(st.one_of(st.none(), st.text(max_size=5)), max_size=30))
def test_a_series_is_hashed_value_by_value(texts):
    ids = hash_strings(pl.Series(texts, dtype=pl.String)).to_list()
    assert ids == [None if text is None else hash_string(text) for text in texts]
    assert all(0 <= value < 2**63 for value in ids if value is not None)


def test_timed_request_ids_rise_in_time_and_differ_between_users():
    seconds = np.arange(1_700_000_000, 1_700_000_500)
    ids = timed_request_ids(np.full(500, 7), seconds * 1_000_000 + 999_999)
    assert np.all(np.diff(ids) > 0)
    same_moment = timed_request_ids(np.arange(2_000), np.full(2_000, 10**15))
    assert len(set(same_moment.tolist())) == 2_000
    nth = timed_request_ids(np.full(50, 7), np.full(50, 10**15), np.arange(50))
    assert len(set(nth.tolist())) == 50
    assert min(ids.min(), same_moment.min(), nth.min()) >= 0
