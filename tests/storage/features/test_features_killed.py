"""`kill -9` at each step of backfill, staging, publishing and promotion: whole at the old or the new version, then done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# A step before every file is closed (two buckets), and before and after every commit.
STEPS = {
    "Backfill": 2 + 2,
    "BackfillByPosition": 2 + 2,
    "StageAndPublish": 2 + 2 * 4,  # a schema with the new column, the branch, the rows, main
    "Promote": 2 + 2 * 4,  # a schema, the branch, a commit for both buckets, main
}


@pytest.mark.parametrize(
    "operation", ["Backfill", *(pytest.param(name, marks=pytest.mark.soak) for name in [*STEPS][1:])]
)
def test_killed_at_each_step_it_is_whole_and_the_next_run_succeeds(tmp_path, operation):
    command = [
        sys.executable,
        "-m",
        "tests.storage.maintenance.killed_steps",
        str(tmp_path),
        f"tests.storage.features.killed_features.{operation}",
    ]
    root = Path(__file__).resolve().parents[3]
    found = subprocess.run(command, cwd=root, timeout=300, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert int(found.stdout.split()[-1]) == STEPS[operation]
