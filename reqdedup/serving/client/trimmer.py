"""Feature Trimmer: send a model what its signature reads, and nothing else.

A caller that knows the union of all features asks which of them one version of one model reads, and sends those. What
may be sent stands in *allowlist files*, one per deployment, each with the versions of its models that are current and
those that come next:

    {"format": 1, "stable_signature": false,
     "models": {"ranking": [{"version": "<fingerprint>", "inputs": ["item_id", "hour", ...], "state": "current"}, ...]}}

The files of a folder are read again if they change. All of them make one map that is replaced by one assignment, so a
reader sees the old one or the new one. A broken file keeps the old entries of that file only and is counted; a file
that vanished does too, until another process says otherwise. A model or a version that is in no file is sent untrimmed,
because a feature too many is not a wrong score and a feature too few is one silently; a file may say that its models
never change their inputs (`stable_signature`), then an unknown version is trimmed as the newest.

An allowlist, no blocklist: a feature that is added upstream is not sent before a model asks for it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

FORMAT = 1
STATES = ("current", "pending")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Versions:
    """inputs: version -> names that it reads, oldest first.  stable: an unknown version reads what the last does."""

    inputs: Mapping[str, frozenset[str]]
    stable: bool = False

    def __getitem__(self, version: str) -> frozenset[str] | None:
        found = self.inputs.get(version)
        return list(self.inputs.values())[-1] if found is None and self.stable and self.inputs else found


@dataclass(kw_only=True)
class TrimmerCounts:
    """trimmed, untrimmed_model, untrimmed_version: calls.  dropped: columns.  reloads: of the map.
    broken_files: files that had changed and could not be read."""

    trimmed: int = 0
    untrimmed_model: int = 0
    untrimmed_version: int = 0
    dropped: int = 0
    broken_files: int = 0
    reloads: int = 0


class Trimmer:
    """folder: of allowlist files `*.json`; None for a map that is given with `replace`.  refresh_s: how often they are
    looked at, by the call to `trim` that comes next."""

    def __init__(self, folder: Path | None = None, *, refresh_s: float = 2.0) -> None:
        self.counts = TrimmerCounts()
        self.errors: dict[str, str] = {}
        self._folder, self._refresh_s = folder, refresh_s
        self._files: dict[str, Mapping[str, Versions]] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._map: Mapping[str, Versions] = MappingProxyType({})
        self._looked = -float("inf")
        self._reloading = threading.Lock()
        self.reload()

    def trim(self, columns: Mapping[str, Value], model: str, version: str) -> Mapping[str, Value]:
        """Those of `columns` that this version of the model reads; all of them if it is not known."""
        if time.monotonic() - self._looked > self._refresh_s:
            self.reload()
        versions = self._map.get(model)
        if versions is None:
            self.counts.untrimmed_model += 1
            return columns
        inputs = versions[version]
        if inputs is None:
            self.counts.untrimmed_version += 1
            return columns
        kept = {name: value for name, value in columns.items() if name in inputs}
        self.counts.trimmed += 1
        self.counts.dropped += len(columns) - len(kept)
        return kept

    def reload(self) -> None:
        """Look at the folder's files and read those that changed."""
        if self._folder is None or not self._reloading.acquire(blocking=False):
            return
        try:
            self._looked = time.monotonic()
            changed = False
            for path in sorted(self._folder.glob("*.json")):
                changed |= self._read(path)
            if changed:
                self._swap()
        finally:
            self._reloading.release()

    def replace(self, name: str, values: Mapping[str, Any]) -> None:
        """The entries of one deployment, as a file would have them. Raises ValueError and changes nothing if they are
        none."""
        self._files[name] = parse(values, name)
        self._swap()

    def _read(self, path: Path) -> bool:
        try:
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._seen.get(path.name) == seen:
                return False
            self._seen[path.name] = seen
            self._files[path.name] = parse(json.loads(path.read_bytes()), str(path))
        except (OSError, ValueError, RecursionError) as error:  # brackets in thousands
            self.counts.broken_files += 1
            self.errors[path.name] = str(error)
            return False
        self.errors.pop(path.name, None)
        return True

    def _swap(self) -> None:
        merged: dict[str, Versions] = {}
        for models in self._files.values():
            for name, versions in models.items():
                before = merged.get(name)
                merged[name] = (
                    Versions({**before.inputs, **versions.inputs}, before.stable and versions.stable)
                    if before
                    else versions
                )
        self._map = MappingProxyType(merged)
        self.counts.reloads += 1


def parse(values: Any, where: str) -> dict[str, Versions]:
    """The models of an allowlist file. Raises ValueError for anything else, a version that stands twice included."""
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("models"), dict):
        raise ValueError(f"{where}: an allowlist of format {FORMAT} with `models` required, found something else")
    found: dict[str, Versions] = {}
    for model, entries in values["models"].items():
        inputs: dict[str, frozenset[str]] = {}
        if not isinstance(entries, list):
            raise ValueError(f"{where}: a list of versions required for {model}, found {type(entries).__name__}")
        for entry in entries:
            names = entry.get("inputs") if isinstance(entry, dict) else None
            version = entry.get("version") if isinstance(entry, dict) else None
            if not isinstance(version, str) or not isinstance(names, list) or entry.get("state") not in STATES:
                raise ValueError(
                    f"{where}: version, inputs and a state of {STATES} required for {model}, found {entry!r}"
                )
            if version in inputs:
                raise ValueError(f"{where}: every version of {model} once required, found {version} twice")
            if not names or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{where}: names of inputs required for {model} {version}, found {names!r}")
            inputs[version] = frozenset(names)
        found[model] = Versions(inputs, values.get("stable_signature") is True)
    return found


def allowlist(
    models: Mapping[str, Iterable[tuple[str, Iterable[str], str]]], *, stable: bool = False
) -> dict[str, Any]:
    """Plain values of an allowlist file: for each model its (version, inputs, state)."""
    return {
        "format": FORMAT,
        "stable_signature": stable,
        "models": {
            model: [
                {"version": version, "inputs": sorted(inputs), "state": state} for version, inputs, state in versions
            ]
            for model, versions in models.items()
        },
    }
