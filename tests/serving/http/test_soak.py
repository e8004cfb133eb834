"""Many requests while workers are killed, models swapped, the store restarted or silent, and events come in."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import psutil
import pytest
import torch
import valkey

from benchmarks.serving_http_load import http_request
from reqdedup.models import DCATConfig
from reqdedup.models.bundle import Bundle, write_bundle
from reqdedup.models.dcat.model import DCAT
from reqdedup.models.signature import Signature
from reqdedup.sequences.valkey_store import ValkeyStore
from reqdedup.serving.client import ServerError
from reqdedup.serving.names import ARROW, JSON
from reqdedup.serving.requests import RankRequest
from reqdedup.serving.routing import worker_of
from tests.servers.process import ServerMissingError
from tests.servers.valkey import restart, start_valkey
from tests.serving.conftest import SIZES
from tests.serving.http.servers import Server, event_columns, records, requests_of_table
from tests.serving.http.soak_client import Prepared, run

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "100000"))
CLIENTS, CONNECTIONS, WORKERS, CANDIDATES = 2, 6, 2, 10
PER_USER = 6
"""Distinct requests of a user: each is computed in process once, and asked hundreds of times."""
SECONDS, EVERY_S = 900, 8.0
LARGER = SIZES | {"width": 32, "ffn_width": 64, "max_history": 128}


@pytest.fixture(scope="module")
def bundles(trained_bundles, tmp_path_factory):
    """A folder with a model of width 32 and 128 events, and one of other weights."""
    folder, schema = tmp_path_factory.mktemp("bundles"), trained_bundles.source.schema
    config, items = DCATConfig.from_schema(schema, **LARGER), Bundle.load(trained_bundles.ranking).items
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        weights = DCAT(config).state_dict()
        write_bundle(folder / name, config=config, weights=weights, signature=Signature.of(config, schema), items=items)
    return folder


def distinct_requests(bundles, last) -> tuple[list[RankRequest], list[dict[str, bytes]]]:
    """Ten candidates each, and of each model the logits that are right, computed in process."""
    rng, asked, right = np.random.default_rng(0), [], []
    names = list(last[0].sent.candidates)
    rows = {name: np.concatenate([one.sent.candidates[name] for one in last]) for name in names}
    models = [Bundle.load(folder) for folder in sorted(bundles.iterdir())]
    for one in last:
        for _ in range(PER_USER):
            chosen = rng.choice(len(rows["item_id"]), CANDIDATES, replace=False)
            candidates = {name: values[chosen] for name, values in rows.items()}
            asked.append(RankRequest(user_id=one.sent.user_id, candidates=candidates))
            window = one.sent.history
            whole = {"request": one.sent.request, "history": window.columns, "history_end": window.end}
            right.append({})
            for bundle in models:
                logits = bundle.model.predict_exact(bundle.transforms.batch(candidates=candidates, **whole)).numpy()
                right[-1][bundle.fingerprint] = np.ascontiguousarray(logits.T).tobytes()
    return asked, right


@pytest.mark.soak
def test_no_wrong_score_and_none_lost_without_an_error(trained_bundles, bundles, tmp_path):
    table_requests = requests_of_table(trained_bundles.source, Bundle.load(bundles / "first"))
    asked, right = distinct_requests(bundles, [one for one in table_requests if one.is_last])
    try:
        store = start_valkey(tmp_path)
    except ServerMissingError as missing:
        pytest.skip(str(missing))
    filled = ValkeyStore(store.url, event_columns(table_requests), timeout_s=20)
    filled.fill(records(table_requests), source={"test": 1})
    filled.close()
    disturbed, admin_said = Counter(), 0

    def prepared(server, number):
        """One client speaks to the router, the other to the workers; half of the bodies are JSON, half Arrow."""
        urls = json.loads(server.client().get("/v1/workers"))["workers"]
        of_worker = [[] for _ in range(WORKERS)]
        for place, (one, logits) in enumerate(zip(asked, right, strict=True)):
            worker = worker_of(one.user_id, WORKERS)
            url, body = urls[worker] if number % 2 else server.url, http_request(one, (JSON, ARROW)[place % 2])
            of_worker[worker].append(Prepared(url, body, logits))
        return of_worker

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
        words = ["--store", store.url, "--workers", WORKERS, "--load-from", bundles]
        spawned = multiprocessing.get_context("spawn")
        with Server(bundles / "first", *words) as server, ProcessPoolExecutor(CLIENTS, mp_context=spawned) as pool:
            started = time.monotonic()
            shares = [
                pool.submit(run, prepared(server, number), REQUESTS // CLIENTS, CONNECTIONS, SECONDS, number)
                for number in range(CLIENTS)
            ]
            admin, turn = server.client(retries=20), 0
            while not all(share.done() for share in shares):
                what = ("swap", "cut off", "silent", "kill", "swap", "restart")[turn % 6]
                try:
                    disturb(what, server, admin)
                except ServerError:
                    admin_said += 1
                turn += 1
                time.sleep(EVERY_S)
            outcomes, took = [share.result() for share in shares], time.monotonic() - started
            code, log = server.end()
    finally:
        store.server.stop()
    counts = sum((one.counts for one in outcomes), Counter())
    busy = set.union(*(one.busy for one in outcomes))
    print(f"{counts['sent']} requests in {took:.0f} s: {dict(counts)}, {admin_said} of the administrator's refused;")
    print(f"disturbed {dict(disturbed)}; {len(busy)} s busy")
    assert code == 0, log
    assert counts["wrong"] == 0, counts
    assert counts["sent"] == counts["right"] + counts["said"] == REQUESTS, counts
    assert counts["said"] <= CLIENTS * CONNECTIONS * disturbed.total(), (counts, [one.last_error for one in outcomes])
    assert len(busy) >= 0.5 * took, (len(busy), took)
