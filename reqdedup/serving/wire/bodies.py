"""From a body of JSON to a request, checked by the model's signature, and from an answer to a body.

A value is taken as what the signature says it is or refused with its column, what was required and what was found;
nothing is rounded, cut or guessed. Columns that the model does not read are dropped and counted. Bits survive: a
float32 is written with as many digits as tell it from all others, and read back to the same one.

Candidates are read by numpy as whole lists, so 500 of them cost microseconds; the standard library's json would cost
ten times orjson. Arrow bodies, for machines: `arrow`. Open Inference Protocol: `oip`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from reqdedup.models.transforms import Transforms, history_name, null_of
from reqdedup.schema import ITEM_ID, USER_ID, Column, Kind, Level
from reqdedup.sequences.store import Window
from reqdedup.serving.limits import BadRequestError, Limits, shown
from reqdedup.serving.requests import (
    ItemFilter,
    RankRequest,
    RecommendRequest,
    RetrieveRequest,
)

INT64 = (-(2**63), 2**63 - 1)
ITEM = Column(name=ITEM_ID, dtype="int64", level=Level.KEY)
_BOUNDS = {"int32": (-(2**31), 2**31 - 1), "int64": INT64, "timestamp": INT64}
_ENVELOPE = frozenset({"user_id", "request", "history", "at", "version", "deadline_ms"})
RANK_KEYS = _ENVELOPE | {"candidates"}
RETRIEVE_KEYS = _ENVELOPE | {"k", "filter"}
RECOMMEND_KEYS = _ENVELOPE | {"length", "filter", "explain"}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The columns of a model by level, under the names that requests use: history columns without their prefix."""

    request: Mapping[str, Column] = field(default_factory=dict)
    item: Mapping[str, Column] = field(default_factory=dict)
    history: Mapping[str, Column] = field(default_factory=dict)

    @classmethod
    def of(cls, transforms: Transforms) -> Inputs:
        return cls(
            request={column.name: column for column in transforms.request_columns},
            item={column.name: column for column in transforms.item_columns},
            history={history_name(column.name): column for column in transforms.history_columns},
        )

    def __or__(self, other: Inputs) -> Inputs:
        """What two models read together."""
        return Inputs(
            request={**self.request, **other.request},
            item={**self.item, **other.item},
            history={**self.history, **other.history},
        )

    @property
    def names(self) -> list[str]:
        """Of everything that a request may bring."""
        return sorted({"item_id", *self.request, *self.item, *(column.name for column in self.history.values())})


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A parsed body. deadline_ms: how long the request may wait for its turn.  dropped: columns that the model does not
    read."""

    request: Any
    deadline_ms: float
    dropped: tuple[str, ...] = ()


def parse_object(body: bytes | memoryview) -> dict[str, Any]:
    """The JSON object of a body. Raises BadRequestError (400) for anything else."""
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError("body", "JSON", f"none: {error}", status=400) from None
    if not isinstance(values, dict):
        raise BadRequestError("body", "a JSON object", shown(values), status=400)
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
    request = RetrieveRequest(
        k=integer(values.get("k"), "k", 1, limits.max_candidates),
        filter=item_filter(values.get("filter"), limits),
        **envelope,
    )
    return Asked(request=request, deadline_ms=deadline_ms, dropped=dropped)


def recommend_request(values: Mapping[str, Any], inputs: Inputs, limits: Limits) -> Asked:
    check_keys(values, RECOMMEND_KEYS)
    envelope, deadline_ms, dropped = _read_envelope(values, inputs, limits)
    length, explains = values.get("length"), values.get("explain", False)
    if not isinstance(explains, bool):
        raise BadRequestError("explain", "true or false", shown(explains))
    request = RecommendRequest(
        length=None if length is None else integer(length, "length", 1, limits.max_candidates),
        explains=explains,
        filter=item_filter(values.get("filter"), limits),
        **envelope,
    )
    return Asked(request=request, deadline_ms=deadline_ms, dropped=dropped)


def check_keys(values: Mapping[str, Any], known: frozenset[str], path: str = "") -> None:
    """path: of the object, with a dot at its end."""
    if unknown := values.keys() - known:
        raise BadRequestError(f"{path}{min(unknown)}", f"one of {', '.join(sorted(known))}", "another key")


def item_filter(values: Any, limits: Limits) -> ItemFilter:
    if values is None:
        return ItemFilter()
    if not isinstance(values, dict):
        raise BadRequestError("filter", "an object", shown(values))
    check_keys(values, frozenset({"allow", "deny", "unseen", "categories"}), "filter.")
    unseen = values.get("unseen", False)
    if not isinstance(unseen, bool):
        raise BadRequestError("filter.unseen", "true or false", shown(unseen))
    ids = {
        name: _ids(values[name], f"filter.{name}", limits) for name in ("allow", "deny") if values.get(name) is not None
    }
    categories = _object(values, "categories", {}, "filter.")
    return ItemFilter(
        **ids,
        unseen=unseen,
        categories={name: _ids(one, f"filter.categories.{name}", limits) for name, one in categories.items()},
    )


def _ids(values: Any, path: str, limits: Limits) -> np.ndarray:
    _check_length(values, path, limits.max_filter_ids)
    return array(values, ITEM, path)


def candidate_columns(
    given: Mapping[str, Any], inputs: Inputs, limits: Limits
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Checked columns [M] each, and the names that the model does not read."""
    ids = given.get("item_id")
    if ids is None:
        raise BadRequestError("candidates.item_id", "a list of int64", "none")
    _check_length(ids, "candidates.item_id", limits.max_candidates)
    columns = {"item_id": array(ids, ITEM, "candidates.item_id")}
    num_candidates = len(columns["item_id"])
    for name, column in inputs.item.items():
        values = given.get(name)
        if values is None:  # the bundle's items have it, or the model's reader says what is missing
            continue
        columns[name] = array(values, column, f"candidates.{name}")
        if len(columns[name]) != num_candidates:
            raise BadRequestError(
                f"candidates.{name}", f"{num_candidates} values, one per item_id", f"{len(columns[name])}"
            )
    return columns, [name for name in given if name != "item_id" and name not in inputs.item]


