"""From a body of JSON to a request, checked by the model's signature, and from an answer to a body.

A value is taken as what the signature says it is or refused with its column, what was required and what was found;
nothing is rounded, cut or guessed. Columns that the model does not read are dropped and counted. Bits survive: a
float32 is written with as many digits as tell it from all others, and read back to the same one.

Candidates are read by numpy as whole lists, so 500 of them cost microseconds; the standard library's json would cost
ten times orjson. Arrow bodies, for machines: `arrow`. Open Inference Protocol: `oip`. Values: `values`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from reqdedup.arrays.hashing import hash_string
from reqdedup.models.items import Items
from reqdedup.models.transforms import Transforms, history_name
from reqdedup.schema import HISTORY_TS, ITEM_ID, REQUEST_TS, USER_ID, Column, Kind, Level
from reqdedup.sequences.store import Window
from reqdedup.serving.limits import Limits, is_believable
from reqdedup.serving.requests import (
    ItemFilter,
    RankRequest,
    RecommendRequest,
    RequestError,
    RetrieveRequest,
    check_window,
)
from reqdedup.serving.wire.values import array, integer, value
from reqdedup.values import INT64, shown, words

MAX_KEY = 1000
"""Characters of a user's key."""
ITEM = Column(name=ITEM_ID, dtype="int64", level=Level.KEY)
TIMES = Column(name=HISTORY_TS, dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE)
MOMENT = Column(name=REQUEST_TS, dtype="timestamp", level=Level.REQUEST)
_ENVELOPE = frozenset({"user_id", "user_key", "request", "history", "at", "version", "deadline_ms"})
RANK_KEYS = _ENVELOPE | {"candidates"}
RETRIEVE_KEYS = _ENVELOPE | {"k", "filter"}
RECOMMEND_KEYS = _ENVELOPE | {"length", "filter", "explain"}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The columns of a model by level, under the names that requests use: history columns without their prefix.

    items: by whose keys a request may name items, if they have some.  user_keys: whether it may name its user by one.
    times: of events, which a history may bring so that features that follow from it are computed.
    """

    request: Mapping[str, Column] = field(default_factory=dict)
    item: Mapping[str, Column] = field(default_factory=dict)
    history: Mapping[str, Column] = field(default_factory=dict)
    items: Items | None = None
    user_keys: bool = False
    times: Column | None = None

    @classmethod
    def of(cls, transforms: Transforms, *, items: Items | None = None, user_keys: bool = False) -> Inputs:
        reads_times = any(one.window_s is not None for one in transforms.computed.values())
        return cls(
            items=items,
            user_keys=user_keys,
            times=TIMES if reads_times else None,
            request={
                column.name: column for column in (*transforms.request_columns, *([MOMENT] if reads_times else []))
            },
            item={column.name: column for column in transforms.item_columns},
            history={history_name(column.name): column for column in transforms.history_columns},
        )

    def __or__(self, other: Inputs) -> Inputs:
        """What two models read together."""
        return Inputs(
            request={**self.request, **other.request},
            item={**self.item, **other.item},
            history={**self.history, **other.history},
            items=self.items or other.items,
            user_keys=self.user_keys and other.user_keys,
            times=self.times or other.times,
        )

    @property
    def item_keys(self) -> bool:
        return self.items is not None and self.items.keys is not None

    @property
    def names(self) -> list[str]:
        """Of everything that a request may bring."""
        keys = {name for name, is_read in (("user_key", self.user_keys), ("item_key", self.item_keys)) if is_read}
        columns = {*self.request, *self.item, *(column.name for column in self.history.values())}
        columns |= set() if self.times is None else {self.times.name}
        return sorted({"item_id", *keys, *columns})


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A parsed body. deadline_ms: how long the request may wait for its turn.  dropped: columns that the model does not
    read.  num_unknown: keys of a filter that no item has."""

    request: Any
    deadline_ms: float
    dropped: tuple[str, ...] = ()
    num_unknown: int = 0


def parse_object(body: bytes | memoryview) -> dict[str, Any]:
    """The JSON object of a body. Raises RequestError (400) for anything else."""
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError("body", "JSON", f"none: {error}", status=400) from None
    if not isinstance(values, dict):
        raise RequestError("body", "a JSON object", shown(values), status=400)
    return values


