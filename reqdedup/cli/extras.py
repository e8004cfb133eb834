"""What this installation requires, by extra, and what of it is there: read from its own metadata."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

NEEDED_FOR = {
    "": "storage, audit, convert, and everything else",
    "train": "train, evaluate, export, score",
    "baselines": "iALS among the baselines",
    "serve": "serve",
    "ann": "approximate retrieval indexes",
    "postgres": "a catalog in PostgreSQL",
    "valkey": "a store in Valkey or Redis",
    "kafka": "events from a broker of Kafka's protocol",
    "plots": "charts and audit --html",
    "ray": "the engine ray",
    "dagster": "the graph and its UI",
    "notebooks": "the notebooks",
}
"""By extra; those of development are not asked about."""

_MODULES = {"psycopg2": "psycopg2-binary", "faiss": "faiss-cpu"}
"""Modules with another name than their distribution."""


@dataclass(frozen=True)
class Library:
    """name: of the distribution.  extra: '' if it is always needed.  required: its bounds.  found: version, or None."""

    name: str
    extra: str
    required: str
    found: str | None

    @property
    def is_within(self) -> bool:
        """Whether the version that is there is within the bounds."""
        return self.found is not None and _fits(self.found, self.required)


def libraries() -> list[Library]:
    """Everything that the installation names, in its order; nothing if it runs from a folder without metadata."""
    found = []
    try:
        required = metadata.requires("reqdedup") or []
    except metadata.PackageNotFoundError:
        return []
    for line in required:
        match = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;(.*))?$", line)
        assert match is not None
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", match[3] or "")
        name = extra[1] if extra else ""
        if name in NEEDED_FOR:
            found.append(Library(match[1], name, match[2].strip(), _version(match[1])))
    return found


def extra_of(module: str) -> str | None:
    """The extra that a missing module comes with; None if it is none of ours."""
    top = module.partition(".")[0]
    wanted = _MODULES.get(top, top).replace("_", "-").lower()
    return next((one.extra for one in libraries() if one.name.lower() == wanted and one.extra), None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, bounds: str) -> bool:
    """The part of PEP 440 that our bounds use: >=, <, and == with a star."""
    found = _numbers(version)
    for sign, bound in re.findall(r"(>=|<|==)\s*([\d.]+)", bounds):
        wanted = _numbers(bound)
        is_in = {">=": found >= wanted, "<": found < wanted, "==": found[: len(wanted)] == wanted}[sign]
        if not is_in:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4])
