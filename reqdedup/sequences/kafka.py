"""Events from a topic of a broker that speaks Kafka's protocol. Needs the extra `kafka`.

A message is an event, a JSON object as in a file of JSON Lines; without `arrival_ts` it arrived when the broker took
it. A source is what the topic has now beyond what was delivered of it: of each partition the messages from one offset
on. How far they went is a property of `raw_events`, set in the commit that brings the events: a message is delivered
once, whatever is killed, and nothing is committed to the broker.

Partitions are merged by the time of their messages, since an event that is delivered after a later one counts as
arriving with it. A partition that is ahead waits once it has some thousand messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition
from pyiceberg.catalog import Catalog

from reqdedup.sequences.definition import ARRIVAL_TS, EventLog
from reqdedup.sequences.intake import Progress, delivered_until
from reqdedup.sequences.sources import LINE, json_batches, row_of_json

AHEAD = 10_000
"""Messages of a partition that wait for those of the others."""
TOGETHER = 1_000
_END_OF_PARTITION = -191
"""librdkafka's RD_KAFKA_RESP_ERR__PARTITION_EOF."""
_GONE = (-140, KafkaError.OFFSET_OUT_OF_RANGE)
"""The first is RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET."""


class KafkaSource:
    """What a topic has beyond what was delivered of it to the tables of a namespace, up to where each partition ends;
    see `EventSource`.

    servers: `host:port`, several with commas.  settings: more for the client, as librdkafka names them (for a password,
    certificates).  timeout_s: longest wait for an answer.  most: messages to take at once.
    Raises ConnectionError if nothing answers, ValueError if there is no such topic, or if messages beyond what was
    delivered are no longer there.
    """

    def __init__(
        self,
        catalog: Catalog,
        namespace: str,
        servers: str,
        topic: str,
        *,
        settings: Mapping[str, Any] | None = None,
        timeout_s: float = 30.0,
        most: int = 10_000_000,
    ) -> None:
        self.topic, self.timeout_s, self.most = topic, timeout_s, most
        self._settings = {
            "group.id": "reqdedup",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "bootstrap.servers": servers,
            **(settings or {}),
        }
        stream = f"kafka {topic}"
        known = delivered_until(catalog, namespace, stream)
        consumer = Consumer(self._settings)
        try:
            start = self._starts(consumer, known)
        except KafkaException as error:
            raise self._unanswered(error.args[0]) from error
        finally:
            consumer.close()
        self.progress = Progress(stream, known, start)
        self.name = f"{stream} from {', '.join(f'{name}:{start[name]}' for name in sorted(start))}"

    def batches(self, log: EventLog) -> Iterator[pa.Table]:
        """The events, by the time of their messages."""
        yield from json_batches(self._rows(), log)

    def _starts(self, consumer: Consumer, known: Mapping[str, int]) -> dict[str, int]:
        """Of each partition the first message to deliver."""
        found = consumer.list_topics(self.topic, timeout=self.timeout_s).topics[self.topic]
        if found.error is not None:
            raise ValueError(f"kafka: a topic required, found no {self.topic} ({found.error.str()})")
        starts = {}
        for partition in found.partitions:
            low, _ = consumer.get_watermark_offsets(TopicPartition(self.topic, partition), self.timeout_s)
            starts[str(partition)] = known.get(str(partition), low)
            if low > starts[str(partition)]:
                raise self._gone(str(partition), starts[str(partition)], f"the first of them is number {low}")
        return starts

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The messages as events, those of all partitions by time."""
        end = self.progress.end
        waiting: dict[str, deque[Message]] = {name: deque() for name in end}
        unread, paused, num_taken = set(waiting), set[str](), 0
        consumer = Consumer(self._settings)
        try:
            consumer.assign([TopicPartition(self.topic, int(name), end[name]) for name in sorted(unread)])
            while unread or any(waiting.values()):
                if unread:
                    self._take(consumer, waiting, unread)
                while any(waiting.values()) and all(waiting[name] for name in unread):
                    if num_taken == self.most:
                        return
                    first = min((name for name in waiting if waiting[name]), key=lambda name: _time(waiting[name][0]))
                    message = waiting[first].popleft()
                    end[first], num_taken = _offset(message) + 1, num_taken + 1
                    yield _event(message)
                ahead = {name for name in unread if len(waiting[name]) >= AHEAD}
                for change, names in ((consumer.pause, ahead - paused), (consumer.resume, paused - ahead)):
                    change([TopicPartition(self.topic, int(name)) for name in sorted(names)])
                paused = ahead
        except KafkaException as error:
            raise self._unanswered(error.args[0]) from error
        finally:
            consumer.close()

    def _take(self, consumer: Consumer, waiting: Mapping[str, deque[Message]], unread: set[str]) -> None:
        """Take some messages; a partition that is at its end is no longer among the unread."""
        first = consumer.poll(self.timeout_s)
        if first is None:
            raise TimeoutError(
                f"kafka: messages of {self.topic} within {self.timeout_s} s required, found none; nothing was delivered"
            )
        for message in (first, *consumer.consume(TOGETHER, 0)):
            name, error = str(message.partition()), message.error()
            if error is None:
                waiting[name].append(message)
            elif error.code() == _END_OF_PARTITION:
                if _offset(message) < self.progress.end[name]:
                    raise self._gone(
                        name, self.progress.end[name], f"the last of them is number {_offset(message) - 1}"
                    )
                unread.discard(name)
            elif error.code() in _GONE:
                raise self._gone(name, self.progress.end[name], error.str())
            else:
                raise self._unanswered(error)

    def _gone(self, partition: str, number: int, found: str) -> ValueError:
        return ValueError(
            f"kafka: messages of {self.topic} from number {number} of partition {partition} on required, found others "
            f"({found}): the broker has dropped what was not delivered, or it is another topic of that name"
        )

    def _unanswered(self, error: KafkaError) -> ConnectionError:
        servers = self._settings["bootstrap.servers"]
        return ConnectionError(f"kafka {servers}: an answer required, found {error.str()}; nothing was delivered")


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None
    return offset


def _time(message: Message) -> int:
    return message.timestamp()[1]


def _event(message: Message) -> dict[str, Any]:
    row = row_of_json(message.value() or b"")
    kind, time_ms = message.timestamp()
    if LINE not in row and row.get(ARRIVAL_TS) is None and kind != TIMESTAMP_NOT_AVAILABLE:
        row[ARRIVAL_TS] = time_ms * 1000
    return row
