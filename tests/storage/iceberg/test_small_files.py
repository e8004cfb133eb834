"""Small files of a store are asked for once, large ones no more than before, and what is kept is bounded."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

from reqdedup.storage.iceberg import small_files
from reqdedup.storage.iceberg.small_files import SmallFiles, fetched


class Store:
    """Files of a store in memory, each opened as a stream that is no local file; `opened`: their names, in order."""

    def __init__(self, **files: bytes) -> None:
        self.files, self.opened = files, []

    def open(self, name: str) -> pa.NativeFile:
        self.opened.append(name)
        return pa.PythonFile(pa.BufferReader(self.files[name]), "r")

    def through(self, kept: SmallFiles, name: str, **options: bool) -> bytes:
        return kept.open(name, lambda: self.open(name), **options).read()


def test_a_small_file_is_opened_once_until_it_is_read_for_the_last_time():
    store, kept = Store(a=b"first", b=b"second"), SmallFiles(11)
    for _ in range(3):
        assert store.through(kept, "a") == b"first"
        assert store.through(kept, "b") == b"second"
    assert store.opened == ["a", "b"]
    assert store.through(kept, "a", is_last=True) == b"first"
    assert store.through(kept, "a", is_last=True) == b"first"
    assert store.opened == ["a", "b", "a"]


def test_what_there_is_no_room_for_is_opened_each_time_and_pushes_nothing_out():
    store, kept = Store(a=b"first", b=b"second"), SmallFiles(10)
    for _ in range(2):
        assert store.through(kept, "a") == b"first"
        assert store.through(kept, "b") == b"second"
    assert store.opened == ["a", "b", "b"]
    store.through(kept, "a", is_last=True)  # makes room
    for _ in range(2):
        assert store.through(kept, "b") == b"second"
    assert store.opened == ["a", "b", "b", "b"]
    assert pickle.loads(pickle.dumps(kept)).__getstate__() == {"_room": 10, "_kept": {}}


def test_what_was_written_is_not_fetched_and_only_kept_while_there_is_room():
    store, kept = Store(a=b"first", b=b"second"), SmallFiles(5)
    for name, data in store.files.items():
        kept.keep(name, data)
    assert [kept.size_of(name) for name in "ab"] == [5, None]
    assert [store.through(kept, name) for name in "ab"] == [b"first", b"second"]
    assert store.opened == ["b"]


@pytest.mark.parametrize("size", [0, 1, 8, 9])
def test_a_large_file_and_a_local_one_stay_as_they_are(monkeypatch, tmp_path, size):
    monkeypatch.setattr(small_files, "SMALL_BYTES", 8)
    store = Store(a=b"x" * size)
    stream = store.open("a")
    found = fetched(stream)
    assert (found is stream) == (size > 8)
    assert found.read() == b"x" * size
    (tmp_path / "a").write_bytes(b"x" * size)
    with pa.OSFile(str(tmp_path / "a")) as local:
        assert fetched(local) is local
