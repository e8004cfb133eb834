"""Who may import whom, and that importing costs nothing: the rules of the house, executed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Runs in a child: hide some modules, record every effect on the outside world, import, report.
_CHILD = """
    import json, sys, threading

    blocked = set(json.loads(sys.argv[1]))

    class Without:
        # a finder that does not see the blocked packages, as if they were not installed
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

        def __getattr__(self, name):
            return getattr(self.finder, name)

    effects = []

    def record(event, args):
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes and not str(args[0]).endswith(".pyc") and "__pycache__" not in str(args[0]):
            effects.append(f"open {args[0]} {args[1]}")
        elif event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "os.putenv", "sqlite3.connect"):
            effects.append(f"{event} {args[:2]}")

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    for name in json.loads(sys.argv[3]):  # third parties may do as they please while they are imported
        __import__(name)
    sys.addaudithook(record)
    for name in json.loads(sys.argv[2]):
        __import__(name)
    print(json.dumps({"effects": effects, "threads": threading.active_count(), "modules": sorted(sys.modules)}))
"""


def import_in_child(*modules: str, blocked: list[str], first: list[str] | None = None) -> dict:
    """Effects, number of threads and loaded modules after importing `modules` where `blocked` cannot be imported."""
    child = subprocess.run(
        [
            sys.executable,
            "-B",
            "-c",
            textwrap.dedent(_CHILD),
            json.dumps(blocked),
            json.dumps(modules),
            json.dumps(first or []),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_the_import_contracts_hold():
    lint_imports = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint_imports, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_package_of_the_repository_is_under_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(contracts["root_packages"])


@pytest.mark.slow
def test_the_storage_half_imports_without_torch_and_dagster():
    loaded = import_in_child(
        "reqdedup",
        "reqdedup.schema",
        "reqdedup.dedup.encoding",
        "reqdedup.logs",
        "reqdedup.storage",
        "reqdedup.cli",
        "warehouse",
        blocked=["torch", "triton", "dagster", "dagster_webserver", "matplotlib"],
    )
    assert "reqdedup.storage" in loaded["modules"]


@pytest.mark.slow
def test_models_and_operations_import_without_the_storage_stack():
    pytest.importorskip("torch")
    import_in_child(
        "reqdedup.ops",
        "reqdedup.batch",
        "reqdedup.models",
        blocked=["pyarrow", "pyiceberg", "duckdb", "polars", "dagster"],
    )


@pytest.mark.slow
def test_importing_does_no_work():
    third_party = ["numpy", "pyarrow.compute", "pyarrow.parquet", "pyarrow.dataset", "duckdb", "polars"]
    third_party += ["pyiceberg.catalog.sql", "pyiceberg.table", "pyiceberg.io.pyarrow", "requests"]
    loaded = import_in_child(
        "reqdedup.logs", "reqdedup.storage", "reqdedup.cli", "warehouse", blocked=[], first=third_party
    )
    assert loaded["effects"] == []
    assert loaded["threads"] == 1


@pytest.mark.slow
def test_the_command_line_starts_without_the_heavy_libraries():
    loaded = import_in_child("reqdedup.cli", blocked=["torch", "dagster"])
    heavy = {"pyarrow", "pyiceberg", "duckdb", "polars", "numpy"} & set(loaded["modules"])
    assert not heavy, f"`reqdedup --help` would import {heavy}"


def test_one_module_reads_the_environment():
    readers = []
    for package in (
        "reqdedup",
        "warehouse",
        "assets",
        "pipelines",
    ):  # benchmarks hand theirs on to the processes they measure
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"):
                    readers.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {reader.partition(":")[0] for reader in readers} == {"reqdedup/environment.py"}


def private_of_others(path: Path) -> list[str]:
    """Private names of other modules that a file uses: `from x import _y`, and `x._y` with no `_y` of its own."""
    tree = ast.parse(path.read_text())
    own = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    of_self = {
        node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    }
    found = [
        f"{path.name}: {node.attr}" for node in attributes if _is_private(node.attr) and node.attr not in own | of_self
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("reqdedup"):
            found += [f"{path.name}: {node.module}.{alias.name}" for alias in node.names if _is_private(alias.name)]
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_only_the_room_of_iceberg_uses_private_names_of_pyiceberg():
    room = ROOT / "reqdedup" / "storage" / "iceberg"
    users = [path for path in (ROOT / "reqdedup").rglob("*.py") if "pyiceberg" in path.read_text()]
    users += [path for part in ("assets", "warehouse", "pipelines") for path in (ROOT / part).rglob("*.py")]
    assert [name for path in users if room not in path.parents for name in private_of_others(path)] == []
    assert any(private_of_others(path) for path in room.glob("*.py")), "what the search finds"
