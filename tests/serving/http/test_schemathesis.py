"""schemathesis, over the OpenAPI page of a real server: every answer is as the page says, and what does not fit it is
refused. Of 5xx the page has 503 and 504 only, which a deadline of a microsecond earns."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.serving.http.servers import Server

CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance"
CHECKS += ",response_headers_conformance,negative_data_rejection,unsupported_method"

REFUSALS = [400, 403, 404, 405, 409, 413, 415, 422, 503, 504]


@pytest.mark.soak
@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_body_is_answered_as_the_page_says(trained_bundles, store_file, tmp_path, num_workers):
    pytest.importorskip("schemathesis")
    shutil.copy(store_file, tmp_path / "store.db")
    words = ["--store", tmp_path / "store.db", "--impressions", tmp_path / "shown", "--workers", num_workers]
    with Server(trained_bundles.ranking, trained_bundles.retrieval, *words) as server:
        (tmp_path / "schemathesis.toml").write_text(
            f"[checks.negative_data_rejection]\nexpected-statuses = {REFUSALS}\n"
        )
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", CHECKS]
        command += ["--max-examples", "120", "--seed", "7", "--no-color", "--request-timeout", "30"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
        code, log = server.end()
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert code == 0
    assert "a defect" not in log, log
