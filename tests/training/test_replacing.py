"""A folder of a training is of one run at every moment, whatever ends the one that replaces another."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest

from reqdedup.training.replacing import is_left_by, new_folder, put_in_place, resumed_folder

FILES = ("run.json", "metrics.csv", "checkpoint.pt", "result.json", "bundle/manifest.json")


class KilledError(BaseException):
    pass


def write(folder: Path, text: str, files: tuple[str, ...] = FILES) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in FILES if (folder / name).exists()}


@pytest.mark.parametrize("has_run_file", [True, False])
def test_a_kill_at_each_step_leaves_one_run_that_can_be_resumed(tmp_path, monkeypatch, has_run_file):
    for at in itertools.count():
        out, steps = tmp_path / str(at), itertools.count()
        write(out, "earlier")
        folder = new_folder(out)
        assert folder != out
        write(folder, "new", FILES if has_run_file else FILES[1:])

        def or_killed(function, at=at, steps=steps):
            def run(*arguments, **options):
                if next(steps) == at:
                    raise KilledError
                return function(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            for module, name in ((os, "replace"), (Path, "unlink"), (Path, "write_text"), (shutil, "rmtree")):
                patch.setattr(module, name, or_killed(getattr(module, name)))
            try:
                put_in_place(folder, out)
            except KilledError:
                is_killed = True
            else:
                is_killed = False
        found = contents(out)
        assert len(set(found.values())) <= 1, (at, found)
        if "result.json" in found:
            assert set(found) >= set(FILES[1:]), "a result is of a whole run"
        resumed = contents(resumed_folder(out))
        assert resumed["checkpoint.pt"] == "new", (at, resumed)
        assert not has_run_file or resumed["run.json"] == "new"
        if not is_killed:
            break
    assert at > 8
    assert found == dict.fromkeys(FILES if has_run_file else FILES[1:], "new")
    assert sorted(path.name for path in out.iterdir()) == sorted({name.split("/")[0] for name in found})


def test_a_first_run_is_trained_in_its_own_folder(tmp_path):
    write(tmp_path, "by hand", ("run.json", "notes.txt"))
    assert new_folder(tmp_path) == resumed_folder(tmp_path) == tmp_path
    put_in_place(tmp_path, tmp_path)
    assert contents(tmp_path) == {"run.json": "by hand"}


OLD = ("result.json", "checkpoint.pt")
"""Of a finished run."""


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        ((), None),
        (OLD, None),
        ((".launch",), None),
        ((".launch", "checkpoint.pt"), "."),
        ((*OLD, "unfinished/.launch"), None),  # it failed before its first checkpoint
        ((*OLD, "unfinished/.launch", "unfinished/checkpoint.pt"), "unfinished"),
        (("unfinished/replaced/checkpoint.pt", "unfinished/.launch", "unfinished/checkpoint.pt"), "unfinished"),
        (("checkpoint.pt", "unfinished/replaced/checkpoint.pt", "unfinished/.launch"), "."),  # being put in place
    ],
)
def test_a_launch_goes_on_from_no_checkpoint_but_that_of_the_run_it_began(tmp_path: Path, files, folder):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("this" if name.endswith(".launch") else "")
    assert is_left_by("this", tmp_path) == (folder is not None)
    assert not is_left_by("another", tmp_path)
    if folder:
        assert resumed_folder(tmp_path) == tmp_path / folder
        put_in_place(tmp_path / folder, tmp_path)
        assert (tmp_path / "checkpoint.pt").exists()
        assert not is_left_by("this", tmp_path)
