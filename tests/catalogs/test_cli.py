"""The command line on every catalog, named by pyiceberg's own configuration, and not one credential in what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from reqdedup import cli
from reqdedup.environment import LakePlace
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, create_table, write
from tests.catalogs.conftest import new_namespace
from warehouse.catalogs import open_catalog

SECRET = "a-secret-that-nothing-may-show"
SECRETS = ("credential", "s3.access-key-id", "s3.secret-access-key")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(catalog_config: LakePlace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `reqdedup` with --catalog reqdedup; exit code, output and errors, in which no secret is."""

    def run(*arguments: str, **changed: str) -> tuple[int, str, str]:
        properties = {**catalog_config.properties, **{name.replace("_", "-"): value for name, value in changed.items()}}
        for name, value in properties.items():
            monkeypatch.setenv(
                "PYICEBERG_CATALOG__REQDEDUP__" + name.upper().replace(".", "__").replace("-", "_"), value
            )
        capfd.readouterr()
        code = cli.main([*arguments, "--catalog", "reqdedup"])
        printed = capfd.readouterr()
        for name in SECRETS:
            for part in properties.get(name, "").split(":"):
                assert not part or part not in printed.out + printed.err, name
        assert SECRET not in printed.out + printed.err
        return code, printed.out, printed.err

    return run


@pytest.mark.slow
def test_a_table_is_kept_in_shape(
    run: Run, catalog_config: LakePlace, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    namespace = new_namespace()
    table = create_table(open_catalog(catalog_config), f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=2)
    for batch in batches:
        write(table, [batch], mode="append")
    name = ["--table", f"{namespace}.t"]
    code, out, _ = run("health", *name, "--json")
    assert (code, json.loads(out)[0]["small_files"]) == (0, 2 * len(batches))
    code, out, _ = run("compact", *name)
    assert (code, "2 buckets rewritten" in out) == (0, True)
    user = str(batches[0].column("user_id")[0].as_py())
    code, out, _ = run("delete-user", user, "--namespace", namespace, "--apply", "--json")
    assert (code, json.loads(out)["tables"][0]["files"]) == (0, 1)
    code, out, _ = run("expire", *name, "--older-than", "0", "--apply", "--json")
    assert (code, json.loads(out)[0]["kept"]) == (0, 1)
    code, out, _ = run("sweep", *name, "--older-than", "0", "--apply", "--json")
    assert (code, json.loads(out)[0]["files"]) == (0, [])
    code, out, err = run("health", "--table", f"{namespace}.nope")
    assert (code, out) == (2, "")
    assert "is not in the catalog; there are: " in err


def test_a_catalog_that_cannot_be_opened_is_one_message(run: Run, catalog_config: LakePlace, tmp_path: Path) -> None:
    if catalog_config.properties["uri"].startswith("sqlite"):
        wrong = {"uri": f"sqlite:///{tmp_path}/nowhere/catalog.db"}
    elif "credential" in catalog_config.properties:
        wrong = {"credential": f"somebody:{SECRET}"}
    else:
        wrong = {"uri": f"postgresql+psycopg2://somebody:{SECRET}@127.0.0.1:9/x"}
    code, out, err = run("health", "--table", "a.b", **wrong)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err.startswith("reqdedup health: ")
