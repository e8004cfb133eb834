"""Events from a topic of a real broker: each message once, by time, whatever is killed; what is no event is rejected."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pyiceberg.catalog import Catalog

from reqdedup import cli
from reqdedup.sequences import kafka
from reqdedup.sequences.definition import EventLog
from reqdedup.sequences.kafka import KafkaSource
from reqdedup.sequences.namespace import NamespaceSequences
from reqdedup.sequences.tables import load_raw
from reqdedup.storage import open_catalog
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.iceberg.row_files import RowFiles
from tests.servers.process import LOOPBACK, ServerMissingError, free_ports
from tests.servers.tansu import Tansu, start_tansu

pytestmark = pytest.mark.servers
LOG = EventLog(types=["click"], columns={"price": "float64"})
START_MS = 1_760_000_000_000


@pytest.fixture(scope="module")
def broker(tmp_path_factory) -> Iterator[Tansu]:
    try:
        running = start_tansu(tmp_path_factory.mktemp("tansu"))
    except ServerMissingError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    yield running
    running.server.stop()


class Topic:
    """A topic of three partitions, the last of which stays empty; message `number` is sent at START_MS + number."""

    def __init__(self, servers: str) -> None:
        self.servers, self.name, self._sent = servers, f"events-{uuid.uuid4().hex}", 0
        quiet = {"bootstrap.servers": servers, "log_level": 0}
        self.admin, self._producer = AdminClient(quiet), Producer(quiet)
        self.admin.create_topics([NewTopic(self.name, 3, 1)])[self.name].result(20)

    def send(self, *values: bytes | dict | None) -> None:
        for value in values:
            number, self._sent = self._sent, self._sent + 1
            if isinstance(value, dict):
                value = json.dumps(value).encode()
            self._producer.produce(self.name, value, partition=number % 3 // 2, timestamp=START_MS + number)
        assert self._producer.flush(20) == 0

    def source(self, catalog: Catalog, **options: object) -> KafkaSource:
        settings = {"fetch.wait.max.ms": 20, "log_level": 0}
        return KafkaSource(catalog, "lake", self.servers, self.name, settings=settings, timeout_s=20, **options)


def clicks(*ids: int) -> list[dict]:
    said = "2025-10-09T08:00:00Z"
    return [{"event_id": one, "user_id": one % 5, "event_type": "click", "event_ts": said, "price": 1.5} for one in ids]


@pytest.fixture
def topic(broker) -> Topic:
    return Topic(broker.servers)


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    return open_catalog(properties={"uri": f"sqlite:///{tmp_path}/c.db", "warehouse": f"file://{tmp_path}/tables"})


def delivered(catalog: Catalog) -> pl.DataFrame:
    return pl.from_arrow(load_raw(catalog, "lake").scan().to_arrow()).sort("position")


def test_messages_of_all_partitions_come_once_in_the_order_of_their_times(topic, catalog, monkeypatch):
    monkeypatch.setattr(kafka, "AHEAD", 50)
    monkeypatch.setattr(kafka, "TOGETHER", 20)
    sequences = NamespaceSequences("lake", lambda: catalog)
    for first, last in ((0, 200), (200, 203)):
        topic.send(*clicks(*range(first, last)))
        some = sequences.deliver(LOG, topic.source(catalog, most=150)).num_events
        assert some == min(150, last - first)
        assert some + sequences.deliver(LOG, topic.source(catalog)).num_events == last - first
        found = delivered(catalog)
        assert found["event_id"].to_list() == list(range(last))
        assert (found["arrival_ts"].dt.epoch("ms") - START_MS).to_list() == list(range(last))


def test_what_is_no_event_is_rejected_and_an_arrival_that_is_said_holds(topic, catalog):
    (told,) = clicks(3)
    topic.send(b"{", None, b"[1]", told | {"arrival_ts": "2025-10-09T09:00:00Z"}, told | {"user_id": None})
    report = NamespaceSequences("lake", lambda: catalog).deliver(LOG, topic.source(catalog))
    assert (report.num_events, report.num_rejected) == (1, 4)
    assert delivered(catalog)["arrival_ts"].dt.strftime("%H:%M").to_list() == ["09:00"]
    rejected = pl.from_arrow(catalog.load_table("lake.rejected_events").scan().to_arrow()).sort("position")
    assert set(rejected["source"]) == {f"kafka {topic.name} from 0:0, 1:0, 2:0"}
    assert rejected["reason"].to_list() == ["event_id is null"] * 3 + ["user_id is null"]


def test_a_run_that_is_lost_is_made_good_by_the_next_and_two_at_once_deliver_once(topic, catalog, monkeypatch):
    sequences = NamespaceSequences("lake", lambda: catalog)
    topic.send(*clicks(*range(7)))
    with monkeypatch.context() as lost:
        lost.setattr(RowFiles, "commit", lambda self, **_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sequences.deliver(LOG, topic.source(catalog))
    slow = topic.source(catalog)
    topic.send(*clicks(7))
    assert sequences.deliver(LOG, topic.source(catalog)).num_events == 8
    with pytest.raises(ConflictError, match="another process delivered kafka"):
        sequences.deliver(LOG, slow)
    assert sequences.deliver(LOG, topic.source(catalog)).num_events == 0
    assert delivered(catalog)["event_id"].to_list() == list(range(8))


def test_the_command_line_takes_a_topic(topic, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("client.json").write_text('{"fetch.wait.max.ms": 20, "log_level": 0}')
    Path("sequences.py").write_text(
        "from reqdedup.sequences.definition import EventLog, EventType, SequenceDefinition\n"
        "log = EventLog(types=['click'], columns={'price': 'float64'})\n"
        "clicked = SequenceDefinition(name='clicked', last_n=5, owner='me', events=[EventType('click')],\n"
        "                             columns=['price'])\n"
    )
    topic.send(*clicks(*range(20)))
    words = ["--namespace", "lake"]
    assert cli.main(["sequences", "check", "sequences.py", *words, "--publish"]) == 0
    words += ["--events", f"kafka://{topic.servers}/{topic.name}", "--definitions", "sequences.py"]
    for _ in range(2):
        assert cli.main(["sequences", "advance", *words, "--client", "client.json"]) == 0
    said = capsys.readouterr().out
    assert f"kafka {topic.name} from 0:0, 1:0, 2:0: 20 events, 0 rejected" in said
    assert f"kafka {topic.name} from 0:14, 1:6, 2:0: 0 events" in said
    assert cli.main(["sequences", "advance", "--events", "kafka://x", *words[:2], *words[4:]]) == 2
    assert "kafka://HOST:PORT/TOPIC required, found kafka://x" in capsys.readouterr().err


def test_what_is_not_there_is_said(topic, catalog):
    topic.send(*clicks(*range(9)))
    NamespaceSequences("lake", lambda: catalog).deliver(LOG, topic.source(catalog))
    topic.admin.delete_topics([topic.name])[topic.name].result(20)
    with pytest.raises(ValueError, match="a topic required, found no events-"):
        topic.source(catalog)
    nobody = f"{LOOPBACK}:{free_ports(1)[0]}"
    with pytest.raises(ConnectionError, match=f"kafka {nobody}: an answer required"):
        KafkaSource(catalog, "lake", nobody, "events", timeout_s=0.5, settings={"log_level": 0})
