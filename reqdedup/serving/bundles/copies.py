"""Copies of bundles from an object store: which of them this process serves, and an end for those that nobody does.

A process holds a lock (flock, shared) on the folder of every copy that it serves or may be rolled back to; it ends with
the process. What nobody holds, and nobody touched for a minute, is removed: copies of models that have left, and what a
process that died left unfinished. Several servers may share the folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)
UNTOUCHED_S = 60.0
"""Nothing younger is removed: it may have been found by a process that is about to hold it [seconds]."""
_OURS = re.compile(r"[0-9a-f]{32}|\.[0-9a-f]{32}\.[0-9a-f]{8}\.unfinished(\.old)?")


def lock(folder: Path) -> int:
    """A descriptor that holds the folder until it is closed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


class Copies:
    """Those in one folder. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._held = folder, dict[Path, int]()

    def hold(self, folders: Iterable[Path]) -> None:
        """Those of them that are copies; raises OSError if one has gone."""
        for folder in folders:
            if folder.parent == self._folder and folder not in self._held:
                self._held[folder] = lock(folder)

    def keep_only(self, folders: Iterable[Path], *, untouched_s: float = UNTOUCHED_S) -> list[Path]:
        """Let go of all others, and remove what nobody holds; what was removed."""
        kept, removed = set(folders), []
        for folder in self._held.keys() - kept:
            os.close(self._held.pop(folder))
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            if _OURS.fullmatch(folder.name) and folder not in self._held and _remove(folder, untouched_s):
                removed.append(folder)
        if removed:
            logger.info("%s: %d copies that nobody serves removed", self._folder, len(removed))
        return removed


def _remove(folder: Path, untouched_s: float) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # another process removed it
        return False
    try:
        if time.time() - os.fstat(descriptor).st_mtime < untouched_s:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody holds it
        return False
    else:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        os.close(descriptor)
