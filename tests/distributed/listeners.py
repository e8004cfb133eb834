"""Who listens in this network namespace: found in /proc, so that a test sees what a cluster may have left outside."""

from __future__ import annotations

import os
from pathlib import Path

LISTEN = "0A"


def listening() -> set[str]:
    """Inodes of the TCP sockets that listen here."""
    found = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN:
                found.add(fields[9])
    return found


def processes_of(mark: str) -> list[int]:
    """Processes whose environment has this text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def listening_by(pids: list[int]) -> set[str]:
    """Those inodes of `listening` that one of these processes holds."""
    held = set()
    for pid in pids:
        try:
            held |= {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
        except OSError:
            continue
    return {inode for inode in listening() if f"socket:[{inode}]" in held}
