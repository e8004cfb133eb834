"""Disks of a few megabytes, which are really full when they are."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE = "64m"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """The folder, which is made, as a disk of its own; the test is skipped without root."""
    folder.mkdir()
    # A disk that is really full is one that nobody but root may mount; what is simulated proves nothing of the kernel.
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("root is required to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def resize(disk: Path, size: str = SIZE) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