def _read_envelope(
    values: Mapping[str, Any], inputs: Inputs, limits: Limits
) -> tuple[dict[str, Any], float, tuple[str, ...]]:
    given = _object(values, "request", {})
    request = {}
    for name, column in inputs.request.items():
        if name in given:
            request[name] = value(given[name], column, f"request.{name}")
    envelope = {
        "user_id": integer(values.get("user_id"), "user_id", *INT64),
        "request": request,
        "history": _window(values["history"], inputs, limits) if values.get("history") is not None else None,
        "at": None if values.get("at") is None else integer(values["at"], "at", 0, INT64[1]),
        "version": None if values.get("version") is None else integer(values["version"], "version", 0, INT64[1]),
    }
    return envelope, deadline(values, limits), tuple(name for name in given if name not in inputs.request)


def deadline(values: Mapping[str, Any], limits: Limits) -> float:
    asked = values.get("deadline_ms")
    if asked is None:
        return limits.max_deadline_ms
    if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not 0 < asked <= limits.max_deadline_ms:
        raise BadRequestError("deadline_ms", f"a number above 0, at most {limits.max_deadline_ms:g}", shown(asked))
    return float(asked)


def _window(values: Any, inputs: Inputs, limits: Limits) -> Window:
    """{"columns": {"item_id": [...], ...}, "end": 7, "start": 0, "version": 0}; without an end, the events are all."""
    if not isinstance(values, dict):
        raise BadRequestError("history", "an object", shown(values))
    check_keys(values, frozenset({"columns", "start", "end", "version"}), "history.")
    given = _object(values, "columns", path="history.")
    columns = event_columns(given, inputs.history, limits.max_history, "history.columns")
    length = len(next(iter(columns.values())))
    start = integer(values.get("start", 0), "history.start", 0, INT64[1])
    end = integer(values.get("end", start + length), "history.end", 0, INT64[1])
    if end < start:
        raise BadRequestError("history.end", f"at least the start, {start},", f"{end}")
    if end - start != length:
        raise BadRequestError("history", f"{end - start} events, from start {start} to end {end}", f"{length}")
    return Window(
        columns=columns, start=start, end=end, version=integer(values.get("version", 0), "history.version", 0, INT64[1])
    )


def event_columns(
    given: Mapping[str, Any], wanted: Mapping[str, Column], most: int, path: str
) -> dict[str, np.ndarray]:
    """Columns of events, all of one length, every one that is wanted."""
    columns: dict[str, np.ndarray] = {}
    length = None
    for name, column in wanted.items():
        values = given.get(name)
        if values is None:
            raise BadRequestError(f"{path}.{name}", f"a list of {words(column)}", "none")
        _check_length(values, f"{path}.{name}", most)
        columns[name] = array(values, column, f"{path}.{name}")
        length = len(columns[name]) if length is None else length
        if len(columns[name]) != length:
            raise BadRequestError(
                f"{path}.{name}", f"{length} values, as in the other columns", f"{len(columns[name])}"
            )
    return columns


def integer(given: Any, path: str, least: int, most: int) -> int:
    """A whole number in bounds; a bool is none."""
    if isinstance(given, (bool, np.bool_)) or not isinstance(given, (int, np.integer)) or not least <= given <= most:
        raise BadRequestError(
            path, f"a whole number from {least} to {most}", shown(given) if given is not None else "none"
        )
    return int(given)


def value(given: Any, column: Column, path: str) -> Any:
    """One value of a request-level column: a plain value, or an array [width]."""
    if column.width:
        vector = array(given, column, path)
        return vector
    if given is None and column.nullable:
        return None
    dtype = column.dtype
    if dtype in _BOUNDS:
        return integer(given, path, *_BOUNDS[dtype])
    if dtype == "bool":
        fits = isinstance(given, (bool, np.bool_))
    elif dtype == "string":
        fits = isinstance(given, str)
    else:
        fits = isinstance(given, (int, float, np.number)) and not isinstance(given, bool) and _is_finite(given, dtype)
    if not fits:
        required = f"a finite {dtype}" if dtype.startswith("float") else dtype
        raise BadRequestError(path, required, shown(given))
    return float(given) if dtype.startswith("float") else given


