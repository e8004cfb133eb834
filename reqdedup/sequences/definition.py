"""What a user sequence is: one frozen definition that batch, backfill, stream and serving read.

    engaged = SequenceDefinition(
        name="engaged", version=1, last_n=500, window="90d", owner="ads", stage="production",
        events=[EventType("click"), EventType("view", where=col("duration_s") >= 10)],
        enrichments=[Enrichment("item", "lake.items", "item_id", ["category"], as_of="valid_from")],
        columns=["item_id", "event_type", "event_ts", "category"])

The JSON of a definition is canonical: equal definitions have equal text and an equal fingerprint, and a definition that
is read back is the same. The fingerprint covers what decides the values; owner, retention and stage may change.

`EventLog` says what the events of a log look like; definitions are checked against it. All definitions of a namespace
share one timeline: the events that one of them at least takes, enriched with what one of them at least asks for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from reqdedup.sequences.predicate import And, Predicate, predicate_from_json

EVENT_ID, USER, ITEM, EVENT_TYPE, EVENT_TS, ARRIVAL_TS = (
    "event_id",
    "user_id",
    "item_id",
    "event_type",
    "event_ts",
    "arrival_ts",
)
KEY_COLUMNS = {
    EVENT_ID: "int64",
    USER: "int64",
    ITEM: "int64",
    EVENT_TYPE: "string",
    EVENT_TS: "timestamp",
    ARRIVAL_TS: "timestamp",
}
"""Columns of every event, and their dtypes."""

DTYPES = ("int32", "int64", "float32", "float64", "string", "bool")
STAGES = ("draft", "shadow", "production", "retired")
_RESERVED = {"position", "timeline_index", "timeline_version", *KEY_COLUMNS}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_EXECUTOR = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """What the events of a log look like.

    types: names of the event types; the timeline stores their places, so new ones go behind.
    columns: name -> dtype of the columns beside those that every event has; new ones are null in earlier events.
    """

    types: Sequence[str]
    columns: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", tuple(self.types))
        object.__setattr__(self, "columns", dict(self.columns))
        if not self.types or len(set(self.types)) < len(self.types):
            raise ValueError(f"event log: event types, each once, required, found {', '.join(self.types) or 'none'}")
        for name, dtype in self.columns.items():
            _check_name("event log: column", name)
            if name in _RESERVED or name.startswith("rank_"):
                raise ValueError(f"event log: a column name that is free required, found {name}, which every event has")
            if dtype not in DTYPES:
                raise ValueError(f"event log: a dtype of {', '.join(DTYPES)} required for {name}, found {dtype!r}")

    @property
    def dtypes(self) -> dict[str, str]:
        """All columns of an event and their dtypes."""
        return {**KEY_COLUMNS, **self.columns}

    def added_to(self, old: EventLog) -> tuple[str, ...]:
        """What this log has beyond an earlier form of it, one line each.

        Raises ValueError unless it has all of that one, its types first and in their order.
        """
        kept = {name: self.columns.get(name) for name in old.columns}
        if self.types[: len(old.types)] != old.types or kept != old.columns:
            raise ValueError(
                f"event log: types {', '.join(old.types)} first and columns {dict(old.columns)} required, found "
                f"{', '.join(self.types)} and {dict(self.columns)}; new types go behind, a column of another dtype has "
                "another name"
            )
        types = (f"event log: type {name}: new" for name in self.types[len(old.types) :])
        new = {name: dtype for name, dtype in self.columns.items() if name not in old.columns}
        return (*types, *(f"event log: column {name}: new, {dtype}" for name, dtype in new.items()))

    def to_json(self) -> str:
        return _canonical({"types": list(self.types), "columns": dict(self.columns)})

    @classmethod
    def from_json(cls, text: str) -> EventLog:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class EventType:
    """Events of this type that satisfy `where`; all of them if it is None."""

    name: str
    where: Predicate | None = None

    @property
    def condition(self) -> Predicate:
        return self.where if self.where is not None else And(())


@dataclass(frozen=True)
class Enrichment:
    """Columns of a table's row for an event: the row with `on` equal to the event's, at the time the event arrived.

    table: namespace.name.  on: column of both.  columns: of the table; names are unique over all enrichments.
    as_of: column of the table that says since when a row holds; of a key's rows the latest that is not after the
    event's arrival is taken. None if a key has one row.
    """

    name: str
    table: str
    on: str
    columns: Sequence[str]
    as_of: str | None = None

    def __post_init__(self) -> None:
        _check_name("enrichment", self.name)
        object.__setattr__(self, "columns", tuple(self.columns))
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(
                f"enrichment {self.name}: columns, each once, required, found {', '.join(self.columns) or 'none'}"
            )


@dataclass(frozen=True)
class Computed:
    """Columns that a function makes of an event's own; see `executors`.

    executor: `module:name` of it.  on: columns of the event that it is given.  columns: name -> dtype of what it makes.
    """

    name: str
    executor: str
    on: Sequence[str]
    columns: Mapping[str, str]

    def __post_init__(self) -> None:
        _check_name("computed", self.name)
        object.__setattr__(self, "on", tuple(self.on))
        object.__setattr__(self, "columns", dict(self.columns))
        if not _EXECUTOR.fullmatch(self.executor):
            raise ValueError(f"computed {self.name}: module:name of an executor required, found {self.executor!r}")
        if not self.on or not self.columns:
            raise ValueError(f"computed {self.name}: columns to read and to make required, found none")
        for name, dtype in self.columns.items():
            _check_name(f"computed {self.name}: column", name)
            if dtype not in DTYPES:
                raise ValueError(
                    f"computed {self.name}: a dtype of {', '.join(DTYPES)} required for {name}, found {dtype!r}"
                )


@dataclass(frozen=True, kw_only=True)
class SequenceDefinition:
    """The last events of a user that one of `events` takes, as of a request.

    version: of what the sequence holds; a change calls for the next one.
    events: event types with their filters, each type once.  enrichments: what is looked up for every event.
    computed: what a function makes of every event.
    columns: of the sequence, of the events, of enrichments, or computed.
    last_n: most events.  window: how long before the request an event may have arrived (`90d`, `12h`); None: any time.
    owner: who answers for it.  retention: how long its events are kept (`400d`).  stage: one of STAGES.
    """

    name: str
    events: Sequence[EventType]
    columns: Sequence[str]
    last_n: int
    owner: str
    version: int = 1
    window: str | None = None
    enrichments: Sequence[Enrichment] = ()
    computed: Sequence[Computed] = ()
    retention: str | None = None
    stage: str = "draft"

    def __post_init__(self) -> None:
        for name in ("events", "columns", "enrichments", "computed"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_name("definition", self.name)
        say = f"definition {self.name}"
        for what, found in (
            ("event types", [event.name for event in self.events]),
            ("columns", list(self.columns)),
        ):
            if not found or len(set(found)) < len(found):
                raise ValueError(f"{say}: {what}, each once, required, found {', '.join(found) or 'none'}")
        if self.last_n < 1 or self.version < 1:
            raise ValueError(f"{say}: last_n and version of at least 1 required, found {self.last_n}, {self.version}")
        if not self.owner.strip():
            raise ValueError(f"{say}: an owner required, found none")
        if self.stage not in STAGES:
            raise ValueError(f"{say}: a stage of {', '.join(STAGES)} required, found {self.stage!r}")
        for text in (self.window, self.retention):
            if text is not None:
                duration_us(text)
        if self.window and self.retention and duration_us(self.retention) < duration_us(self.window):
            raise ValueError(
                f"{say}: a retention of at least the window {self.window} required, found {self.retention}"
            )

    @property
    def rank_column(self) -> str:
        """Column of the timeline: how many of this definition's events there are up to each event, itself included."""
        return f"rank_{self.name}"

    @property
    def window_us(self) -> int | None:
        return duration_us(self.window) if self.window is not None else None

    def chosen(self, columns: Sequence[str] | None) -> Sequence[str]:
        """These of its columns; None: all. Raises ValueError for one that it has not."""
        for name in columns or ():
            if name not in self.columns:
                raise ValueError(
                    f"definition {self.name}: columns of {', '.join(self.columns)} required, found {name!r}"
                )
        return self.columns if columns is None else columns

    def narrowed(self, columns: Sequence[str] | None) -> SequenceDefinition:
        """The same with some of its columns, as of `chosen`."""
        return self if columns is None else replace(self, columns=self.chosen(columns))

    def validate(self, log: EventLog) -> None:
        """Raise ValueError unless the log has these event types and columns, and filters fit them."""
        say = f"definition {self.name}"
        for event in self.events:
            if event.name not in log.types:
                raise ValueError(f"{say}: an event type of {', '.join(log.types)} required, found {event.name!r}")
            event.condition.check(log.dtypes)
        made: list[Enrichment | Computed] = [*self.enrichments, *self.computed]
        enriched = [name for one in made for name in one.columns]
        taken = [name for name in enriched if name in log.dtypes or name in _RESERVED or enriched.count(name) > 1]
        if taken:
            raise ValueError(f"{say}: enrichments with column names of their own required, found {taken[0]} again")
        for enrichment in self.enrichments:
            if log.dtypes.get(enrichment.on) not in ("int32", "int64", "string"):
                raise ValueError(
                    f"{say}: enrichment {enrichment.name}: a key column of the events required as `on`, "
                    f"found {enrichment.on!r}"
                )
        for computed in self.computed:
            missing = [name for name in computed.on if name not in log.dtypes]
            if missing:
                raise ValueError(
                    f"{say}: computed {computed.name}: columns of the events ({', '.join(log.dtypes)}) required, "
                    f"found {missing[0]!r}"
                )
        unknown = [name for name in self.columns if name not in log.dtypes and name not in enriched]
        if unknown:
            known = ", ".join([*log.dtypes, *enriched])
            raise ValueError(f"{say}: columns of the events or enrichments ({known}) required, found {unknown[0]!r}")

    def to_json(self) -> str:
        """Canonical: equal definitions have equal text."""
        return _canonical(self._plain())

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits; equal if and only if all that decides the sequence's values is."""
        plain = {name: value for name, value in self._plain().items() if name not in FREE_FIELDS}
        return hashlib.blake2b(_canonical(plain).encode(), digest_size=16).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> SequenceDefinition:
        """Raises ValueError if the text is not that of a definition."""
        found = json.loads(text)
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or set(found) | {"computed"} != names:
            raise ValueError(f"definition: the fields of a definition required, found {text[:200]}")
        events = [
            EventType(one["name"], predicate_from_json(one["where"]) if one["where"] is not None else None)
            for one in found.pop("events")
        ]
        enrichments = tuple(Enrichment(**one) for one in found.pop("enrichments"))
        computed = tuple(Computed(**one) for one in found.pop("computed", ()))
        return cls(events=tuple(events), enrichments=enrichments, computed=computed, **found)

    def _plain(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain["events"] = [
            {"name": event.name, "where": event.where.to_json() if event.where is not None else None}
            for event in self.events
        ]
        for name in ("enrichments", "computed"):
            plain[name] = [{field.name: getattr(one, field.name) for field in fields(one)} for one in plain[name]]
        if not plain["computed"]:  # as texts and fingerprints were before there was any
            del plain["computed"]
        return plain


FREE_FIELDS = ("owner", "retention", "stage")
"""What of a definition may change under its version."""


def check_together(log: EventLog, definitions: Sequence[SequenceDefinition]) -> None:
    """Raise ValueError unless these definitions are valid, and can share a timeline: one name each, and enrichments, or
    what is computed, of one name that are equal."""
    names = [definition.name for definition in definitions]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"definitions: each name once required, found {', '.join(names) or 'none'}")
    for definition in definitions:
        definition.validate(log)
    _made_of(definitions)


