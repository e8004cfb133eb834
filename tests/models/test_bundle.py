from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import reqdedup.models.bundle as bundle_module
from reqdedup.models import Bundle, DCATConfig, TwoTowerConfig
from reqdedup.models.bundle import MANIFEST, add_artifacts, read_signature, write_bundle
from reqdedup.models.items import Items
from reqdedup.models.registry import build_model
from reqdedup.models.signature import Signature, schema_fingerprint
from reqdedup.models.transforms import Transforms
from reqdedup.schema import Column, EngagementSchema, Level
from tests.training.logs import SCHEMA

SIZES = {"width": 4, "num_layers": 1, "num_heads": 1, "ffn_width": 4, "item_table_rows": 8, "category_table_rows": 4}
TINY = DCATConfig(
    **SIZES,
    feature_width=2,
    hidden_widths=(4,),
    max_history=8,
    history_categories=("action",),
    request_categories=("device",),
    request_vectors=(("user_embedding", 3),),
    item_categories=("position",),
    labels=("click",),
)
ITEMS = Items(
    item_id_V=np.array([3, 5, 2**62]),
    count_V=np.array([7, 1, 2]),
    first_seen_V=np.array([10**15, 10**15 + 1, 10**15]),
    columns={"position": np.array([0, 2, 1], np.int32)},
    keys=("tt3", "Ж5", "x/y"),
)
GOLDEN = Path(__file__).parent / "bundle_format_1"


def _weights(config, seed=0):
    """Weights that are the same with every version of torch."""
    rng = np.random.default_rng(seed)
    state = build_model(config).state_dict()
    return {
        name: torch.from_numpy(rng.uniform(0.1, 0.9, x.shape).astype(np.float32)) if x.is_floating_point() else x
        for name, x in state.items()
    }


def _write(folder, config=TINY, *, seed=0, items=ITEMS, user_keys=True, learned=None, **options):
    signature = Signature.of(config, SCHEMA, positive_label="click", snapshot_id=42, learned=learned)
    assert signature.user_keys  # the schema has user_key
    signature = replace(signature, user_keys=user_keys)
    return write_bundle(
        folder, config=config, weights=_weights(config, seed), signature=signature, items=items, **options
    )


@pytest.fixture
def folder(tmp_path):
    return _write(tmp_path / "bundle", item_vectors=np.eye(3))


def test_what_was_written_is_what_is_loaded(folder):
    bundle = Bundle.load(folder)
    assert (bundle.config, bundle.task, bundle.artifacts) == (TINY, "ranking", {})
    assert not bundle.model.training
    assert not any(parameter.requires_grad for parameter in bundle.model.parameters())
    for name, value in bundle.model.state_dict().items():
        assert torch.equal(value, _weights(TINY)[name])
    signature = bundle.signature
    assert bundle.transforms is signature.transforms
    assert (signature.outputs, signature.labels, signature.snapshot_id) == (("click",), ("click",), 42)
    assert signature.schema == schema_fingerprint(SCHEMA)
    undocumented = [replace(column, doc="") for column in Transforms.of(TINY, SCHEMA).columns]
    assert list(bundle.transforms.columns) == undocumented
    assert bundle.transforms.defaults == {"position": 0}
    assert bundle.transforms.cut == Transforms.of(TINY, SCHEMA).cut
    for name in ("item_id_V", "count_V", "first_seen_V"):
        np.testing.assert_array_equal(getattr(bundle.items, name), getattr(ITEMS, name))
    assert bundle.items.keys == ITEMS.keys
    np.testing.assert_array_equal(bundle.item_vectors, np.eye(3, dtype=np.float32))


def test_items_are_found_by_id_and_by_the_logs_own_ids(folder):
    items = Bundle.load(folder).items
    assert items.positions(np.array([5, 4, 2**62, -1])).tolist() == [1, -1, 2, -1]
    assert items.ids_of(["x/y", "tt3"]).tolist() == [2**62, 3]
    with pytest.raises(ValueError, match="items: ids of the 3 items of the log required, found 'tt4'"):
        items.ids_of(["tt3", "tt4"])
    with pytest.raises(ValueError, match="ids as numbers required"):
        replace(items, keys=None).ids_of(["3"])
    none = np.zeros(0, np.int64)
    assert Items(item_id_V=none, count_V=none, first_seen_V=none).positions(np.array([1])).tolist() == [-1]


