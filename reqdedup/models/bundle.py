"""A bundle: one trained model as a folder that a server can load and trust. Nothing in it is ever unpickled.

    manifest.json               format, and size and sha256 of every file
    config.json                 of the model, by the registry
    signature.json              what it reads and gives (`reqdedup.models.signature`)
    weights.safetensors         weights and buffers
    items.safetensors           item_id, count, first_seen and the items' own columns (`reqdedup.models.items`)
    item_keys.json              the log's ids of the items, if they are texts
    item_vectors.safetensors    [V, D] float32, the vectors of all items, in their order (retrieval)
    ...                         artifacts: files of others, an index for example, opaque here

The files are checked when the bundle is loaded, the artifacts when they are asked for. The fingerprint is that of
configuration, signature, weights and items; vectors and artifacts follow from these.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from reqdedup.models.config import ModelConfig
from reqdedup.models.int8_tables import fit_to
from reqdedup.models.items import Items
from reqdedup.models.registry import build_model, config_from_dict, config_to_dict, kind_of
from reqdedup.models.signature import Signature
from reqdedup.models.transforms import Transforms

BUNDLE_FORMAT = 1
MANIFEST, CONFIG, SIGNATURE, WEIGHTS = "manifest.json", "config.json", "signature.json", "weights.safetensors"
ITEMS, ITEM_KEYS, ITEM_VECTORS = "items.safetensors", "item_keys.json", "item_vectors.safetensors"
_REQUIRED = (CONFIG, SIGNATURE, WEIGHTS, ITEMS)
_OPTIONAL = (ITEM_KEYS, ITEM_VECTORS)
_PRINTED = (*_REQUIRED, ITEM_KEYS)
_COLUMN = "column."
"""Before the names of the items' own columns."""

T = TypeVar("T")


def read_signature(folder: Path | str) -> Signature:
    """Of a bundle, without its arrays. Raises ValueError as `Bundle.load` does."""
    folder = Path(folder)
    data = _checked(folder, SIGNATURE, read_manifest(folder)["files"][SIGNATURE])
    return _parsed(folder, SIGNATURE, lambda: Signature.from_dict(json.loads(data)))


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle; `model` is in evaluation mode and has no gradients.

    fingerprint: 128 bits, hexadecimal: equal for the same configuration, weights, signature and items.
    item_vectors: [V, D] float32, rows as `items`; None for a model that has none.
    artifacts: sha256 of each, by name.
    """

    folder: Path
    fingerprint: str
    config: ModelConfig
    signature: Signature
    items: Items
    model: nn.Module = field(repr=False)
    item_vectors: np.ndarray | None = field(repr=False)
    artifacts: Mapping[str, str]

    @property
    def transforms(self) -> Transforms:
        return self.signature.transforms

    @property
    def task(self) -> str:
        """`ranking` or `retrieval`."""
        return kind_of(self.config).task

    @classmethod
    def load(cls, folder: Path | str) -> Bundle:
        """Raises ValueError, one sentence, for a file that is missing, damaged, of another format or no bundle's."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        known = {MANIFEST, *manifest["files"], *manifest["artifacts"]}
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in known and path.name[0] != ".")
        if foreign:
            raise ValueError(f"{folder}: files of a bundle alone required, found {foreign[0]}; take it out")
        data = {name: _checked(folder, name, entry) for name, entry in manifest["files"].items()}
        config = _parsed(folder, CONFIG, lambda: config_from_dict(json.loads(data[CONFIG])))
        signature = _parsed(folder, SIGNATURE, lambda: Signature.from_dict(json.loads(data[SIGNATURE])))
        _parsed(folder, SIGNATURE, lambda: signature.check(config))
        keys = _parsed(folder, ITEM_KEYS, lambda: json.loads(data[ITEM_KEYS])) if ITEM_KEYS in data else None
        items = _parsed(folder, ITEMS, lambda: _items(safetensors.numpy.load(data[ITEMS]), keys))
        model = build_model(config)
        weights = _parsed(folder, WEIGHTS, lambda: safetensors.torch.load(data[WEIGHTS]))
        fit_to(model, weights)
        _parsed(folder, WEIGHTS, lambda: model.load_state_dict(weights))
        _check_finite(folder, weights)
        vectors = None
        if ITEM_VECTORS in data:
            vectors = _parsed(folder, ITEM_VECTORS, lambda: safetensors.numpy.load(data[ITEM_VECTORS])["item_vectors"])
            if len(vectors) != len(items) or vectors.ndim != 2:
                raise ValueError(f"{folder / ITEM_VECTORS}: {len(items)} vectors required, found {vectors.shape}")
        return cls(
            folder=folder,
            fingerprint=fingerprint_of(manifest),
            config=config,
            signature=signature,
            items=items,
            model=model.eval().requires_grad_(False),
            item_vectors=vectors,
            artifacts={name: entry["sha256"] for name, entry in manifest["artifacts"].items()},
        )

    def artifact(self, name: str) -> Path:
        """The file of an artifact, its bytes checked now. Raises ValueError if there is none, or another one."""
        entry = read_manifest(self.folder)["artifacts"].get(name)
        if entry is None or entry["sha256"] != self.artifacts.get(name):
            there = ", ".join(self.artifacts) or "none"
            raise ValueError(f"{self.folder}: artifact {name} of this bundle required, found {there}")
        path = self.folder / name
        _check(path, entry, os.path.getsize(path) if path.is_file() else -1, lambda: _sha256(path))
        return path


