"""One run at a time has a namespace, whatever becomes of the others."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import psutil
import pytest

from warehouse import GraphRun, NamespaceTakenError, Process, claim, embedded_catalog, open_catalog, release

CLAIM_AND_WAIT = """
import sys, time
from warehouse import *
claim(open_catalog(embedded_catalog(sys.argv[1])), "ns", GraphRun.begin("first", "/logs/first.csv"))
print("claimed", flush=True)
time.sleep(60)
"""


@pytest.fixture
def embedded(tmp_path):
    return open_catalog(embedded_catalog(tmp_path))


@pytest.mark.slow
def test_a_second_run_is_refused_by_name_until_the_first_has_ended(embedded):
    claim(embedded, "ns", GraphRun.begin("first", "/logs/first.csv"))
    claim(embedded, "ns", GraphRun.begin("first", "/logs/first.csv"))  # another step of the same run
    with pytest.raises(
        NamespaceTakenError, match=f"run first of /logs/first.csv, process {os.getpid()} on .*, started 20"
    ):
        claim(embedded, "ns", GraphRun.begin("second", "/logs/second.csv"))
    claim(embedded, "elsewhere", GraphRun.begin("second", "/logs/second.csv"))
    release(embedded, "ns", "second")  # not its own
    with pytest.raises(NamespaceTakenError):
        claim(embedded, "ns", GraphRun.begin("second", "/logs/second.csv"))
    release(embedded, "ns", "first")
    claim(embedded, "ns", GraphRun.begin("second", "/logs/second.csv"))


def test_a_process_that_may_not_be_looked_at_is_neither_alive_nor_gone(monkeypatch):
    def refuse(self):
        raise psutil.AccessDenied(self.pid)

    own = Process.own()
    assert own.is_alive()
    monkeypatch.setattr(psutil.Process, "status", refuse)
    assert own.is_alive() is None


@pytest.mark.slow
def test_of_runs_that_start_at_once_exactly_one_goes_on(tmp_path):
    names, barrier, won, refused = [f"run-{i}" for i in range(4)], threading.Barrier(4), [], []
    open_catalog(embedded_catalog(tmp_path))

    def start(name: str) -> None:
        catalog = open_catalog(embedded_catalog(tmp_path))
        barrier.wait()
        try:
            claim(catalog, "ns", GraphRun.begin(name, f"/logs/{name}"))
            won.append(name)
        except NamespaceTakenError:
            refused.append(name)

    threads = [threading.Thread(target=start, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert sorted(won + refused) == names
    rows = open_catalog(embedded_catalog(tmp_path)).load_table("ns.graph_run").scan().to_arrow().to_pylist()
    assert [row["run_id"] for row in rows] == won


@pytest.mark.slow
def test_the_claim_of_a_killed_run_counts_no_longer(tmp_path, embedded):
    run = subprocess.Popen([sys.executable, "-c", CLAIM_AND_WAIT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "claimed\n"
        with pytest.raises(NamespaceTakenError, match=f"process {run.pid} "):
            claim(embedded, "ns", GraphRun.begin("second", "/logs/second.csv"))
        run.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped by its parent
        claim(embedded, "ns", GraphRun.begin("second", "/logs/second.csv"))
    finally:
        run.kill()
        run.wait()


def test_another_process_of_the_same_number_is_not_the_run():
    own = Process.own()
    assert own.is_alive()
    assert Process.from_json(own.to_json()) == own
    assert replace(own, process_started=own.process_started - 3600).is_alive() is False


@pytest.mark.slow
def test_a_run_of_another_machine_is_waited_for_unless_it_is_known_to_be_over(embedded):
    theirs = GraphRun.begin("theirs", "/logs/theirs.csv")
    theirs = replace(theirs, process=replace(theirs.process, host="elsewhere"))
    mine = GraphRun.begin("mine", "/logs/mine.csv")
    claim(embedded, "ns", theirs)
    with pytest.raises(NamespaceTakenError, match=r"on elsewhere.*TAKE_OVER=1"):
        claim(embedded, "ns", mine)
    claim(embedded, "ns", mine, is_finished={"theirs"}.__contains__)
    release(embedded, "ns", "mine")
    claim(embedded, "ns", theirs)
    claim(embedded, "ns", mine, take_over=True)
