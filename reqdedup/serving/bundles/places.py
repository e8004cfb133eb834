"""Where bundles lie: a folder, a place that keeps two versions, and both in an object store.

    place/current.json             {"format": 1, "current": version, "previous": version or null, "bundles": [...]}
    place/<version>/ranking        a bundle; a version never changes once it stands there
    place/<version>/retrieval

`publish` makes a version beside the others and then names it in one step; a reader finds the old ones or the new ones,
never some of each. Of an object store everything is copied into a cache folder first, checksums verified, and read
there; what the cache has already is not copied again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reqdedup.models.bundle import MANIFEST, Bundle, add_artifacts, check_manifest, put_in_place, read_manifest
from reqdedup.serving.bundles.copies import lock
from reqdedup.serving.retrieval.approximate_index import INDEX_NAME, build_index, index_kind

if TYPE_CHECKING:
    from pyiceberg.io import FileIO

    from reqdedup.training.plan import Source

CURRENT = "current.json"
PLACE_FORMAT = 1
ABANDONED_S = 3600.0
"""Age of an unfinished version whose publisher must have died [seconds]."""
_UNFINISHED = r"\.[0-9a-f]{12}\.[0-9a-f]{8}\.unfinished(\.old)?"


@dataclass(frozen=True, kw_only=True)
class Versions:
    """What a place holds. bundles: names of the folders in a version, `ranking` and `retrieval`."""

    current: str
    previous: str | None
    bundles: tuple[str, ...]


def publish(place: Path, bundles: Sequence[Path]) -> str:
    """Make these bundles the current version of the place, what was current the previous one; the version's name.

    Older versions go. A version is named for its content: publishing what is current changes nothing.
    Raises ValueError for a bundle that does not load, and for two of one task.
    """
    loaded = {bundle.task: bundle for bundle in map(Bundle.load, bundles)}
    if len(loaded) < len(bundles) or not loaded:
        raise ValueError(
            f"{place}: one bundle of each task required, found {len(bundles)} of {', '.join(loaded) or 'none'}"
        )
    manifests = [(bundle.folder / MANIFEST).read_bytes() for _, bundle in sorted(loaded.items())]
    version = hashlib.sha256(b"".join(manifests)).hexdigest()[:12]
    before = read_versions(place) if (place / CURRENT).exists() else None
    if before is not None and before.current == version:
        return version
    if not (place / version).exists():
        unfinished = place / f".{version}.{uuid.uuid4().hex[:8]}.unfinished"
        try:
            for task, bundle in loaded.items():
                shutil.copytree(bundle.folder, unfinished / task)
            put_in_place(unfinished, place / version)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    now = Versions(current=version, previous=before.current if before else None, bundles=tuple(sorted(loaded)))
    names = {"format": PLACE_FORMAT, "current": now.current, "previous": now.previous, "bundles": now.bundles}
    (place / f".{CURRENT}").write_text(json.dumps(names, indent=2) + "\n")
    os.replace(place / f".{CURRENT}", place / CURRENT)
    for old in place.iterdir():
        if old.is_dir() and re.fullmatch("[0-9a-f]{12}", old.name) and old.name not in (now.current, now.previous):
            shutil.rmtree(old)
        elif re.fullmatch(_UNFINISHED, old.name) and time.time() - old.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(old, ignore_errors=True)
    return version


def add_index(folder: Path, source: Source) -> bool:
    """Build the index of a bundle's items into it, before anybody serves it; False if exact search is as good.

    source: what the model was trained on, whose users the index is measured with.
    """
    from reqdedup.serving.bundles.checks import user_vectors

    bundle = Bundle.load(folder)
    vectors = bundle.item_vectors
    if vectors is None or index_kind(len(vectors)) is None:
        return False
    with tempfile.TemporaryDirectory(prefix="reqdedup-index-") as made:
        path = Path(made) / INDEX_NAME
        if not build_index(vectors, path, users=user_vectors(bundle, source)):
            return False
        add_artifacts(folder, {INDEX_NAME: path})
    return True


def read_versions(place: Path) -> Versions:
    """Raises ValueError if nothing was published there, or in another format."""
    return _versions((place / CURRENT).read_bytes() if (place / CURRENT).is_file() else None, str(place / CURRENT))


def find_bundles(
    place: Path | str, *, cache: Path | None = None, properties: Mapping[str, str] | None = None
) -> list[Path]:
    """Folders on this machine of the bundle at `place`, or of a place's current version.

    place: a path, or the location of an object store (s3://...).  cache: folder for copies of it.
    properties: pyiceberg's, of the store, credentials too; without them the environment's.
    Raises ValueError, one sentence, if there is no bundle or the store cannot be read, or has damaged files.
    """
    local = _local(place)
    if local is not None:
        return _folders(local)
    if cache is None:
        raise ValueError(f"{place}: a cache folder required for bundles of an object store, found none")
    store, location = _store_of(str(place), properties)
    return [_fetched(store, at, manifest, cache) for at, manifest in _manifests(store, location)]


def find_manifests(place: Path | str, *, properties: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Manifests of what `find_bundles` finds: nothing else is read, nothing copied, so one may look often."""
    local = _local(place)
    if local is not None:
        return [read_manifest(folder) for folder in _folders(local)]
    store, location = _store_of(str(place), properties)
    return [_parsed(manifest, at) for at, manifest in _manifests(store, location)]


def upload(place: Path, location: str, *, properties: Mapping[str, str] | None = None) -> None:
    """Copy a bundle, or a place with its versions, into an object store; what names the rest is written last."""
    store, location = _store_of(location, properties)
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: (path.name == CURRENT, path.name == MANIFEST)):
        store.write(f"{location}/{path.relative_to(place).as_posix()}", path.read_bytes())


