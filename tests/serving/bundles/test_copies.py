"""Copies of bundles: what is served stays, what nobody holds goes."""

from __future__ import annotations

import os
import time

import pytest

from reqdedup.serving.bundles.copies import Copies, lock


@pytest.fixture
def copies(tmp_path):
    """Four copies and two that were left unfinished, an hour old; one that is new, and what is not ours."""
    names = [*(f"{number:032x}" for number in range(4)), f".{9:032x}.01234567.unfinished"]
    names += [names[-1] + ".old", f"{5:032x}", "somebody's", ".hidden"]
    for name in names:
        (tmp_path / name / "ranking").mkdir(parents=True)
        if name != f"{5:032x}":
            os.utime(tmp_path / name, (time.time() - 3600,) * 2)
    return [tmp_path / name for name in names]


def left(copies):
    return [folder for folder in copies if folder.exists()]


def test_what_serves_here_or_elsewhere_is_kept_and_the_rest_of_ours_removed(copies):
    mine, others = Copies(copies[0].parent), Copies(copies[0].parent)
    mine.hold([copies[0], copies[1]])
    others.hold([copies[1], copies[2]])
    removed = mine.keep_only([copies[0], copies[1]])
    assert sorted(removed) == sorted([copies[3], copies[4], copies[5]])
    assert left(copies) == [*copies[:3], *copies[6:]]
    assert mine.keep_only([copies[0]]) == []  # the other one holds it
    others.keep_only([copies[2]])
    assert left(copies) == [copies[0], copies[2], *copies[6:]]
    assert mine.keep_only([], untouched_s=0) == [copies[0], copies[6]]


def test_what_is_being_copied_is_left_alone(copies):
    descriptor = lock(copies[4])
    try:
        assert copies[4] not in Copies(copies[0].parent).keep_only([])
    finally:
        os.close(descriptor)
    assert Copies(copies[0].parent).keep_only([]) == [copies[4]]


def test_a_folder_that_is_no_copy_is_neither_held_nor_missed(tmp_path):
    found = Copies(tmp_path / "not there yet")
    found.hold([tmp_path / "a bundle"])
    assert found.keep_only([]) == []
