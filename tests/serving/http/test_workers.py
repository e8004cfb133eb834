"""Whose users a worker has, and its keeper: it is started again, also if starting fails."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import numpy as np

from reqdedup.serving.routing import worker_of
from reqdedup.serving.server import workers
from reqdedup.serving.server.router import models_of_all
from reqdedup.serving.server.settings import ServeSettings
from reqdedup.serving.server.workers import Worker
from reqdedup.storage.iceberg.layout import buckets_of


class Sleeper(Worker):
    """Its process sleeps; the starts of `fails` fail as they do if there is no memory."""

    fails: tuple[int, ...] = ()
    starts = 0

    def _start(self):
        self.starts += 1
        if self.starts in self.fails:
            raise OSError(12, "Cannot allocate memory")
        self.restarts += 1
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_a_start_that_fails_is_said_counted_and_tried_again(monkeypatch, caplog):
    monkeypatch.setattr(workers, "RESTART_AFTER_S", (0.0, 0.001))
    monkeypatch.setattr(Sleeper, "fails", (2, 3))
    worker, is_ending = Sleeper(0, ServeSettings(bundles=("none",))), threading.Event()
    keeper = threading.Thread(target=worker.keep_alive, args=[is_ending])
    first = worker.process
    with caplog.at_level(logging.ERROR):
        keeper.start()
        try:
            first.kill()
            while worker.process is first:
                keeper.join(0.001)
            assert (worker.restarts, worker.failed_starts) == (1, 2)
            assert worker.process.poll() is None
        finally:
            is_ending.set()
            worker.end(0)
            keeper.join(10)
    assert not keeper.is_alive()
    assert caplog.text.count("worker 0 could not be started") == 2
    assert "Cannot allocate memory" in caplog.text


def test_users_are_routed_by_the_tables_own_buckets():
    users = np.random.default_rng(0).integers(-(2**63), 2**63, 200)
    for num_workers in (1, 2, 7):
        assert [worker_of(int(user), num_workers) for user in users] == buckets_of(users, num_workers).tolist()


def test_what_a_shadow_did_is_told_of_all_workers_that_have_it():
    def said(requests, *, shadow="b", last_error=None):
        models = [
            {"name": "ranking", "state": state, "version": v} for state, v in (("current", "a"), ("shadow", shadow))
        ]
        report = {"requests": requests, "equal": 1, "failed": 0, "max_difference": 0.1 * requests, "last_error": ""}
        return {"models": models, "loading": None, "last_error": last_error, "swaps": 0, "shadow": report}

    of_all = models_of_all({0: said(2), 1: said(30, shadow="c"), 2: said(5, last_error="x: no bundle")})
    report = {"requests": 7, "equal": 2, "failed": 0, "max_difference": 0.5, "last_error": ""}
    assert of_all == said(2) | {"shadow": report, "last_error": "x: no bundle", "disagreeing": [1]}
    alone = said(2) | {"shadow": None}
    assert models_of_all({1: alone}) == alone
