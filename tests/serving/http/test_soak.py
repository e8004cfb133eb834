"""Many requests while workers are killed, models swapped, the store restarted or silent, and events come in."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter

import numpy as np
import psutil
import pytest
import valkey

from reqdedup.models.bundle import Bundle, write_bundle
from reqdedup.sequences.valkey_store import ValkeyStore
from reqdedup.serving.client import ServerError
from reqdedup.serving.requests import RankRequest
from tests.servers.process import ServerMissingError
from tests.servers.valkey import restart, start_valkey
from tests.serving.http.servers import Server, event_columns, records, stacked

REQUESTS, CLIENTS, SECONDS, EVERY_S = 100_000, 8, 240, 8.0


@pytest.mark.soak
def test_no_wrong_score_and_none_lost_without_an_error(trained_bundles, table_requests, tmp_path):
    folder = tmp_path / "bundles"
    shutil.copytree(trained_bundles.ranking, folder / "first")
    first = Bundle.load(folder / "first")
    weights = {name: x * 1.01 if x.is_floating_point() else x for name, x in first.model.state_dict().items()}
    write_bundle(folder / "second", config=first.config, weights=weights, signature=first.signature, items=first.items)
    last = [one for one in table_requests if one.is_last]
    asked = [RankRequest(user_id=one.sent.user_id, candidates=one.sent.candidates) for one in last]
    expected = {}
    for name in ("first", "second"):
        bundle = Bundle.load(folder / name)
        expected[bundle.fingerprint] = [bundle.model.predict_exact(one.batch).numpy().tobytes() for one in last]
    try:
        store = start_valkey(tmp_path)
    except ServerMissingError as missing:
        pytest.skip(str(missing))
    filled = ValkeyStore(store.url, event_columns(table_requests), timeout_s=20)
    filled.fill(records(table_requests), source={"test": 1})
    filled.close()
    counts, disturbed, busy = Counter(), Counter(), set()
    lock, started = threading.Lock(), time.monotonic()

    def ask(server, number):
        # A restarted worker takes seconds to load; a client that asks again as long as that loses nothing.
        client = server.client(retries=20, body=("json", "arrow")[number % 2], direct=number % 4 < 2)
        rng = np.random.default_rng(number)
        for _ in range(REQUESTS // CLIENTS):
            if time.monotonic() > started + SECONDS:
                return
            place = int(rng.integers(len(last)))
            with lock:
                counts["sent"] += 1
            try:
                ranked = client.rank(asked[place])
                outcome = "right" if stacked(ranked).tobytes() == expected[ranked.model][place] else "wrong"
            except ServerError:
                outcome = "said"
            with lock:
                counts[outcome] += 1
                busy.add(int(time.monotonic() - started))

    def disturb(what, server, admin):
        nonlocal store
        turn = disturbed[what]
        if what == "swap":
            admin.change_models("load", ["second", "first"][turn % 2])
        elif what == "kill":
            workers = psutil.Process(server.process.pid).children()
            os.kill(workers[turn % len(workers)].pid, signal.SIGKILL)
        elif what == "cut off":
            with valkey.Valkey.from_url(store.url) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        elif what == "silent":
            store.server.pause()
            time.sleep(1.0)
            store.server.resume()
        else:
            store = restart(store)
        disturbed[what] += 1
        events = {"item_id": np.array([turn]), "action": np.array([0], np.int32)}
        admin.append(-1 - turn, events, key=f"soak {what} {turn}")

    try:
        with Server(folder / "first", "--store", store.url, "--workers", 2, "--load-from", folder) as server:
            started = time.monotonic()
            threads = [threading.Thread(target=ask, args=[server, number]) for number in range(CLIENTS)]
            for thread in threads:
                thread.start()
            admin, turn = server.client(retries=20), 0
            while any(thread.is_alive() for thread in threads):
                what = ("swap", "cut off", "silent", "kill", "swap", "restart")[turn % 6]
                try:
                    disturb(what, server, admin)
                except ServerError:
                    counts["admin said"] += 1
                turn += 1
                time.sleep(EVERY_S)
            for thread in threads:
                thread.join()
            took = time.monotonic() - started
            code, log = server.end()
    finally:
        store.server.stop()
    print(f"{counts['sent']} requests in {took:.0f} s: {dict(counts)}; disturbed {dict(disturbed)}; {len(busy)} s busy")
    assert code == 0, log
    assert counts["wrong"] == 0, counts
    assert counts["sent"] == counts["right"] + counts["said"], counts
    assert counts["said"] <= CLIENTS * disturbed.total(), counts  # a client may give up once a disturbance
    assert len(busy) >= 0.7 * took, (len(busy), took)