def test_the_fingerprint_is_that_of_weights_configuration_signature_and_items(tmp_path):
    first = Bundle.load(_write(tmp_path / "a")).fingerprint
    assert Bundle.load(_write(tmp_path / "b", item_vectors=np.eye(3))).fingerprint == first
    others = [
        _write(tmp_path / "c", seed=1),
        _write(tmp_path / "d", items=replace(ITEMS, count_V=np.array([7, 1, 3]))),
        _write(tmp_path / "e", items=replace(ITEMS, keys=("tt3", "Ж5", "x/z"))),
        _write(tmp_path / "f", replace(TINY, positions="rope")),
    ]
    assert len({first, *(Bundle.load(other).fingerprint for other in others)}) == 5


def test_format_1_is_written_and_read_as_it_always_was(tmp_path):
    """The folder beside this test was written by the first version that had bundles, which said nothing of users."""
    written = _write(tmp_path / "bundle", item_vectors=np.eye(3), user_keys=False)
    for path in sorted(GOLDEN.iterdir()):
        assert (written / path.name).read_bytes() == path.read_bytes(), path.name
    bundle = Bundle.load(GOLDEN)
    assert not bundle.signature.user_keys
    assert Bundle.load(_write(tmp_path / "now")).signature.user_keys
    assert bundle.fingerprint == "2786662120646210c9e8ef036c3d358c"
    batch = bundle.transforms.batch(
        request={"device": None, "user_embedding": [0.5, -1.0, 2.0]},
        history={"item_id": [3, 5, 3], "action": [1, 0, 2]},
        candidates={"item_id": [5, 2**62], "position": [2, 1]},
    )
    found = bundle.model.predict(batch)[:, 0]
    torch.testing.assert_close(found, torch.tensor([10.1195822, 9.9063482]))


@pytest.mark.parametrize("learned", [None, {}, {"split_by": "time", "held_out": 0.1, "end_us": 10**15}])
def test_the_signature_says_what_training_held_out_and_is_read_without_the_arrays(tmp_path, learned):
    folder = _write(tmp_path / "bundle", learned=learned)
    assert Bundle.load(folder).signature.learned == learned
    (folder / "weights.safetensors").unlink()
    assert read_signature(folder).learned == learned


