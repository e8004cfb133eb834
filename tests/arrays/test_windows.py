import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqdedup.arrays.ranges import offsets_of, ranges
from reqdedup.arrays.windows import anchored_start, default_stride, gather_windows

lengths_lists = st.lists(st.integers(0, 9), max_size=20)


@given(st.integers(0, 10**12), st.integers(1, 20_000), st.data())
def test_a_window_fits_starts_at_an_anchor_and_is_as_long_as_it_may(end, max_history, data):
    stride = data.draw(st.integers(1, max_history))
    start = int(anchored_start(np.array([end]), max_history, stride)[0])
    assert start % stride == 0
    assert 0 <= start <= end
    assert end - start <= max_history
    earlier = start - stride
    assert start == 0 or end - earlier > max_history
    if end > 0:
        assert end > start


@given(st.integers(1, 64), st.data())
def test_a_growing_timeline_keeps_its_start_for_stride_events(max_history, data):
    stride = data.draw(st.integers(1, max_history))
    starts = anchored_start(np.arange(5 * max_history), max_history, stride)
    changes = np.flatnonzero(np.diff(starts))
    assert np.all(np.diff(starts) >= 0)
    assert np.all(np.diff(changes) == stride)


def test_a_stride_longer_than_the_history_is_refused():
    for stride in (0, 9):
        with pytest.raises(ValueError, match="max_history = 8"):
            anchored_start(np.array([3]), 8, stride)
    assert [default_stride(length) for length in (1, 3, 16_384)] == [1, 1, 4_096]


@pytest.mark.slow
@given(lengths_lists, st.data())
def test_ragged_positions_and_windows_agree_with_a_plain_loop(lengths, data):
    packed = np.arange(100, 200)
    starts = [data.draw(st.integers(0, 80)) for _ in lengths]
    wanted = [start + k for start, length in zip(starts, lengths) for k in range(length)]
    positions = ranges(np.array(starts, np.int64), np.array(lengths, np.int64))
    assert positions.tolist() == wanted
    windows = gather_windows(packed, np.array(starts, np.int64), np.array(lengths, np.int64))
    assert windows.tolist() == packed[np.array(wanted, np.int64)].tolist()
    assert offsets_of(np.array(lengths, np.int64)).tolist() == [sum(lengths[:k]) for k in range(len(lengths) + 1)]
