"""Which namespace a log's tables live in, and the refusal to let one log write over the tables of another.

The name is the preset's and the log's (`movielens_ml_100k`), the log's alone with a mapping, the recipe's for a
synthetic log. Two logs can still come to one name, so `raw_engagements` says which log its rows are of, in the commit
that wrote them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table

from warehouse.tables import ENGAGEMENT_TABLES

LOG, LOG_FINGERPRINT = "reqdedup.log", "reqdedup.log-fingerprint"
"""Table properties of raw_engagements: path of the log (or which synthetic one), and what tells its
files from others."""

END_BYTES = 65_536


def namespace_of(*, recipe: str, logs: str = "", preset: str = "", seed: int | None = None) -> str:
    """The namespace of a log's tables: lower case, a-z, 0-9 and _.

    seed: of a synthetic log if it is not the recipe's own; a log of the user's own is the same whatever the seed.
    """
    if not logs:
        return recipe if seed is None else f"{recipe}_seed_{seed}"
    name = f"{preset}_{Path(logs).resolve().stem}".lower()
    return re.sub(r"[^a-z0-9]+", "_", name).strip("_") or "log"


def check_name(namespace: str) -> None:
    """Raise ValueError for a name that is no single part of a table's name, or no folder of its own for the models."""
    if not re.fullmatch(r"[\w-]+", namespace):
        raise ValueError(f"namespace: letters, digits, _ and - required, found {namespace!r}")


def log_record(*, recipe: str, logs: str = "", seed: int | None = None) -> dict[str, str]:
    """What raw_engagements says about the log that its rows are of. Raises ValueError if there is no such log."""
    if not logs:
        seeded = "" if seed is None else f", seed {seed}"
        return {LOG: f"synthetic, recipe {recipe}{seeded}", LOG_FINGERPRINT: ""}
    if not Path(logs).exists():
        raise ValueError(f"log {logs}: a file or folder required, found none")
    return {LOG: str(Path(logs).resolve()), LOG_FINGERPRINT: _fingerprint(logs)}


def check_same_log(catalog: Catalog, namespace: str, record: Mapping[str, str]) -> None:
    """Raise ValueError if the tables of the namespace are of another log, or of one that nobody has recorded.

    A log that grew at its path, or was moved without a change, is the same log.
    """
    raw = _filled(catalog, f"{namespace}.raw_engagements")
    if raw is not None and LOG in raw.properties:
        of, fingerprint = raw.properties[LOG], record[LOG_FINGERPRINT]
        if of == record[LOG] or (fingerprint and raw.properties.get(LOG_FINGERPRINT) == fingerprint):
            return
        found = f"holds the tables of another log, {of}"
    elif any(_filled(catalog, f"{namespace}.{name}") for name in ENGAGEMENT_TABLES):
        found = "holds tables of which no log is recorded (an earlier version made them, or another program)"
    else:
        return
    raise ValueError(
        f"namespace {namespace}: free or of {record[LOG]} required, found that it {found}. `make run NAMESPACE={namespace}` "
        "replaces what it holds, NAMESPACE=<another name> leaves it; add LOGS=, PRESET= and the others as they were"
    )


def _filled(catalog: Catalog, identifier: str) -> Table | None:
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        return None
    return table if table.current_snapshot() is not None else None


def _fingerprint(logs: str) -> str:
    """A digest of the names, sizes and first and last 64 KiB of the log's files; empty if there are none to read.

    A log that was moved keeps it. It is no checksum: a change in the middle of a large file goes unseen.
    """
    digest = hashlib.sha256()
    root = Path(logs)
    try:
        for path in _files(root):
            size = path.stat().st_size
            digest.update(f"{path.name if path == root else path.relative_to(root)}\0{size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(END_BYTES))
                file.seek(max(size - END_BYTES, 0))
                digest.update(file.read(END_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    return iter([root]) if not root.is_dir() else iter(sorted(path for path in root.rglob("*") if path.is_file()))