def test_a_bundle_is_replaced_whole_and_other_folders_are_left_alone(tmp_path, monkeypatch):
    folder = _write(tmp_path / "bundle", seed=1, item_vectors=np.eye(3))
    before = Bundle.load(folder).fingerprint
    monkeypatch.setattr("reqdedup.models.bundle._copy", lambda source, path: path.write_text("half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _write(folder, artifacts={"index": folder / MANIFEST})
    assert Bundle.load(folder).fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    _write(folder)
    assert Bundle.load(folder).fingerprint != before
    assert Bundle.load(folder).item_vectors is None
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("months of work")
    with pytest.raises(ValueError, match="a new folder, or a bundle to replace, required, found other files"):
        _write(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_artifacts_are_opaque_and_checked_when_asked_for(tmp_path):
    index = tmp_path / "index"
    index.write_bytes(b"cells")
    folder = _write(tmp_path / "bundle", artifacts={"items.faiss": index})
    other = tmp_path / "other"
    other.write_bytes(b"more")
    add_artifacts(folder, {"more.bin": other})
    bundle = Bundle.load(folder)
    assert bundle.artifact("items.faiss").read_bytes() == b"cells"
    assert bundle.artifact("more.bin").read_bytes() == b"more"
    with pytest.raises(ValueError, match=r"artifact nothing of this bundle required, found items\.faiss, more\.bin"):
        bundle.artifact("nothing")
    (folder / "more.bin").write_bytes(b"MORE")
    with pytest.raises(ValueError, match="checksum required, found others"):
        bundle.artifact("more.bin")
    add_artifacts(folder, {"more.bin": folder / MANIFEST})  # another one than the bundle was loaded with
    with pytest.raises(ValueError, match="of this bundle required"):
        bundle.artifact("more.bin")
    for name in ("../out", "a/b", ".hidden", "weights.safetensors", MANIFEST, ""):
        with pytest.raises(ValueError, match="plain file names that are not the bundle's own required"):
            add_artifacts(folder, {name: index})


class _Evil:
    def __reduce__(self):
        return (pytest.fail, ("something was unpickled",))


def _damage(folder, name, change):
    """Change a file and make the manifest agree with it."""
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    _resealed(folder, name)


def _resealed(folder, name):
    copy = folder.parent / "sealed"
    shutil.copy(folder / name, copy)
    manifest = json.loads((folder / MANIFEST).read_text())
    from reqdedup.models.bundle import _copy

    manifest["files"][name] = _copy(copy, folder.parent / "unused")
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_nothing_is_unpickled(folder):
    evil = pickle.dumps(_Evil())
    (folder / "checkpoint.pt").write_bytes(evil)
    with pytest.raises(ValueError, match=r"files of a bundle alone required, found checkpoint\.pt; take it out"):
        Bundle.load(folder)
    (folder / "checkpoint.pt").unlink()
    for name in ("weights.safetensors", "items.safetensors", "item_vectors.safetensors", "item_keys.json"):
        copy = folder.parent / f"with evil {name}"
        shutil.copytree(folder, copy)
        _damage(copy, name, lambda _: evil)
        with pytest.raises(ValueError, match=f"{name}: a file of this bundle required, found another"):
            Bundle.load(copy)


def _manifest(change):
    def damage(folder):
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return damage


def _json_file(name, change):
    def damage(folder):
        def changed(content):
            values = json.loads(content)
            change(values)
            return json.dumps(values).encode()

        _damage(folder, name, changed)

    return damage


DAMAGES = {
    "no manifest": (lambda f: (f / MANIFEST).unlink(), r"manifest of a bundle required, found no file; write one with"),
    "torn manifest": (lambda f: (f / MANIFEST).write_text("{"), "manifest of a bundle required, found something else"),
    "binary manifest": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"), "manifest of a bundle required, found some"),
    "a list": (lambda f: (f / MANIFEST).write_text("[]"), r"format 1 required, found \[\]"),
    "newer format": (_manifest(lambda m: m.update(format=2)), "format 1 required, found 2"),
    "no files": (_manifest(lambda m: m.pop("files")), "size and sha256 of every file required"),
    "no weights": (_manifest(lambda m: m["files"].pop("weights.safetensors")), "files config.json, signature.json, w"),
    "another file": (_manifest(lambda m: m["files"].update(x=m["files"]["config.json"])), "files config.json, sig"),
    "a path": (_manifest(lambda m: m["artifacts"].update({"../x": m["files"]["config.json"]})), "plain file names"),
    "no checksum": (_manifest(lambda m: m["files"]["config.json"].pop("sha256")), "size and sha256 of every file"),
    "missing file": (lambda f: (f / "config.json").unlink(), r"config\.json: a file that the manifest names required"),
    "empty file": (lambda f: (f / "items.safetensors").write_bytes(b""), "bytes required, found 0"),
    "a bit": (
        lambda f: (f / "weights.safetensors").write_bytes(
            (f / "weights.safetensors").read_bytes()[:-1] + bytes([(f / "weights.safetensors").read_bytes()[-1] ^ 1])
        ),
        r"weights\.safetensors: bytes of the manifest's checksum required, found others",
    ),
    "a folder": (lambda f: [(f / "config.json").unlink(), (f / "config.json").mkdir()], "a file that the manifest nam"),
    "foreign file": (lambda f: (f / "model.pkl").write_bytes(b"x"), r"found model\.pkl; take it out"),
    "unknown kind": (
        _json_file("config.json", lambda c: c.update(kind="gpt")),
        "kind one of dcat, early_ranker, foundation, two_tower required",
    ),
    "unknown field": (_json_file("config.json", lambda c: c.update(depth=3)), "a field is unknown or missing"),
    "other sizes": (_json_file("config.json", lambda c: c.update(width=8)), r"weights\.safetensors: a file of this"),
    "other nulls": (
        _json_file("signature.json", lambda s: s["transforms"]["nulls"].update(integer=0)),
        r"signature\.json: null rules .* required, found .*; train again",
    ),
    "no inputs": (_json_file("signature.json", lambda s: s.pop("inputs")), r"signature\.json: a file of this bundle"),
    "other level": (
        _json_file("signature.json", lambda s: s["inputs"][1].update(level="x")),
        r"signature\.json: a file of this bundle required, found another: 'x' is not a valid Level",
    ),
    "an input of text": (
        _json_file("signature.json", lambda s: s["inputs"][3].update(dtype="string")),
        r"signature\.json: input device: a dtype of bool, int32, int64, .*, timestamp required, found string",
    ),
    "an input of no type": (
        _json_file("signature.json", lambda s: s["inputs"][3].update(dtype="decimal(9,2)")),
        r"signature\.json: input device: a dtype of bool, int32, .* required, found decimal",
    ),
    "an input less": (
        _json_file("signature.json", lambda s: s["inputs"].pop()),
        r"signature\.json: inputs of the model, item_id, .*, position, required, found .*; export",
    ),
    "another output": (
        _json_file("signature.json", lambda s: s["outputs"][0].update(name="save")),
        r"signature\.json: outputs of the model, click, required, found save; export",
    ),
    "one key less": (
        _json_file("item_keys.json", lambda keys: keys.pop()),
        "one value of each required for every item",
    ),
    "keys of numbers": (_json_file("item_keys.json", lambda k: k.__setitem__(0, 1)), "texts as the keys of items"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_one_sentence(folder, name):
    damage, said = DAMAGES[name]
    damage(folder)
    with pytest.raises(ValueError, match=said) as error:
        Bundle.load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value) or "plain file names" in str(error.value)


def test_a_place_without_a_bundle_is_one_sentence(tmp_path):
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match="manifest of a bundle required, found no file"):
            Bundle.load(place)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    weights = _weights(TINY)
    weights["final_norm.bias"][1] = float("nan")
    with pytest.raises(ValueError, match=r"finite weights required, found others in final_norm\.bias"):
        write_bundle(tmp_path / "b", config=TINY, weights=weights, signature=Signature.of(TINY, SCHEMA), items=ITEMS)
    assert not (tmp_path / "b").exists()


def test_weights_that_are_not_finite_are_not_loaded_whoever_wrote_them(tmp_path, monkeypatch):
    weights = _weights(TINY)
    weights["final_norm.bias"][1] = float("nan")
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, "_check_finite", lambda *_: None)
        write_bundle(tmp_path / "b", config=TINY, weights=weights, signature=Signature.of(TINY, SCHEMA), items=ITEMS)
    with pytest.raises(ValueError, match=r"finite weights required, found others in final_norm\.bias"):
        Bundle.load(tmp_path / "b")


def test_a_signature_survives_its_plain_values():
    schema = EngagementSchema((
        *SCHEMA.columns,
        Column(name="age", dtype="float32", level=Level.REQUEST, nullable=True),
        Column(name="count", dtype="int64", level=Level.REQUEST),
        Column(name="timeline_version", dtype="int32", level=Level.REQUEST),
    ))  # fmt: skip
    config = TwoTowerConfig(
        **SIZES, request_numbers=("age", "count"), request_vectors=(("user_embedding", 3),), share_context="user"
    )
    signature = Signature.of(config, schema, stride=5, positive_label="click")
    values = json.loads(json.dumps(signature.to_dict(config), allow_nan=False))
    again = Signature.from_dict(values)
    assert again.to_dict(config) == values
    assert (again.outputs, again.labels, again.positive_label) == (("cosine",), ("click",), "click")
    assert again.transforms == signature.transforms
    assert {one["name"]: one["default"] for one in values["inputs"] if "default" in one}["age"] == "NaN"
    assert {one["name"]: one["read_as"] for one in values["inputs"]} == {
        "item_id": "item",
        "history_item_id": "item",
        "user_embedding": "vector",
        "age": "number",
        "count": "number",
        "history_end": "window",
        "timeline_version": "window",
    }
