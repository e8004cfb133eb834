from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from reqdedup.training.launch import RankError, run_ranks
from tests.training import ranks


def test_results_come_in_rank_order_and_events_arrive():
    events = []
    ballast = bytes(10**6)  # more than a pipe holds
    assert run_ranks(ranks.fail_on_rank, -1, "not at all", ballast, world_size=2, on_event=events.append) == [0, 1]
    assert sorted(event["rank"] for event in events) == [0, 1]


@pytest.mark.parametrize(("how", "text"), [("raise", "KeyError: 'the shelf is empty'"), ("kill", "killed by SIGKILL")])
def test_a_lost_rank_ends_the_run_with_its_own_error(how, text):
    started = time.monotonic()
    with pytest.raises(RankError, match="rank 1 of 2") as raised:
        run_ranks(ranks.fail_on_rank, 1, how, world_size=2)
    assert text in str(raised.value)
    assert raised.value.rank == 1
    assert time.monotonic() - started < 30


def test_a_rank_that_hangs_ends_the_run_after_the_timeout():
    started = time.monotonic()
    with pytest.raises(RankError, match=r"(?i)timed out|timeout"):
        run_ranks(ranks.fail_on_rank, 1, "hang", world_size=2, collective_timeout_s=3)
    assert time.monotonic() - started < 30


def test_a_plain_script_without_a_main_guard_can_start_ranks(tmp_path):
    script = tmp_path / "script.py"
    root = Path(__file__).parents[2]
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(root)!r})\n"
        "from reqdedup.training.launch import run_ranks\nfrom tests.training import ranks\n"
        "print(run_ranks(ranks.fail_on_rank, -1, 'not at all', world_size=2))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 1]\n", done.stderr