def rank_request(
    values: Mapping[str, Any], inputs: Inputs, limits: Limits, candidates: Mapping[str, Any] | None = None
) -> Asked:
    """values: the body's object.  candidates: columns that came beside it, else those in `values`."""
    check_keys(values, RANK_KEYS if candidates is None else _ENVELOPE)
    if candidates is None:
        candidates = _object(values, "candidates")
    columns, unread = candidate_columns(candidates, inputs, limits)
    envelope, deadline_ms, dropped = _read_envelope(values, inputs, limits)
    return Asked(
        request=RankRequest(candidates=columns, **envelope), deadline_ms=deadline_ms, dropped=(*dropped, *unread)
    )


def retrieve_request(values: Mapping[str, Any], inputs: Inputs, limits: Limits) -> Asked:
    check_keys(values, RETRIEVE_KEYS)
    envelope, deadline_ms, dropped = _read_envelope(values, inputs, limits)
    found, num_unknown = item_filter(values.get("filter"), inputs, limits)
    request = RetrieveRequest(k=integer(values.get("k"), "k", 1, limits.max_candidates), filter=found, **envelope)
    return Asked(request=request, deadline_ms=deadline_ms, dropped=dropped, num_unknown=num_unknown)


def recommend_request(values: Mapping[str, Any], inputs: Inputs, limits: Limits) -> Asked:
    check_keys(values, RECOMMEND_KEYS)
    envelope, deadline_ms, dropped = _read_envelope(values, inputs, limits)
    length, explains = values.get("length"), values.get("explain", False)
    if not isinstance(explains, bool):
        raise RequestError("explain", "true or false", shown(explains))
    found, num_unknown = item_filter(values.get("filter"), inputs, limits)
    request = RecommendRequest(
        length=None if length is None else integer(length, "length", 1, limits.max_candidates),
        explains=explains,
        filter=found,
        **envelope,
    )
    return Asked(request=request, deadline_ms=deadline_ms, dropped=dropped, num_unknown=num_unknown)


def check_keys(values: Mapping[str, Any], known: frozenset[str], path: str = "") -> None:
    """path: of the object, with a dot at its end."""
    if unknown := values.keys() - known:
        raise RequestError(f"{path}{min(unknown)}", f"one of {', '.join(sorted(known))}", "another key")


def item_filter(values: Any, inputs: Inputs, limits: Limits) -> tuple[ItemFilter, int]:
    """The filter, and how many of its keys no item has: these filter nothing, since there is nothing of them."""
    if values is None:
        return ItemFilter(), 0
    if not isinstance(values, dict):
        raise RequestError("filter", "an object", shown(values))
    check_keys(values, frozenset({"allow", "deny", "unseen", "categories"}), "filter.")
    unseen = values.get("unseen", False)
    if not isinstance(unseen, bool):
        raise RequestError("filter.unseen", "true or false", shown(unseen))
    ids, num_unknown = {}, 0
    for name in ("allow", "deny"):
        if (given := values.get(name)) is not None and inputs.item_keys and _are_texts(given):
            _check_length(given, f"filter.{name}", limits.max_filter_ids)
            found = [item_id for item_id in _ids_of(given, inputs) if item_id is not None]
            ids[name], num_unknown = np.array(found, np.int64), num_unknown + len(given) - len(found)
        elif given is not None:
            ids[name] = _ids(given, f"filter.{name}", limits)
    categories = _object(values, "categories", {}, "filter.")
    of_categories = {name: _ids(one, f"filter.categories.{name}", limits) for name, one in categories.items()}
    return ItemFilter(**ids, unseen=unseen, categories=of_categories), num_unknown


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(one, str) for one in values)


def _ids_of(keys: list[str], inputs: Inputs) -> list[int | None]:
    """Of each key, None if no item has it."""
    assert inputs.items is not None
    return [inputs.items.id_of(key) for key in keys]


def _ids(values: Any, path: str, limits: Limits) -> np.ndarray:
    _check_length(values, path, limits.max_filter_ids)
    return array(values, ITEM, path)


