"""What `pip install reqdedup` brings: the library alone, with the promised dependencies and the console script."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CORE = {"pyiceberg", "pyarrow", "duckdb", "polars", "numpy", "click", "rich", "ada-url", "mmh3"}
PRESETS = sorted((ROOT / "reqdedup/logs/preset_files").glob("*.toml"))
EXTRAS = {"train", "dagster", "serve", "plots", "postgres", "notebooks", "dev"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built without network from a copy of the sources, so that no old build folder leaks into it."""
    source = tmp_path_factory.mktemp("source")
    for path in [
        ROOT / "pyproject.toml",
        *ROOT.glob("README.md"),
        *ROOT.glob("*/**/*.py"),
        ROOT / "reqdedup/py.typed",
        *PRESETS,
    ]:
        relative = path.relative_to(ROOT)
        if not relative.parts[0].startswith(".") and "data" not in relative.parts:
            (source / relative).parent.mkdir(parents=True, exist_ok=True)
            (source / relative).write_bytes(path.read_bytes())
    (source / "README.md").touch()
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*command, "--wheel-dir", out, source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    names = wheel.namelist()
    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"reqdedup"}
    assert len(roots) == 2
    presets = {str(path.relative_to(ROOT)) for path in PRESETS}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "reqdedup").rglob("*.py")}
    assert {name for name in names if name.startswith("reqdedup/")} == {*modules, *presets, "reqdedup/py.typed"}


def test_the_core_needs_neither_torch_nor_dagster(metadata):
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    core = {requirement.name: requirement for requirement in requirements if requirement.marker is None}
    assert set(core) == CORE
    assert core["pyiceberg"].extras == {"sql-sqlite", "pyarrow", "pyiceberg-core"}
    assert str(core["pyiceberg"].specifier) == "==0.12.*"


def test_torch_is_bounded_wherever_it_is_asked_for(metadata):
    assert set(metadata.get_all("Provides-Extra")) >= EXTRAS
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    asked = {extra: set() for extra in EXTRAS}
    for requirement in requirements:
        for extra in EXTRAS:
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                asked[extra].add(requirement.name)
        if requirement.name == "torch":
            assert set(str(requirement.specifier).split(",")) == {">=2.5", "<2.14"}
    assert {extra for extra, names in asked.items() if "torch" in names} == {"train", "serve"}
    assert {extra for extra, names in asked.items() if "dagster" in names} == {"dagster"}


def test_the_wheel_runs_on_python_3_11_to_3_13_and_brings_the_command(wheel, metadata):
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.14"}
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "reqdedup = reqdedup.cli:main" in wheel.read(name).decode()


IN_A_NOTEBOOK = """
import os, sys
import reqdedup as rd

assert not {"pyarrow", "torch", "dagster"} & set(sys.modules)
lake = rd.open()
report = lake.ingest("ratings.csv", "movies.r", preset="movielens", num_buckets=2)
table = rd.open().table("movies.r")
assert table.source.num_rows == report.written.rows == 4
assert table.to_polars(["user_id"]).height == 4
assert "movies.r" in lake._repr_html_()
assert sorted(os.listdir()) == ["ratings.csv", "reqdedup-lake"]
assert not {"torch", "dagster", "warehouse", "pipelines"} & set(sys.modules)
print(rd.__file__)
"""


def test_the_wheel_alone_opens_a_lake_outside_the_repository(wheel, tmp_path):
    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    folder.mkdir()
    wheel.extractall(site)
    rows = "".join(f"{user},{item},3.0,{1_000_000_000 + item}\n" for user in (1, 2) for item in (5, 6))
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(site), "HOME": str(tmp_path)}
    command = [sys.executable, "-P", "-c", IN_A_NOTEBOOK]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "reqdedup.cli", "tables"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"sqlite:///{folder}/reqdedup-lake/catalog.db" in shown.stdout
    assert "movies.r" in shown.stdout
