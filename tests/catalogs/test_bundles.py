"""Bundles in a real object store: copied once, every byte checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reqdedup.models import Bundle
from reqdedup.models.bundle import MANIFEST, read_manifest
from reqdedup.serving.bundles.places import find_bundles, find_manifests, publish, upload
from tests.catalogs.conftest import new_namespace
from tests.servers.seaweedfs import BUCKET

pytestmark = pytest.mark.servers

GOLDEN = Path(__file__).parents[1] / "models" / "bundle_format_1"


@pytest.fixture
def at():
    """A prefix of this test's own."""
    return f"{BUCKET}/{new_namespace()}"


def test_a_bundle_is_copied_from_s3_once_and_its_bytes_are_checked(seaweedfs, at, tmp_path):
    properties, store = seaweedfs.s3_properties, seaweedfs.filesystem()
    upload(GOLDEN, f"s3://{at}/bundle", properties=properties)
    (folder,) = find_bundles(f"s3://{at}/bundle/", cache=tmp_path, properties=properties)
    assert Bundle.load(folder).fingerprint == Bundle.load(GOLDEN).fingerprint
    copied = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert find_bundles(f"s3://{at}/bundle", cache=tmp_path, properties=properties) == [folder]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == copied
    (folder / "weights.safetensors").write_bytes(b"damaged in the cache")
    assert Bundle.load(find_bundles(f"s3://{at}/bundle", cache=tmp_path, properties=properties)[0])
    shutil.rmtree(folder)
    weights = (GOLDEN / "weights.safetensors").read_bytes()
    for content in (weights[:-1] + bytes([weights[-1] ^ 1]), b""):
        with store.open_output_stream(f"{at}/bundle/weights.safetensors") as file:
            file.write(content)
        with pytest.raises(ValueError, match=r"weights\.safetensors: bytes of the manifest's checksum required"):
            find_bundles(f"s3://{at}/bundle", cache=tmp_path, properties=properties)
    store.delete_file(f"{at}/bundle/weights.safetensors")
    with pytest.raises(ValueError, match="checksum required, found no file"):
        find_bundles(f"s3://{at}/bundle", cache=tmp_path, properties=properties)
    assert list(tmp_path.iterdir()) == []


def test_the_current_version_of_a_place_in_s3_is_found(seaweedfs, at, tmp_path):
    properties = seaweedfs.s3_properties
    version = publish(tmp_path / "place", [GOLDEN])
    upload(tmp_path / "place", f"s3://{at}/place", properties=properties)
    (folder,) = find_bundles(f"s3://{at}/place", cache=tmp_path / "cache", properties=properties)
    assert (folder / MANIFEST).read_bytes() == (tmp_path / "place" / version / "ranking" / MANIFEST).read_bytes()
    for place in (f"s3://{at}/place/", tmp_path / "place", folder):
        assert find_manifests(place, properties=properties) == [read_manifest(folder)]


def test_what_cannot_be_read_from_s3_is_one_sentence(seaweedfs, at, tmp_path):
    properties = seaweedfs.s3_properties
    with pytest.raises(ValueError, match="a bundle, or a place of published ones, required, found neither"):
        find_bundles(f"s3://{at}/nothing", cache=tmp_path, properties=properties)
    with pytest.raises(ValueError, match="a cache folder required"):
        find_bundles(f"s3://{at}/nothing", properties=properties)
    wrong = {**properties, "s3.secret-access-key": "wrong-secret"}
    with pytest.raises(ValueError, match="a store that can be read required, found an error") as error:
        find_bundles(f"s3://{at}/nothing", cache=tmp_path, properties=wrong)
    assert "wrong-secret" not in str(error.value)
    assert "\n" not in str(error.value)