def candidate_columns(
    given: Mapping[str, Any], inputs: Inputs, limits: Limits
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Checked columns [M] each, and the names that the model does not read."""
    given = named_by_ids(given, inputs, "candidates", limits.max_candidates)
    ids = given.get("item_id")
    if ids is None:
        raise RequestError("candidates.item_id", "a list of int64", "none")
    _check_length(ids, "candidates.item_id", limits.max_candidates)
    columns = {"item_id": array(ids, ITEM, "candidates.item_id")}
    num_candidates = len(columns["item_id"])
    for name, column in inputs.item.items():
        values = given.get(name)
        if values is None:  # the bundle's items have it, or the model's reader says what is missing
            continue
        columns[name] = array(values, column, f"candidates.{name}")
        if len(columns[name]) != num_candidates:
            raise RequestError(
                f"candidates.{name}", f"{num_candidates} values, one per item_id", f"{len(columns[name])}"
            )
    return columns, [name for name in given if name != "item_id" and name not in inputs.item]


def named_by_ids(given: Mapping[str, Any], inputs: Inputs, path: str, most: int) -> Mapping[str, Any]:
    """The columns with `item_id` in the place of `item_key`, if they have that.

    Every key must be an item's: one that is not known cannot be scored, and has no id.
    """
    if "item_key" not in given or (not inputs.item_keys and "item_id" in given):
        return given
    path = f"{path}.item_key"
    if not inputs.item_keys:
        raise RequestError(path, "item_id, since the items here are numbers", "keys")
    if given.get("item_id") is not None:
        raise RequestError(path, "either item_id or item_key", "both")
    keys = given["item_key"]
    if not isinstance(keys, list) or (keys and not _are_texts(keys)):
        raise RequestError(path, "a list of texts", shown(keys))
    _check_length(keys, path, most)
    ids = _ids_of(keys, inputs)
    if None in ids:
        unknown = shown(keys[ids.index(None)])
        are_urls = keys[ids.index(None)].startswith(("http://", "https://"))
        form = ", in their normal form, as items that are URLs have it (reqdedup urls normalise)" if are_urls else ""
        raise RequestError(path, f"keys of the model's items{form}", f"{unknown}, which none has")
    return {**{name: values for name, values in given.items() if name != "item_key"}, "item_id": ids}


def _read_envelope(
    values: Mapping[str, Any], inputs: Inputs, limits: Limits
) -> tuple[dict[str, Any], float, tuple[str, ...]]:
    given = _object(values, "request", {})
    request = {}
    for name, column in inputs.request.items():
        if name in given:
            request[name] = value(given[name], column, f"request.{name}")
    envelope = {
        "user_id": user_of(values, has_keys=inputs.user_keys),
        "request": request,
        "history": _window(values["history"], inputs, limits) if values.get("history") is not None else None,
        "at": None if values.get("at") is None else integer(values["at"], "at", 0, INT64[1]),
        "version": None if values.get("version") is None else integer(values["version"], "version", 0, INT64[1]),
    }
    dropped = [name for name in given if name not in inputs.request]
    if envelope["history"] is not None:
        read = {*inputs.history, "item_key", *(["ts"] if inputs.times is not None else [])}
        dropped += [name for name in values["history"]["columns"] if name not in read]
    return envelope, deadline(values, limits), tuple(dropped)


def user_of(values: Mapping[str, Any], *, has_keys: bool) -> int:
    """`user_id`, or the id that ingest made of the log's `user_key`, if its users are texts."""
    key = values.get("user_key")
    if key is None:
        return integer(values.get("user_id"), "user_id", *INT64)
    if not has_keys:
        raise RequestError("user_key", "user_id, since the log's users are numbers", "a key")
    if values.get("user_id") is not None:
        raise RequestError("user_key", "either user_id or user_key", "both")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise RequestError("user_key", f"a text of 1 to {MAX_KEY} characters", shown(key))
    return hash_string(key)


def deadline(values: Mapping[str, Any], limits: Limits) -> float:
    asked = values.get("deadline_ms")
    if asked is None:
        return limits.max_deadline_ms
    if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not 0 < asked <= limits.max_deadline_ms:
        raise RequestError("deadline_ms", f"a number above 0, at most {limits.max_deadline_ms:g}", shown(asked))
    return float(asked)


def _window(values: Any, inputs: Inputs, limits: Limits) -> Window:
    """{"columns": {"item_id": [...], ...}, "end": 7, "start": 0, "version": 0}; without an end, the events are all."""
    if not isinstance(values, dict):
        raise RequestError("history", "an object", shown(values))
    check_keys(values, frozenset({"columns", "start", "end", "version"}), "history.")
    columns_given = _object(values, "columns", path="history.")
    given = named_by_ids(columns_given, inputs, "history.columns", limits.max_history)
    times = {"ts": inputs.times} if inputs.times is not None and "ts" in given else {}
    columns = event_columns(given, {**inputs.history, **times}, limits.max_history, "history.columns")
    length = len(next(iter(columns.values())))
    start = integer(values.get("start", 0), "history.start", 0, INT64[1])
    end = integer(values.get("end", start + length), "history.end", 0, INT64[1])
    version = integer(values.get("version", 0), "history.version", 0, INT64[1])
    window = Window(columns, start, end, version)
    check_window(window)
    return window


def event_columns(
    given: Mapping[str, Any], wanted: Mapping[str, Column], most: int, path: str
) -> dict[str, np.ndarray]:
    """Columns of events, all of one length, every one that is wanted."""
    columns: dict[str, np.ndarray] = {}
    length = None
    for name, column in wanted.items():
        values = given.get(name)
        if values is None:
            raise RequestError(f"{path}.{name}", f"a list of {words(column)}", "none")
        _check_length(values, f"{path}.{name}", most)
        columns[name] = array(values, column, f"{path}.{name}")
        length = len(columns[name]) if length is None else length
        if len(columns[name]) != length:
            raise RequestError(f"{path}.{name}", f"{length} values, as in the other columns", f"{len(columns[name])}")
    return columns


def _object(
    values: Mapping[str, Any], name: str, default: dict[str, Any] | None = None, path: str = ""
) -> dict[str, Any]:
    found = values.get(name, default)
    if not isinstance(found, dict):
        raise RequestError(f"{path}{name}", "an object of columns", "none" if found is None else shown(found))
    return found


def _check_length(values: Any, path: str, most: int) -> None:
    if isinstance(values, (list, np.ndarray)) and len(values) > most:
        raise RequestError(path, f"at most {most} entries", str(len(values)), status=413)


@dataclass(frozen=True)
class Shown:
    """The impression that events belong to, and the labels that they give to their items. said_us: when they happened,
    as their sender says; None: now."""

    request_id: int
    labels: tuple[str, ...]
    said_us: int | None = None

    def event_ts(self, now_us: int) -> int:
        """When it happened [microseconds since 1970]: as its sender says, if that is believable, else now."""
        if self.said_us is None or not is_believable(self.said_us, now_us):
            return now_us
        return min(self.said_us, now_us)


def shown_request(values: dict[str, Any]) -> Shown | None:
    """Takes `request_id`, `labels` and `event_ts` out of a body of events; None if they belong to no impression."""
    given, labels, said_us = values.pop("request_id", None), values.pop("labels", None), values.pop("event_ts", None)
    if given is None and labels is None and said_us is None:
        return None
    if said_us is not None:
        said_us = integer(said_us, "event_ts", 0, INT64[1])
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) <= 19:
        given = int(given)
    request_id = integer(given, "request_id", 0, INT64[1])
    is_list = isinstance(labels, list) and 0 < len(labels) <= 16
    if not is_list or not all(isinstance(label, str) and 0 < len(label) <= 200 for label in labels):
        raise RequestError("labels", "a list of 1 to 16 names", "none" if labels is None else shown(labels))
    return Shown(request_id, tuple(dict.fromkeys(labels)), said_us)


def events_request(
    values: Mapping[str, Any], wanted: Mapping[str, Column], limits: Limits, inputs: Inputs
) -> tuple[int, dict[str, np.ndarray], str]:
    """User, events by column and the key that makes a repetition harmless. inputs: whose keys users and items have."""
    check_keys(values, frozenset({USER_ID, "user_key", "events", "idempotency_key"}))
    key = values.get("idempotency_key")
    if not isinstance(key, str) or not 0 < len(key) <= 200:
        raise RequestError("idempotency_key", "a text of 1 to 200 characters", "none" if key is None else shown(key))
    events = named_by_ids(_object(values, "events"), inputs, "events", limits.max_events)
    if unknown := events.keys() - wanted.keys():
        raise RequestError(f"events.{min(unknown)}", f"columns {', '.join(sorted(wanted))}", "another one")
    user_id = user_of(values, has_keys=inputs.user_keys)
    return user_id, event_columns(events, wanted, limits.max_events, "events"), key
