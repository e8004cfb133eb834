"""Versions of bundles: published whole, current and previous kept."""

from __future__ import annotations

import json
import shutil

import pytest

from reqdedup.models import Bundle
from reqdedup.models.bundle import MANIFEST, add_artifacts
from reqdedup.serving.bundles.places import CURRENT, find_bundles, publish, read_versions


@pytest.fixture
def bundles(trained_bundles, tmp_path):
    """Copies of both, and how to make others of them."""
    folders = [tmp_path / "made" / "ranking", tmp_path / "made" / "retrieval"]
    shutil.copytree(trained_bundles.ranking, folders[0])
    shutil.copytree(trained_bundles.retrieval, folders[1])

    def changed(text: str):
        path = tmp_path / "artifact"
        path.write_text(text)
        add_artifacts(folders[1], {"note.txt": path})
        return folders

    return folders, changed


def test_a_version_is_published_whole_and_the_one_before_it_is_kept(bundles, tmp_path):
    folders, changed = bundles
    place = tmp_path / "place"
    first = publish(place, folders)
    found = {Bundle.load(folder).task: folder for folder in find_bundles(place)}
    assert found == {task: place / first / task for task in ("ranking", "retrieval")}
    assert publish(place, folders) == first
    assert read_versions(place).previous is None
    second = publish(place, changed("second"))
    assert read_versions(place).previous == first
    third = publish(place, changed("third"))
    assert (read_versions(place).current, read_versions(place).previous) == (third, second)
    assert sorted(path.name for path in place.iterdir()) == sorted([second, third, CURRENT])
    assert publish(place, changed("second")) == second  # back to it, as it lies there
    assert read_versions(place).previous == third


def test_a_failed_publication_leaves_what_is_current(bundles, tmp_path, monkeypatch):
    folders, changed = bundles
    place = tmp_path / "place"
    first = publish(place, folders)

    def fail(*_):
        raise OSError("disk full")

    changed("second")
    for name in ("shutil.copytree", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"reqdedup.serving.bundles.places.{name}", fail)
            with pytest.raises(OSError, match="disk full"):
                publish(place, folders)
        assert read_versions(place).current == first
        assert all(Bundle.load(folder) for folder in find_bundles(place))
    (folders[0] / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"weights\.safetensors: \d+ bytes required"):
        publish(place, folders)
    with pytest.raises(ValueError, match="one bundle of each task required, found 2 of retrieval"):
        publish(place, [folders[1], folders[1]])
    assert read_versions(place).current == first


def test_a_place_that_is_none_is_one_sentence(bundles, tmp_path):
    with pytest.raises(ValueError, match="manifest of a bundle required, found no file"):
        [Bundle.load(folder) for folder in find_bundles(tmp_path / "nowhere")]
    place = tmp_path / "place"
    publish(place, bundles[0])
    names = json.loads((place / CURRENT).read_text())
    for change, said in (
        ({"format": 2}, "format 1 with plain names required, found format 2"),
        ({"current": "../../etc"}, "plain names required"),
        ({"bundles": 7}, "names of versions required"),
    ):
        (place / CURRENT).write_text(json.dumps({**names, **change}))
        with pytest.raises(ValueError, match=said):
            find_bundles(place)
    assert find_bundles(bundles[0][0]) == [bundles[0][0]]
    assert (bundles[0][0] / MANIFEST).exists()
