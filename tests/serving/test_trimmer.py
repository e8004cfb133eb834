"""The trimmer: what it drops, what it leaves alone, and that a broken file changes nothing."""

from __future__ import annotations

import json
import threading

import pytest

from reqdedup.serving.client.trimmer import Trimmer, allowlist, parse

COLUMNS = {"item_id": 1, "hour": 2, "unread": 3, "country": 4}


def write(path, models, **options):
    path.write_text(json.dumps(allowlist(models, **options)))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a.json", {"ranking": [("v1", ["item_id", "hour"], "current"), ("v2", ["item_id"], "pending")]})
    write(tmp_path / "b.json", {"retrieval": [("r1", ["country"], "current")]})
    return tmp_path


def test_a_version_gets_what_it_reads_current_or_pending(folder):
    trimmer = Trimmer(folder)
    assert trimmer.trim(COLUMNS, "ranking", "v1") == {"item_id": 1, "hour": 2}
    assert trimmer.trim(COLUMNS, "ranking", "v2") == {"item_id": 1}
    assert trimmer.counts.dropped == 5


def test_an_unknown_model_or_version_is_untrimmed_and_counted(folder):
    trimmer = Trimmer(folder)
    assert trimmer.trim(COLUMNS, "other", "v1") is COLUMNS
    assert trimmer.trim(COLUMNS, "ranking", "v9") is COLUMNS
    assert (trimmer.counts.untrimmed_model, trimmer.counts.untrimmed_version, trimmer.counts.trimmed) == (1, 1, 0)


def test_an_unknown_version_of_a_stable_signature_is_trimmed_as_the_newest(folder):
    write(folder / "a.json", {"ranking": [("v1", ["hour"], "current"), ("v2", ["item_id"], "pending")]}, stable=True)
    assert Trimmer(folder).trim(COLUMNS, "ranking", "v9") == {"item_id": 1}


TWICE = allowlist({"ranking": [("v1", ["hour"], "current"), ("v1", ["item_id"], "current")]})
BROKEN = {
    "empty": "",
    "cut": '{"format": 1, "models": {"rank',
    "another kind": "[1, 2]",
    "another format": '{"format": 2, "models": {}}',
    "a version twice": json.dumps(TWICE),
    "no names": '{"format": 1, "models": {"m": [{"version": "v", "inputs": [1], "state": "current"}]}}',
    "nothing to read": '{"format": 1, "models": {"m": [{"version": "v", "inputs": [], "state": "current"}]}}',
    "no state": '{"format": 1, "models": {"m": [{"version": "v", "inputs": []}]}}',
    "brackets in thousands": "[" * 100_000,
    "no list": '{"format": 1, "models": {"m": {}}}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_keeps_the_old_map_of_that_file_only(folder, text):
    trimmer = Trimmer(folder, refresh_s=0)
    (folder / "a.json").write_text(text)
    write(folder / "b.json", {"retrieval": [("r1", ["hour"], "current")]})
    assert trimmer.trim(COLUMNS, "ranking", "v1") == {"item_id": 1, "hour": 2}
    assert trimmer.trim(COLUMNS, "retrieval", "r1") == {"hour": 2}
    assert trimmer.counts.broken_files == 1
    assert list(trimmer.errors) == ["a.json"]
    write(folder / "a.json", {"ranking": [("v1", ["country"], "current")]})
    assert trimmer.trim(COLUMNS, "ranking", "v1") == {"country": 4}
    assert not trimmer.errors


def test_a_file_that_vanished_or_never_was_blocks_nothing(folder, tmp_path):
    trimmer = Trimmer(folder, refresh_s=0)
    (folder / "a.json").unlink()
    assert trimmer.trim(COLUMNS, "ranking", "v1") == {"item_id": 1, "hour": 2}
    assert Trimmer(tmp_path / "nowhere").trim(COLUMNS, "ranking", "v1") is COLUMNS
    (folder / "a.json").write_text("{")
    assert Trimmer(folder).trim(COLUMNS, "ranking", "v1") is COLUMNS


def test_no_reader_sees_a_mixed_map(folder):
    """Versions v1 and v2 always read the same columns: a reader that saw v1 old and v2 new would see two answers."""
    maps = [allowlist({"m": [("v1", names, "current"), ("v2", names, "pending")]}) for names in (["hour"], ["country"])]
    trimmer, stop = Trimmer(None), threading.Event()
    trimmer.replace("x", maps[0])

    def swap():
        number = 0
        while not stop.is_set():
            number += 1
            trimmer.replace("x", maps[number % 2])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(5000):
            seen = trimmer._map["m"]
            assert seen["v1"] == seen["v2"]
    finally:
        stop.set()
        thread.join()
    assert trimmer.counts.reloads > 2


def test_what_is_no_allowlist_says_what_was_found():
    with pytest.raises(ValueError, match="every version of ranking once required, found v1 twice"):
        parse(TWICE, "a.json")