def _is_finite(given: Any, dtype: str) -> bool:
    return math.isfinite(given) and abs(given) <= float(np.finfo(dtype).max)


def array(given: Any, column: Column, path: str) -> np.ndarray:
    """A list or an array of one kind as an array of the column's dtype; [width] if the column is a vector."""
    dtype = column.dtype
    if isinstance(given, np.ndarray):
        values = given
    elif isinstance(given, list):
        if not given:
            values = np.empty(0, _numpy(dtype))
        else:
            try:
                values = np.array(_without_nulls(given, column))
            except (ValueError, OverflowError):  # lists of different lengths
                raise BadRequestError(path, f"a list of {words(column)}", shown(given)) from None
    else:
        raise BadRequestError(path, f"a list of {words(column)}", shown(given))
    if values.ndim != 1 or (column.width and len(values) != column.width):
        raise BadRequestError(path, f"a list of {words(column)}", f"values of shape {list(values.shape)}")
    kind = values.dtype.kind
    if dtype in _BOUNDS:
        least, most = _BOUNDS[dtype]
        if kind == "i" and (dtype != "int32" or not len(values) or (values.min() >= least and values.max() <= most)):
            return values.astype(_numpy(dtype), copy=False)
        if kind == "u" and (not len(values) or values.max() <= most):
            return values.astype(_numpy(dtype))
    elif (dtype == "bool" and kind == "b") or (dtype == "string" and kind == "U"):
        return values
    elif dtype.startswith("float") and kind in "fiu":
        with np.errstate(over="ignore"):
            cast = values.astype(dtype, copy=False)
        if np.isfinite(cast).all() or (column.nullable and not np.isinf(cast).any()):
            return cast
    raise BadRequestError(path, f"a list of {words(column)}", _odd_one(values, given, column))


def _without_nulls(given: list[Any], column: Column) -> list[Any]:
    """Nulls as the loader has them, if the column may be null."""
    if not column.nullable or None not in given:
        return given
    null = null_of(column)
    return [null if one is None else one for one in given]


def words(column: Column) -> str:
    """What a column holds, for people."""
    return f"{column.width} numbers ({column.dtype})" if column.width else column.dtype


def _odd_one(values: np.ndarray, given: Any, column: Column) -> str:
    """The first value that does not fit, for the error."""
    one = replace(column, kind=Kind.SCALAR, level=Level.ITEM, width=0)
    for place, found in enumerate(given):
        try:
            value(found, one, "")
        except BadRequestError:
            return f"{shown(found)} at place {place}"
    return f"values of type {values.dtype}"


def _numpy(dtype: str) -> np.dtype[Any]:
    return np.dtype({"timestamp": "int64", "string": "U1"}.get(dtype, dtype))


def _object(
    values: Mapping[str, Any], name: str, default: dict[str, Any] | None = None, path: str = ""
) -> dict[str, Any]:
    found = values.get(name, default)
    if not isinstance(found, dict):
        raise BadRequestError(f"{path}{name}", "an object of columns", "none" if found is None else shown(found))
    return found


def _check_length(values: Any, path: str, most: int) -> None:
    if isinstance(values, (list, np.ndarray)) and len(values) > most:
        raise BadRequestError(path, f"at most {most} entries", str(len(values)), status=413)


@dataclass(frozen=True)
class Shown:
    """The impression that events belong to, and the labels that they give to their items."""

    request_id: int
    labels: tuple[str, ...]


def shown_request(values: dict[str, Any]) -> Shown | None:
    """Takes `request_id` and `labels` out of a body of events; None if they belong to no impression."""
    given, labels = values.pop("request_id", None), values.pop("labels", None)
    if given is None and labels is None:
        return None
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) <= 19:
        given = int(given)
    request_id = integer(given, "request_id", 0, INT64[1])
    is_list = isinstance(labels, list) and 0 < len(labels) <= 16
    if not is_list or not all(isinstance(label, str) and 0 < len(label) <= 200 for label in labels):
        raise BadRequestError("labels", "a list of 1 to 16 names", "none" if labels is None else shown(labels))
    return Shown(request_id, tuple(dict.fromkeys(labels)))


def events_request(
    values: Mapping[str, Any], wanted: Mapping[str, Column], limits: Limits
) -> tuple[int, dict[str, np.ndarray], str]:
    """User, events by column and the key that makes a repetition harmless."""
    check_keys(values, frozenset({USER_ID, "events", "idempotency_key"}))
    key = values.get("idempotency_key")
    if not isinstance(key, str) or not 0 < len(key) <= 200:
        raise BadRequestError("idempotency_key", "a text of 1 to 200 characters", "none" if key is None else shown(key))
    events = _object(values, "events")
    if unknown := events.keys() - wanted.keys():
        raise BadRequestError(f"events.{min(unknown)}", f"columns {', '.join(sorted(wanted))}", "another one")
    user_id = integer(values.get("user_id"), "user_id", *INT64)
    return user_id, event_columns(events, wanted, limits.max_events, "events"), key
