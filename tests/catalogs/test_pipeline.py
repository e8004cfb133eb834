"""The graph on a catalog that the environment names, and not one credential in what it prints, records or stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.fs
import pytest

import pipelines.run
from reqdedup.environment import LakePlace
from reqdedup.storage import TableSource
from tests.catalogs.conftest import new_namespace, postgres_config
from tests.servers.postgres import Postgres
from tests.servers.seaweedfs import BUCKET, SeaweedFS
from warehouse import load_table, open_catalog

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-secret-that-nothing-may-show"
STAGES = "raw_engagements,engagements_by_request,request_features"

pytestmark = pytest.mark.servers

Run = Callable[[dict[str, str], str], tuple[int, bytes]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the graph with these catalog properties in the environment; exit code, and every byte that it left behind."""

    def run(properties: dict[str, str], namespace: str) -> tuple[int, bytes]:
        home = tmp_path / "dagster"
        home.mkdir()
        (home / "dagster.yaml").write_text((ROOT / "pipelines" / "dagster.yaml").read_text())
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        monkeypatch.setenv("REQDEDUP_DATA_DIR", str(tmp_path / "data"))
        for name, value in properties.items():
            monkeypatch.setenv("REQDEDUP_CATALOG__" + name.upper().replace(".", "__").replace("-", "_"), value)
        capfd.readouterr()
        code = pipelines.run.main(["--recipe", "smoke", "--select", STAGES, "--namespace", namespace])
        printed = capfd.readouterr()
        left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"raw_engagements" in left  # the event log is among it
        return code, left + (printed.out + printed.err).encode()

    return run


def test_the_graph_runs_and_shows_no_credential(run: Run, postgres: Postgres, seaweedfs: SeaweedFS) -> None:
    properties, namespace = postgres_config(postgres, seaweedfs).properties, new_namespace()
    code, left = run(properties, namespace)
    assert code == 0, left.decode(errors="replace")[-3000:]
    left += stored(seaweedfs, f"{BUCKET}/tables/{namespace}")
    for secret in (postgres.password, seaweedfs.access_key, seaweedfs.secret_key):
        assert secret.encode() not in left
    catalog = open_catalog(LakePlace(said_by="the test", properties=properties))
    source = TableSource(load_table(catalog, namespace, "engagements_by_request"))
    assert source.num_rows > 1000


@pytest.mark.parametrize("wrong", ["password", "s3.secret-access-key", "credential"])
def test_a_run_that_is_refused_says_so_and_shows_no_credential(
    run: Run, postgres: Postgres, seaweedfs: SeaweedFS, wrong: str
) -> None:
    properties = postgres_config(postgres, seaweedfs).properties
    if wrong == "password":
        properties["uri"] = postgres.uri(password=SECRET)
    elif wrong == "credential":
        properties = {**seaweedfs.rest_properties, "credential": f"{seaweedfs.access_key}:{SECRET}"}
    else:
        properties[wrong] = SECRET
    code, left = run(properties, new_namespace())
    assert code == 2
    assert any(word in left for word in (b"refused the password", b"refused the credential", b"ACCESS_DENIED"))
    for secret in (SECRET, postgres.password, seaweedfs.access_key, seaweedfs.secret_key):
        assert secret.encode() not in left


def stored(seaweedfs: SeaweedFS, folder: str) -> bytes:
    """All bytes of all files below this folder of the server."""
    filesystem = seaweedfs.filesystem()
    files = filesystem.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))
    content = [filesystem.open_input_stream(f.path).read() for f in files if f.type == pyarrow.fs.FileType.File]
    assert len(content) > 5
    return b"".join(content)
