from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reqdedup.training.launch import RankError, run_ranks
from tests.training import ranks

pytestmark = pytest.mark.slow


def test_a_rank_that_hangs_ends_the_run_after_the_timeout():
    started = time.monotonic()
    with pytest.raises(RankError, match=r"(?i)timed out|timeout"):
        run_ranks(ranks.fail_on_rank, 1, "hang", world_size=2, collective_timeout_s=3)
    assert time.monotonic() - started < 60


def test_no_rank_is_left_if_the_start_of_one_fails(monkeypatch):
    started = []

    def fail(process, data, **options):
        started.append(process)
        raise OSError("no room")

    monkeypatch.setattr("reqdedup.training.launch._send", fail)
    with pytest.raises(OSError, match="no room"):
        run_ranks(ranks.fail_on_rank, -1, "no", world_size=2)
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_a_plain_script_without_a_main_guard_gets_results_in_rank_order_and_events(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from reqdedup.training.launch import run_ranks\nfrom tests.training import ranks\n"
        "events, ballast = [], bytes(10**6)  # more than a pipe holds\n"
        "results = run_ranks(ranks.fail_on_rank, -1, 'no', ballast, world_size=2, on_event=events.append)\n"
        "print(results, sorted(event['rank'] for event in events))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[0, 1] [0, 1]\n", done.stderr