def write_bundle(
    folder: Path | str,
    *,
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    signature: Signature,
    items: Items,
    item_vectors: np.ndarray | None = None,
    artifacts: Mapping[str, Path] | None = None,
) -> Path:
    """Write a bundle beside `folder` and give it that name; a bundle that stands there is replaced.

    weights: of the plain model, as `state_dict` names them.  artifacts: files to copy, by the names that they get.
    Raises ValueError for weights that are not finite and for a folder that is no bundle; then it is as it was.
    """
    folder = Path(folder)
    _check_finite(folder, weights)
    if folder.exists() and not (folder / MANIFEST).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: a new folder, or a bundle to replace, required, found other files")
    data: dict[str, bytes] = {
        CONFIG: _json(config_to_dict(config)),
        SIGNATURE: _json(signature.to_dict(config)),
        WEIGHTS: safetensors.torch.save({name: x.detach().cpu().contiguous() for name, x in weights.items()}),
        ITEMS: safetensors.numpy.save(_arrays(items)),
    }
    if items.keys is not None:
        data[ITEM_KEYS] = json.dumps(items.keys, ensure_ascii=False, separators=(",", ":")).encode()
    if item_vectors is not None:
        data[ITEM_VECTORS] = safetensors.numpy.save({"item_vectors": np.ascontiguousarray(item_vectors, np.float32)})
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.unfinished")
    unfinished.mkdir()
    try:
        files = {name: _write(unfinished / name, content) for name, content in data.items()}
        copied = {name: _copy(path, unfinished / _plain_name(name)) for name, path in (artifacts or {}).items()}
        _write(unfinished / MANIFEST, _json({"format": BUNDLE_FORMAT, "files": files, "artifacts": copied}))
        put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def add_artifacts(folder: Path | str, artifacts: Mapping[str, Path]) -> None:
    """Copy files into a bundle that nobody serves yet; one of the same name is replaced."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, path in artifacts.items():
        manifest["artifacts"][name] = _copy(path, folder / _plain_name(name))
    _write(folder / f".{MANIFEST}", _json(manifest))
    os.replace(folder / f".{MANIFEST}", folder / MANIFEST)


def put_in_place(made: Path, folder: Path) -> None:
    """Give a finished folder its name; what had it goes when the new one stands there."""
    old = made.with_name(made.name + ".old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(made, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest: format, files and artifacts. Raises ValueError if there is none that this version can read."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path}: manifest of a bundle required, found no file; write one with `reqdedup export`"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: manifest of a bundle required, found something else: {error}") from None
    return check_manifest(manifest, str(path))


def check_manifest(manifest: Any, path: str) -> dict[str, Any]:
    """Raises ValueError for a manifest that this version cannot read."""
    if not isinstance(manifest, dict) or manifest.get("format") != BUNDLE_FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise ValueError(
            f"{path}: format {BUNDLE_FORMAT} required, found {found!r}; read it with the reqdedup of its time"
        )
    try:
        entries = {**manifest["files"], **manifest["artifacts"]}
        is_whole = all(
            re.fullmatch("[0-9a-f]{64}", entry["sha256"]) and entry["bytes"] >= 0 for entry in entries.values()
        )
    except (KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path}: size and sha256 of every file required, found them missing; export the bundle again")
    for name in entries:
        _plain_name(name, is_artifact=name in manifest["artifacts"])
    missing, unknown = set(_REQUIRED) - set(manifest["files"]), set(manifest["files"]) - {*_REQUIRED, *_OPTIONAL}
    if missing or unknown:
        raise ValueError(
            f"{path}: files {', '.join(_REQUIRED)} required, found {', '.join(manifest['files'])}; export the "
            "bundle again"
        )
    return manifest


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """128 bits, hexadecimal, of what decides the model's answers."""
    parts = [f"{name} {manifest['files'][name]['sha256']}" for name in _PRINTED if name in manifest["files"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _items(arrays: Mapping[str, np.ndarray], keys: Any) -> Items:
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ValueError("texts as the keys of items required, found others")
    return Items(
        item_id_V=arrays["item_id"],
        count_V=arrays["count"],
        first_seen_V=arrays["first_seen"],
        columns={name.removeprefix(_COLUMN): x for name, x in arrays.items() if name.startswith(_COLUMN)},
        keys=None if keys is None else tuple(keys),
    )


def _arrays(items: Items) -> dict[str, np.ndarray]:
    columns = {f"{_COLUMN}{name}": x for name, x in items.columns.items()}
    arrays = {"item_id": items.item_id_V, "count": items.count_V, "first_seen": items.first_seen_V, **columns}
    return {name: np.ascontiguousarray(x) for name, x in arrays.items()}


def _parsed(folder: Path, name: str, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except Exception as error:  # of JSON, of safetensors, of torch: each has its own
        what = " ".join(str(error).split())
        is_sentence = isinstance(error, ValueError) and " required, found " in what
        what = what if is_sentence else f"a file of this bundle required, found another: {what}"
        raise ValueError(f"{folder / name}: {what}") from None


def _checked(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    """The bytes of a file, checked as they were read."""
    path = folder / name
    content = path.read_bytes() if path.is_file() else b""
    _check(path, entry, len(content) if path.is_file() else -1, lambda: hashlib.sha256(content).hexdigest())
    return content


def _check(path: Path, entry: Mapping[str, Any], size: int, sha256: Callable[[], str]) -> None:
    if size < 0:
        raise ValueError(f"{path}: a file that the manifest names required, found none; export the bundle again")
    if size != entry["bytes"]:
        raise ValueError(f"{path}: {entry['bytes']} bytes required, found {size}; export the bundle again")
    if sha256() != entry["sha256"]:
        raise ValueError(f"{path}: bytes of the manifest's checksum required, found others; export the bundle again")


def _plain_name(name: str, *, is_artifact: bool = True) -> str:
    """Raises ValueError for a name that is no plain file's, or one of the bundle's own."""
    is_plain = bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name))
    if not is_plain or (is_artifact and name in (MANIFEST, *_REQUIRED, *_OPTIONAL)):
        raise ValueError(f"bundle: plain file names that are not the bundle's own required, found {name!r}")
    return name


def _json(values: Any) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _write(path: Path, content: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _copy(source: Path, path: Path) -> dict[str, Any]:
    shutil.copyfile(source, path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_finite(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    bad = [name for name, x in weights.items() if x.is_floating_point() and not bool(x.isfinite().all())]
    if bad:
        raise ValueError(f"{folder}: finite weights required, found others in {bad[0]}; train again")
