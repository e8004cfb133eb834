"""The mapping of a user's log, read from TOML.

    separator = ","                     # text only; left out: by the file's ending and first line
    escape = '\\'                         # if \\" stands for a quote in a quoted field; '' if it does not
    quotes = false                      # if a quote is a character like others
    header = "auto"                     # true, false, or "auto": a first line that names a mapped column is a header
    columns = ["user", "item", "ts"]    # names, if the files have no header
    files = ["log_*.csv"]               # which files of a folder; the first pattern that fits decides
    session_gap_s = 1800                # without request_id: a longer pause starts a new request; 0: every row is one

    user_id = "userId"                  # a name, or several of which the file has one
    item_id = { column = "sku", type = "string" }   # int, string or auto
    request_id = "impression"           # left out: sessions
    # item_id = { column = "url", type = "url", rules = "miqps.json" }   # URLs of one page are one item
    # request_id = { all_of = ["user", "ts"] }      # an id of several columns

    # order = "position"                # instead of [time]: whole numbers that only say what came before what

    [time]
    column = "timestamp"
    unit = "s"                          # of numbers: s, ms, us, ns; text is ISO 8601 unless `format` says otherwise
    format = "%m/%d/%Y %I:%M:%S %p"
    zone = "UTC"                        # of times that name none

    [labels]                            # every label is 0, 1 or missing
    click = "is_click"
    like = { column = "rating", at_least = 4, range = [0.5, 5] }
    view = { value = 1 }                # a log of positives only
    buy = { column = "action", one_of = ["buy"] }

    [request_columns]                   # one value per request
    device = "int32"                    # its type, if the column has the same name
    surface = { column = "page", dtype = "string" }

    [item_columns]                      # one value per row
    price = "float32"

    [candidates]                        # one row per request, instead of item_id
    column = "impressions"              # a list, or text with a separator
    separator = " "
    label = "click"                     # candidates look like N35729-0; left out: labels are lists of the same length
    label_separator = "-"
    # type = "url"                      # and rules = "miqps.json", as of item_id

    [history]                           # without a column, histories are made of earlier rows
    column = "history"
    separator = " "
    time_column = "history_ts"          # epoch milliseconds of its events, if the log has them
    # arrival_column = "received"       # of histories made of earlier rows: when a row arrived, written as [time] is
    events = "engaged"                  # made of earlier rows with a positive label, or "all"

docs/mapping.md explains every key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from reqdedup.logs.mapping import (
    ORDER,
    CandidateRule,
    FeatureRule,
    HistoryRule,
    IdRule,
    LabelRule,
    LogMapping,
    TimeRule,
)

_TEXT = ("text", (str,))
_TRUTH = ("true or false", (bool,))
_WHOLE = ("a whole number", (int,))
_NUMBER = ("a number", (int, float))
_TABLE = ("a table", (Mapping,))


def load_mapping(source: LogMapping | Mapping[str, Any] | str | Path) -> LogMapping:
    """A mapping from a TOML file, its parsed form, or itself. Raises ValueError naming the key that does not fit."""
    if isinstance(source, LogMapping):
        return source
    if isinstance(source, Mapping):
        return parse_mapping(source)
    try:
        with Path(source).open("rb") as file:
            mapping = parse_mapping(tomllib.load(file))
    except OSError as error:
        raise ValueError(f"mapping {source}: a readable TOML file required, found: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"mapping {source}: TOML required, found: {error}") from None
    if not mapping.url_rules:
        return mapping
    rules = str(Path(source).parent / mapping.url_rules)  # beside the mapping, wherever it is read from
    if mapping.item_id is not None:
        return replace(mapping, item_id=replace(mapping.item_id, rules=rules))
    return replace(mapping, candidates=mapping.candidates and replace(mapping.candidates, rules=rules))


def parse_mapping(tables: Mapping[str, Any]) -> LogMapping:
    """A mapping from parsed TOML."""
    top = _Table("", tables)
    time, candidates, history = top.table("time"), top.table("candidates"), top.table("history")
    order = top.names("order", required=False)
    if (time is None) == (not order):
        raise ValueError(
            "mapping: a table [time] with `column`, or `order`, the column of a log without times, required, found "
            f"{'both' if order else 'neither'}; see docs/mapping.md"
        )
    item_id = top.id("item_id") if "item_id" in tables else None
    mapping: dict[str, Any] = {
        "user_id": top.id("user_id"),
        "item_id": item_id,
        "request_id": top.id("request_id") if "request_id" in tables else None,
        "time": TimeRule(columns=order, unit=ORDER) if time is None else _time(time),
        "labels": tuple(_label(name, rule) for name, rule in top.take("labels", {}, _TABLE).items()),
        "request_columns": tuple(
            _feature(name, rule) for name, rule in top.take("request_columns", {}, _TABLE).items()
        ),
        "item_columns": tuple(_feature(name, rule) for name, rule in top.take("item_columns", {}, _TABLE).items()),
    }
    if candidates:
        mapping["candidate_id_type"] = candidates.take("type", "auto", _TEXT)
        mapping["candidates"] = CandidateRule(
            columns=candidates.names("column"),
            separator=candidates.take("separator", " ", _TEXT),
            label=candidates.take("label", None, _TEXT),
            label_separator=candidates.take("label_separator", "-", _TEXT),
            position=candidates.take("position", False, _TRUTH),
            rules=candidates.rules(),
        )
        inline = mapping["candidates"].label
        if inline and inline not in [label.name for label in mapping["labels"]]:
            mapping["labels"] = (LabelRule(name=inline), *mapping["labels"])
        candidates.finish()
    if history:
        mapping["history"] = HistoryRule(
            columns=history.names("column", required=False),
            separator=history.take("separator", " ", _TEXT),
            time_columns=history.names("time_column", required=False),
            arrival_columns=history.names("arrival_column", required=False),
            action=history.take("action", 1, _WHOLE),
            events=history.take("events", "engaged", _TEXT),
        )
        history.finish()
    kinds = {
        "request_scope": _TEXT,
        "format": _TEXT,
        "separator": _TEXT,
        "escape": _TEXT,
        "session_gap_s": _NUMBER,
        "quotes": _TRUTH,
        "header": None,
    }
    for key, kind in kinds.items():
        if key in tables:
            mapping[key] = top.take(key, None, kind)
    if mapping["time"].is_order:
        mapping.setdefault("session_gap_s", 0)
    for key in ("columns", "files", "null_values"):
        if key in tables:
            mapping[key] = top.names(key)
    top.finish()
    return LogMapping(**mapping)


class _Table:
    """One TOML table, read key by key; keys that nobody has asked for are errors."""

    def __init__(self, name: str, values: Mapping[str, Any]):
        if not isinstance(values, Mapping):
            raise ValueError(f"mapping: [{name}] must be a table, found {values!r}")
        self._where = f"mapping: [{name}]" if name else "mapping:"
        self._values = dict(values)
        self._known: set[str] = set()

    def take(self, key: str, default: Any, kind: tuple[str, tuple[type, ...]] | None = None) -> Any:
        """The value of a key. kind: what it must be, in words and as types."""
        self._known.add(key)
        if key not in self._values:
            return default
        value = self._values[key]
        if kind is not None and (not isinstance(value, kind[1]) or (isinstance(value, bool) and bool not in kind[1])):
            raise ValueError(f"{self._where} {key}: {kind[0]} required, found {value!r}")
        return value

    def rules(self) -> str:
        """Path of a rules file, "" if none is named; an empty text would apply none, without a word."""
        if self.take("rules", None, _TEXT) == "":
            raise ValueError(
                f"{self._where} rules: the path of a rules file required, found ''; leave rules out for none"
            )
        return str(self.take("rules", "", _TEXT))

    def names(self, key: str, required: bool = True) -> tuple[str, ...]:
        value = self.take(key, None)
        if value is None and not required:
            return ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not all(isinstance(name, str) for name in values) or not values:
            raise ValueError(f"{self._where} {key}: a name or a list of names required, found {value!r}")
        return tuple(values)

    def table(self, key: str) -> _Table | None:
        value = self.take(key, None)
        return None if value is None else _Table(key, value)

    def id(self, key: str) -> IdRule:
        value = self.take(key, None)
        if isinstance(value, Mapping):
            inner = _Table(key, value)
            several = "all_of" in value
            columns = inner.names("all_of" if several else "column")
            kind = inner.take("type", "auto", _TEXT)
            rule = IdRule(columns=columns, type=kind, all_of=several, rules=inner.rules())
            inner.finish()
            return rule
        return IdRule(columns=self.names(key))

    def finish(self) -> None:
        for key in self._values:
            if key not in self._known:
                near = get_close_matches(key, self._known, n=1)
                advice = f"; did you mean {near[0]}?" if near else f"; the keys are {', '.join(sorted(self._known))}"
                raise ValueError(f"{self._where} unknown key {key!r}{advice}")


def _time(table: _Table) -> TimeRule:
    latest = table.take("latest", None)
    rule = TimeRule(
        columns=table.names("column"),
        unit=table.take("unit", "s", _TEXT),
        formats=table.names("format", required=False),
        zone=table.take("zone", "UTC", _TEXT),
        earliest=_moment("earliest", table.take("earliest", datetime(1990, 1, 1, tzinfo=UTC))),
        latest=None if latest is None else _moment("latest", latest),
    )
    table.finish()
    return rule


def _label(name: str, rule: Any) -> LabelRule:
    if isinstance(rule, str | list):
        return LabelRule(name=name, columns=_Table(name, {"column": rule}).names("column"))
    table = _Table(f"labels.{name}", rule)
    value = table.take("value", None, _WHOLE)
    bounds = table.take("range", (0.0, 1.0))
    if not isinstance(bounds, list | tuple) or [isinstance(bound, int | float) for bound in bounds] != [True, True]:
        raise ValueError(f"mapping: [labels.{name}] range: a list of two numbers required, found {bounds!r}")
    listed = table.names("listed_in", required=False)
    label = LabelRule(
        name=name,
        columns=listed or table.names("column", required=value is None),
        one_of=table.names("one_of", required=False),
        listed=bool(listed),
        at_least=table.take("at_least", None, _NUMBER),
        lowest=float(bounds[0]),
        highest=float(bounds[1]),
        value=value,
    )
    table.finish()
    return label


def _feature(name: str, rule: Any) -> FeatureRule:
    if isinstance(rule, str):
        return FeatureRule(name=name, columns=(name,), dtype=rule)
    table = _Table(name, rule)
    columns = table.names("column", required=False) or (name,)
    feature = FeatureRule(name=name, columns=columns, dtype=table.take("dtype", "", _TEXT))
    table.finish()
    return feature


def _moment(key: str, value: Any) -> datetime:
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError(f"mapping: [time] {key}: a date required, found {value!r}")
    return value if value.tzinfo else value.replace(tzinfo=UTC)