def _local(place: Path | str) -> Path | None:
    """None of an object store. A server of plain folders starts without the storage stack."""
    if ":" not in str(place):
        return Path(place)
    from reqdedup.storage.iceberg.paths import local_path

    local = local_path(str(place))
    return None if local is None else Path(local)


def _folders(place: Path) -> list[Path]:
    if (place / MANIFEST).exists() or not (place / CURRENT).exists():
        return [place]  # one that is not there is refused by Bundle.load
    versions = read_versions(place)
    return [place / versions.current / name for name in versions.bundles]


def _store_of(place: str, properties: Mapping[str, str] | None) -> tuple[_Store, str]:
    from reqdedup.storage.iceberg.reference import open_store

    location = place.rstrip("/")
    return _Store(open_store(properties or {}, location)), location


def _manifests(store: _Store, location: str) -> list[tuple[str, bytes]]:
    """Location and manifest of each bundle there."""
    manifest = store.read(f"{location}/{MANIFEST}")
    if manifest is not None:
        return [(location, manifest)]
    versions, found = _versions(store.read(f"{location}/{CURRENT}"), f"{location}/{CURRENT}"), []
    for name in versions.bundles:
        at = f"{location}/{versions.current}/{name}"
        manifest = store.read(f"{at}/{MANIFEST}")
        if manifest is None:
            raise ValueError(f"{at}/{MANIFEST}: manifest of a bundle required, found no file; upload the place again")
        found.append((at, manifest))
    return found


class _Store:
    """Whole files of an object store."""

    def __init__(self, io: FileIO) -> None:
        self._io = io

    def read(self, location: str) -> bytes | None:
        """None if there is no such file."""
        try:
            with self._io.new_input(location).open() as file:
                return file.read()
        except FileNotFoundError:
            return None
        except Exception as error:  # of pyarrow or another FileIO: each has its own
            raise ValueError(f"{location}: a store that can be read required, found an error: {_line(error)}") from None

    def write(self, location: str, content: bytes) -> None:
        try:
            with self._io.new_output(location).create(overwrite=True) as file:
                file.write(content)
        except Exception as error:
            raise ValueError(
                f"{location}: a store that can be written required, found an error: {_line(error)}"
            ) from None


def _parsed(manifest: bytes, location: str) -> dict[str, Any]:
    try:
        values = json.loads(manifest)
    except ValueError as error:
        raise ValueError(
            f"{location}/{MANIFEST}: manifest of a bundle required, found something else: {error}"
        ) from None
    return check_manifest(values, f"{location}/{MANIFEST}")


def _fetched(store: _Store, location: str, manifest_bytes: bytes, cache: Path) -> Path:
    """The bundle's copy in the cache, each file with the manifest's checksum."""
    manifest = _parsed(manifest_bytes, location)
    folder = cache / hashlib.sha256(manifest_bytes).hexdigest()[:32]
    entries = {**manifest["files"], **manifest["artifacts"]}
    if folder.exists() and all(_has(folder / name, entry) for name, entry in entries.items()):
        os.utime(folder)  # whoever removes unused copies leaves it alone until we hold it
        return folder
    unfinished = cache / f".{folder.name}.{uuid.uuid4().hex[:8]}.unfinished"
    unfinished.mkdir(parents=True)
    held = lock(unfinished)
    try:
        for name, entry in entries.items():
            content = store.read(f"{location}/{name}")
            if content is None or hashlib.sha256(content).hexdigest() != entry["sha256"]:
                found = "no file" if content is None else "others"
                raise ValueError(
                    f"{location}/{name}: bytes of the manifest's checksum required, found {found}; upload the "
                    "bundle again"
                )
            (unfinished / name).write_bytes(content)
        (unfinished / MANIFEST).write_bytes(manifest_bytes)
        put_in_place(unfinished, folder)
    finally:
        os.close(held)
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _has(path: Path, entry: Mapping[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]


def _versions(content: bytes | None, where: str) -> Versions:
    if content is None:
        raise ValueError(f"{where}: a bundle, or a place of published ones, required, found neither; publish one first")
    try:
        values = json.loads(content)
        found = values["format"]
        versions = Versions(current=values["current"], previous=values["previous"], bundles=tuple(values["bundles"]))
        names = [versions.current, *versions.bundles, *([versions.previous] if versions.previous else [])]
        is_plain = all(re.fullmatch("[a-z0-9_]+", name) for name in names)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: names of versions required, found something else: {error!r}") from None
    if found != PLACE_FORMAT or not is_plain:
        raise ValueError(f"{where}: format {PLACE_FORMAT} with plain names required, found format {found!r}, {names}")
    return versions


def _line(error: Exception) -> str:
    """Its first line; a store's own text may go on for pages."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