def enrichments_of(definitions: Iterable[SequenceDefinition]) -> list[Enrichment]:
    """All enrichments, each once, by name. Raises ValueError if two of one name differ, or two have a column of one
    name."""
    return [one for one in _made_of(definitions) if isinstance(one, Enrichment)]


def computed_of(definitions: Iterable[SequenceDefinition]) -> list[Computed]:
    """All that is computed, as of `enrichments_of`."""
    return [one for one in _made_of(definitions) if isinstance(one, Computed)]


def _made_of(definitions: Iterable[SequenceDefinition]) -> list[Enrichment | Computed]:
    found: dict[str, Enrichment | Computed] = {}
    owners: dict[str, str] = {}
    for definition in definitions:
        made: list[Enrichment | Computed] = [*definition.enrichments, *definition.computed]
        for one in made:
            if found.setdefault(one.name, one) != one:
                raise ValueError(f"enrichment {one.name}: one meaning in all definitions required, found two")
            for column in one.columns:
                if owners.setdefault(column, one.name) != one.name:
                    raise ValueError(f"column {column}: one enrichment required, found {owners[column]} and {one.name}")
    return [found[name] for name in sorted(found)]


def duration_us(text: str) -> int:
    """Microseconds of `90d`, `12h`, `30m` or `45s`. Raises ValueError for anything else."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise ValueError(f"duration: a whole number with a unit of {', '.join(_UNITS_S)} required, found {text!r}")
    return int(number) * _UNITS_S[unit] * 1_000_000


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what}: a name of small letters, digits and _ required, found {name!r}")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
