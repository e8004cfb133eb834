"""A run that replaces another is trained in a folder inside that one's, which stays as it is until the new run ended.

    out_dir/run.json, checkpoint.pt, ..., bundle/                of the earlier run
    out_dir/unfinished/run.json, checkpoint.pt, ..., bundle/     of the one that replaces it; a resumed run goes on here

A run that failed before its first checkpoint leaves nothing there; under torchrun an empty one, which the next takes
away. At the end what was made on top of the earlier checkpoint goes first, and the new run comes in the order in which
it was made: out_dir is of one run at every moment, which for an instant looks like a stopped one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from reqdedup.models.checkpoint import CHECKPOINT_NAME
from reqdedup.training.metrics_file import METRICS_NAME
from reqdedup.training.report import RESULT_NAME

RUN_NAME = "run.json"
BUNDLE_NAME = "bundle"
UNFINISHED_NAME, REPLACED_NAME = "unfinished", "replaced"
LAUNCH_NAME = ".launch"
"""Beside a run's checkpoint: which start of torchrun began it, until it has ended."""


def new_folder(out_dir: Path) -> Path:
    """Where a run that begins is trained: `out_dir`, or an empty folder in it if there is a run already."""
    unfinished = out_dir / UNFINISHED_NAME
    shutil.rmtree(unfinished, ignore_errors=True)  # of an earlier one that nobody resumed
    has_run = any((out_dir / name).exists() for name in (CHECKPOINT_NAME, RESULT_NAME, BUNDLE_NAME))
    return unfinished if has_run else out_dir


def resumed_folder(out_dir: Path) -> Path:
    """Where the checkpoint lies from which a run is resumed."""
    unfinished = out_dir / UNFINISHED_NAME
    return unfinished if (unfinished / CHECKPOINT_NAME).exists() else out_dir


def is_left_by(launch: str, out_dir: Path) -> bool:
    """Whether the checkpoint of `resumed_folder` is of a run that this launch began; see LAUNCH_NAME."""
    unfinished = out_dir / UNFINISHED_NAME
    begun = unfinished if unfinished.exists() else out_dir
    said = begun / LAUNCH_NAME
    if not said.exists() or said.read_text() != launch:
        return False
    is_being_put_in_place = (unfinished / REPLACED_NAME).exists()  # its checkpoint may be in either folder
    return (begun / CHECKPOINT_NAME).exists() or (is_being_put_in_place and (out_dir / CHECKPOINT_NAME).exists())


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is the old or the new one, whatever happens in between."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def put_in_place(folder: Path, out_dir: Path) -> None:
    """The finished run of `folder`, which may be `out_dir`, as that of `out_dir`."""
    if folder != out_dir:
        replaced = folder / REPLACED_NAME
        replaced.mkdir(exist_ok=True)
        for name in (RESULT_NAME, BUNDLE_NAME, METRICS_NAME, CHECKPOINT_NAME):
            if (out_dir / name).exists():
                os.replace(out_dir / name, replaced / name)
        run = folder / RUN_NAME  # copied, so that until the checkpoint has moved the run can be resumed here
        if run.exists():
            write_whole(out_dir / RUN_NAME, run.read_text())
        else:
            (out_dir / RUN_NAME).unlink(missing_ok=True)
        for name in (METRICS_NAME, CHECKPOINT_NAME, BUNDLE_NAME, RESULT_NAME):
            if (folder / name).exists():
                os.replace(folder / name, out_dir / name)
    shutil.rmtree(out_dir / UNFINISHED_NAME, ignore_errors=True)
    (out_dir / LAUNCH_NAME).unlink(missing_ok=True)
