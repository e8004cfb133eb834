"""Real servers on loopback in processes of their own, and requests made of the rows of a table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reqdedup.batch import RequestBatch
from reqdedup.models.bundle import Bundle, write_bundle
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import UserRecord, Window
from reqdedup.serving.client import Client
from reqdedup.serving.requests import RankRequest
from reqdedup.training.loader import RequestLoader

ROOT = Path(__file__).resolve().parents[3]


class Server:
    """`reqdedup serve` in a process, which answers by the time it says its URL; ends with the context."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "reqdedup.cli", "serve", *map(str, words), "--port", "0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said += line
            if line.startswith("}"):
                break
        if not said:
            raise RuntimeError(self.process.communicate()[1])
        self.url: str = json.loads(said)["url"]
        self.port = int(self.url.rpartition(":")[2])
        if self.url.startswith("http:"):
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                assert answer.status == 200

    def client(self, **options) -> Client:
        return Client(self.url, **options)

    def end(self) -> tuple[int, str]:
        """Its exit code and what it logged."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            _, log = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, log = self.process.communicate()
        return self.process.returncode, log

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


@dataclass(frozen=True)
class TableRequest:
    """One request of a table: as the loader reads it, and as a caller would send it. logits: [M, labels], by the
    definition.  is_last: of its user, so that the store's newest window is its own."""

    batch: RequestBatch
    sent: RankRequest
    logits: np.ndarray
    is_last: bool


def requests_of_table(source, bundle: Bundle) -> list[TableRequest]:
    """All of them, in the table's order; users' requests in the order of their histories."""
    columns = [column.name for column in bundle.transforms.columns[1:]]
    whole = RequestLoader(
        source, requests_per_batch=1, shuffle="none", columns=[*columns, "history_end"], prefetch_batches=0
    )
    cut = RequestLoader(
        source, requests_per_batch=1, shuffle="none", columns=columns, cut=bundle.transforms.cut, prefetch_batches=0
    )
    found = []
    for uncut, batch in zip(whole, cut, strict=True):
        assert uncut.user_id_R.equal(batch.user_id_R)
        assert uncut.item_id_B.equal(batch.item_id_B)
        request = {}
        for column in bundle.transforms.request_columns:
            value = uncut.request[column.name][0]
            request[column.name] = value.numpy() if column.width else value.item()
        end, length = int(uncut.request["history_end"][0]), len(uncut.history["item_id"])
        window = Window({name: x.numpy() for name, x in uncut.history.items()}, end - length, end, 0)
        rows = {name: x.numpy() for name, x in uncut.row.items()}
        sent = RankRequest(
            user_id=int(uncut.user_id_R[0]),
            candidates={"item_id": uncut.item_id_B.numpy(), **rows},
            request=request,
            history=window,
        )
        found.append((batch, sent))
    last = {sent.user_id: (sent.history.end, place) for place, (_, sent) in enumerate(found)}
    for place, (_, sent) in enumerate(found):
        last[sent.user_id] = max(last[sent.user_id], (sent.history.end, place))
    return [
        TableRequest(batch, sent, bundle.model.predict_exact(batch).numpy(), last[sent.user_id][1] == place)
        for place, (batch, sent) in enumerate(found)
    ]


def fill_store(path: Path, requests: list[TableRequest]) -> Path:
    """A store with every user's last history and features."""
    store = SqliteStore(path, event_columns(requests))
    store.fill(records(requests), source={"test": 1})
    store.close()
    return path


def event_columns(requests: list[TableRequest]) -> dict[str, str]:
    return {name: values.dtype.name for name, values in requests[0].sent.history.columns.items()}


def records(requests: list[TableRequest]) -> list[UserRecord]:
    return [
        UserRecord(
            user_id=one.sent.user_id,
            timelines={0: (one.sent.history.start, one.sent.history.columns)},
            features=one.sent.request,
        )
        for one in requests
        if one.is_last
    ]


def stacked(ranked) -> np.ndarray:
    return np.stack(list(ranked.logits.values()), axis=1)


def other_bundle(path, original):
    """The same model with other weights: other logits, another fingerprint."""
    bundle = Bundle.load(original)
    weights = {name: x * 1.01 if x.is_floating_point() else x for name, x in bundle.model.state_dict().items()}
    return write_bundle(path, config=bundle.config, weights=weights, signature=bundle.signature, items=bundle.items)
