"""From mapped columns to typed impressions, one row each, and every row that does not fit to the rejects.

Knows nothing of other rows: sessions, duplicates and histories come later (`requests`, `sequences`). Columns of the
result: user_id, item_id, request_id (int64; item_id only if items are integers, request_id only if the log has one),
user_key, item_key, request_key (strings, if the ids were strings), ts_us, the labels, mapped columns under
their own names, history and history_times (packed text, if the log has its own), position, file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from reqdedup.logs.checks import Check, Rejects
from reqdedup.logs.ids import ItemKeys, hash_strings
from reqdedup.logs.mapping import ARRIVAL, ARRIVED_US, MAX_ORDER, FeatureRule, IdRule, LogMapping
from reqdedup.logs.urls.items import UrlItems
from reqdedup.logs.values import (
    EXACT_BELOW,
    FAR_FUTURE_US,
    INTEGER_ID,
    LIST_MARK,
    candidate_item,
    candidate_label,
    parse_time,
    read_feature,
    read_float,
    read_integer_id,
    read_label,
    read_string_id,
    read_whole,
)

_REASONS = {"user": "id", "item": "id", "request": "id", "time": "time", "candidates": "candidates"}
_REASONS |= dict.fromkeys(("history", "history_times"), "history")


@dataclass(frozen=True, kw_only=True)
class IdTypes:
    """Which ids of a log are strings; decided once, on its first rows, so that the schema is known before reading."""

    user: bool
    item: bool
    request: bool


def detect_id_types(frames: Iterator[pl.DataFrame], mapping: LogMapping) -> IdTypes | None:
    """Ids are integers if the mapping says so, or says auto and most of the first ones are; None if there is no row.

    The first frame that has an id decides about it, for all files. Most and not all, since one bad id must not turn a
    log's integers into strings; the bad ones are rejected. `007` and dates are strings.
    """
    rules = {name: "string" if rule.all_of else rule.type for name, rule in _id_rules(mapping).items()}
    rules.setdefault("item", mapping.candidate_id_type)
    found: dict[str, bool | None] = {name: None if rule == "auto" else rule != "int" for name, rule in rules.items()}
    empty = True
    for frame in frames:
        empty &= frame.is_empty()
        for name in [name for name, is_string in found.items() if is_string is None]:
            found[name] = _are_strings(frame, name, mapping)
        if not empty and None not in found.values():
            break
    if empty:
        return None
    return IdTypes(
        user=found["user"] is not False,
        item=found["item"] is not False,
        request=found.get("request", False) is not False,
    )


def _id_rules(mapping: LogMapping) -> dict[str, IdRule]:
    rules = {"user": mapping.user_id, "item": mapping.item_id, "request": mapping.request_id}
    return {name: rule for name, rule in rules.items() if rule is not None}


def _are_strings(frame: pl.DataFrame, name: str, mapping: LogMapping) -> bool | None:
    """Whether most of these ids are no integers; None if there is none."""
    if name == "item" and mapping.candidates is not None:
        elements = frame.select(pl.col("candidates").list.explode(keep_nulls=False, empty_as_null=False))
        values = elements.select(candidate_item("candidates", mapping.candidates)).to_series()
    else:
        values = frame[name]
    if values.dtype == pl.String:
        values = values.str.strip_chars()
        values = values.filter(~values.is_in(mapping.missing_texts))
    values = values.drop_nulls()
    if values.is_empty():
        return None
    if values.dtype != pl.String:
        return values.dtype.is_temporal()
    return 2 * int(values.str.contains(INTEGER_ID).sum()) <= len(values)


class ImpressionParser:
    """Turns blocks of one log into impressions. Times later than a day after its making are absurd by default."""

    def __init__(
        self,
        mapping: LogMapping,
        ids: IdTypes,
        rejects: Rejects,
        *,
        request_scope: str,
        keys: ItemKeys,
        urls: UrlItems | None = None,
    ):
        self._urls = urls
        self._mapping, self._ids, self._rejects, self._scope = mapping, ids, rejects, request_scope
        self._keys = keys
        self._texts = {f"request {rule.name}" for rule in mapping.request_columns if rule.dtype == "string"}
        self._texts |= {f"row {rule.name}" for rule in mapping.item_columns if rule.dtype == "string"}
        self._text_ids = {name for name in ("user", "item", "request") if getattr(ids, name)}
        if mapping.request_id and mapping.request_id.type == "int":  # hashed with its scope, and an integer still
            self._text_ids.discard("request")
        self._parts = {
            name: list(rule.sources(name)) for name, rule in _id_rules(mapping).items() if rule.all_of
        }  # of an id of several columns
        self._text_ids |= {part for parts in self._parts.values() for part in parts}
        latest = mapping.time.latest or datetime.now(UTC) + timedelta(days=1)
        self._earliest_us = round(mapping.time.earliest.timestamp() * 1e6)
        self._latest_us = round(latest.timestamp() * 1e6)
        if mapping.time.is_order:
            self._earliest_us, self._latest_us = 0, MAX_ORDER * 1_000_000

    def parse(self, frame: pl.DataFrame, file: int) -> pl.DataFrame:
        """Impressions of a block's rows (columns: internal names, line, raw); the rest goes to the rejects."""
        mapping = self._mapping
        lists = mapping.list_separators
        frame = frame.with_columns(
            pl.lit(file, pl.UInt32).alias("file"),
            *(self._without_nulls(name, frame.schema[name]) for name in mapping.sources() if name not in lists),
        )
        frame = frame.with_columns(_joined(parts, frame.schema).alias(name) for name, parts in self._parts.items())
        if frame["raw"].null_count() == frame.height:
            shown = [name for name in ("user", "request", "item", "time") if name in frame.columns]
            texts = [pl.format(f"{name}={{}}", pl.col(name).cast(pl.String).fill_null("null")) for name in shown]
            frame = frame.with_columns(pl.concat_str(texts, separator=", ").alias("raw"))
        # First of all, so that a rejected row says whose it is.
        frame = _with_id(frame, "user", is_string=self._ids.user)
        frame = self._parse_request(frame)
        if mapping.candidates:
            frame = self._explode_candidates(frame)
        frame = self._scoped(self._parse_row(frame))
        if self._urls is not None:
            frame = self._urls.normalised(frame)
        if self._ids.item:
            self._keys.add(frame["item_key"])
            if "history" in frame.columns:
                packed = frame["history"].unique()
                self._keys.add(packed.filter(packed != "").str.split(LIST_MARK).explode())
        return frame

    def _without_nulls(self, name: str, dtype: pl.DataType) -> pl.Expr:
        """A column with null for what means missing. Text is exact; around a number, time or bool spaces do not count.

        Of text, what means missing by default is missing already, if it came from a delimited file.
        """
        value, missing = pl.col(name), self._mapping.missing_texts
        if dtype.is_float() and {"nan", "NaN"} & set(missing):
            return value.fill_nan(None)
        if dtype != pl.String:
            return value
        stripped = value.str.strip_chars()
        if name in self._texts | self._text_ids:
            is_missing = value.is_in(list(self._mapping.null_values or ()))
            is_missing |= (stripped == "") if name in self._text_ids else False  # nobody's id
            return pl.when(~is_missing).then(value).alias(name)
        return pl.when(~stripped.is_in(missing)).then(stripped).alias(name)

    def _parse_request(self, frame: pl.DataFrame) -> pl.DataFrame:
        """User, request, time, request-level columns and history: what a row has once, however many candidates."""
        mapping, schema = self._mapping, frame.schema
        ts_us = parse_time(pl.col("time"), schema["time"], mapping.time)
        frame = frame.with_columns(ts_us.alias("ts_us"))
        if mapping.history.arrival_columns:
            arrived_us = parse_time(pl.col(ARRIVAL), schema[ARRIVAL], mapping.time)
            frame = frame.with_columns(arrived_us.alias(ARRIVED_US))
        checks = [_unfit_check(name) for name in mapping.sources() if f"unfit {name}" in schema]
        checks += _id_checks("user", self._ids.user)
        if mapping.request_id:
            frame = _with_id(frame, "request", is_string=self._ids.request)
            checks += _id_checks("request", self._ids.request)
        time_text = pl.col("time").cast(pl.String).fill_null("null")
        wanted = (
            "one of the patterns of `format` in [time] required"
            if mapping.time.formats
            else "a number, or ISO 8601 with seconds, required; otherwise name its `format` in [time]"
        )
        if mapping.time.is_order:
            wanted = f"a whole number from 0 to {MAX_ORDER} required, as an order"
        absurd = (pl.col("ts_us") < self._earliest_us) | (pl.col("ts_us") > self._latest_us)
        as_time = pl.from_epoch(pl.col("ts_us"), time_unit="us").dt.to_string("%Y-%m-%d %H:%M:%S")
        if mapping.history.arrival_columns:
            said = pl.format("time of arrival {} cannot be read", pl.col(ARRIVAL).cast(pl.String))
            checks.append(Check("time", pl.col(ARRIVED_US).is_null() & pl.col(ARRIVAL).is_not_null(), said))
        as_time = pl.when(pl.col("ts_us") < FAR_FUTURE_US).then(as_time).otherwise(pl.lit("a year after 9999"))
        checks += [
            Check("time", pl.col("ts_us").is_null(), pl.format(f"time {{}} cannot be read; {wanted}", time_text)),
            Check(
                "absurd_time",
                absurd,
                pl.format(f"time {{}}: {wanted}", time_text)
                if mapping.time.is_order
                else pl.format("time {} means {}, check its unit", time_text, as_time),
            ),
        ]
        columns = []
        for rule in mapping.request_columns:
            name = f"request {rule.name}"
            columns.append(read_feature(pl.col(name), schema[name], rule).alias(rule.name))
            checks.append(_value_check(name, rule))
        frame = frame.with_columns(columns)
        return self._parse_history(self._rejects.split(frame, checks))

    def _parse_history(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Histories packed into text, items between LIST_MARKs; empty or missing ones are empty."""
        rule = self._mapping.history
        names = [name for name, there in (("history", rule.columns), ("history_times", rule.time_columns)) if there]
        if not names:
            return frame
        element, stripped = pl.element(), pl.element().str.strip_chars()
        is_there = (stripped != "").fill_null(True)
        for name in names:
            kept = element if name == "history" and self._ids.item else stripped
            frame = frame.with_columns(pl.col(name).list.eval(kept.filter(is_there)))
        checks = [Check("history", pl.col(name).list.contains(None), pl.lit("null in a list")) for name in names]
        marked = pl.col("history").list.eval(pl.element().str.contains(LIST_MARK, literal=True)).list.any()
        checks.append(Check("history", marked, pl.lit("items without the character U+001F required")))
        columns = []
        if rule.columns and not self._ids.item:
            columns.append(pl.col("history").list.eval(read_integer_id(pl.element(), pl.String())))
            checks.append(Check("history", columns[0].list.contains(None), pl.lit("integer items required")))
        if rule.time_columns:
            times = pl.col("history_times").list.eval(read_whole(pl.element(), pl.String()))
            events = pl.col("history").list.len()
            columns.append(times)
            checks += [
                Check("history", times.list.len() != events, pl.lit("as many times as items required")),
                Check("history", times.list.contains(None), pl.lit("times in ms required")),
                Check(
                    "history",
                    times.list.max() >= pl.col("ts_us") // 1000,
                    pl.format("event at {} ms, not before the request", times.list.max()),
                ),
            ]
        frame = self._rejects.split(frame, checks).with_columns(columns)
        packed = [pl.col(name).cast(pl.List(pl.String)).list.join(LIST_MARK) for name in names]
        return frame.with_columns(packed)

    def _explode_candidates(self, frame: pl.DataFrame) -> pl.DataFrame:
        """One row per candidate; lists of labels and item columns go along with their candidates."""
        rule = self._mapping.candidates
        assert rule is not None
        listed = [f"label {label.name}" for label in self._mapping.labels if label.listed]
        along = [name for name in self._mapping.sources() if name.startswith(("label ", "row ")) and name not in listed]
        lists = ["candidates", *along]
        length = pl.col("candidates").list.len()
        checks = [Check("candidates", length.fill_null(0) == 0, pl.lit("at least one candidate required"))]
        for name in along:
            found = pl.col(name).list.len()
            detail = pl.format(f"{{}} candidates and {{}} values of {name}", length, found.fill_null(0))
            checks.append(Check("candidates", found.fill_null(0) != length, detail))
        frame = self._rejects.split(frame, checks)
        if rule.position:
            frame = frame.with_columns(pl.int_ranges(0, length, dtype=pl.Int32).alias("position"))
            lists.append("position")
        shown = "candidates"
        if self._urls is not None and listed:  # what was clicked may be another URL of the page
            shown = "compared"
            frame = frame.with_columns(self._urls.forms(frame[name]) for name in listed).explode(lists)
            frame = frame.with_columns(self._urls.forms(frame["candidates"]).alias(shown))
        else:
            frame = frame.explode(lists)
        frame = frame.with_columns(
            pl.col(name).list.contains(pl.col(shown)).cast(pl.Int32).cast(pl.String) for name in listed
        )
        columns = [self._without_nulls(name, frame.schema[name]) for name in along]
        columns.append(candidate_item("candidates", rule).alias("item"))
        if rule.label:
            columns.append(candidate_label("candidates", rule.label_separator).alias(f"label {rule.label}"))
        frame = frame.with_columns(columns)
        if rule.label:  # "N1-" has an empty label: missing, as in N1
            frame = frame.with_columns(self._without_nulls(f"label {rule.label}", pl.String()))
        return frame.with_columns(self._without_nulls("item", pl.String()))

    def _parse_row(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Item, labels and item-level columns."""
        if self._ids.item:
            frame = frame.with_columns(read_string_id(pl.col("item"), frame.schema["item"]).alias("item_key"))
        else:
            frame = _with_id(frame, "item", is_string=False)
        schema, checks = frame.schema, _id_checks("item", self._ids.item)
        columns: list[pl.Expr] = []
        numbers: list[pl.Expr] = []
        for label in self._mapping.labels:
            name = f"label {label.name}"
            if label.value is not None:
                columns.append(pl.lit(label.value, pl.Int32).alias(label.name))
                continue
            if name not in frame.columns:
                columns.append(pl.lit(None, pl.Int64 if label.dtype == "int64" else pl.Int32).alias(label.name))
                continue
            if label.one_of:
                said = read_feature(pl.col(name), schema[name], FeatureRule(name=name, columns=(), dtype="string"))
                columns.append(said.is_in(list(label.one_of)).cast(pl.Int32).alias(label.name))
                continue
            value, number = pl.col(name), pl.col(f"number {name}")
            numbers.append(read_float(value, schema[name]).alias(f"number {name}"))
            columns.append(read_label(number, label).alias(label.name))
            no_number = number.is_null() & value.is_not_null()
            within = f"{label.lowest:.15g} to {label.highest:.15g}"
            if label.at_least is None:
                bound = EXACT_BELOW if label.dtype == "int64" else 2**31
                within = f"{max(label.lowest, 1 - bound):.16g} to {min(label.highest, bound - 1):.16g}"
            within = f"a {'whole ' if label.at_least is None else ''}number from {within}"
            shown = (pl.lit(label.name), value.cast(pl.String))
            checks += [
                Check("label", no_number, pl.format("{} {}: no number", *shown)),
                Check(
                    "label",
                    pl.col(label.name).is_null() & value.is_not_null(),
                    pl.format(f"{{}} {{}}: {within} required", *shown),
                ),
            ]
        for rule in self._mapping.item_columns:
            name = f"row {rule.name}"
            columns.append(read_feature(pl.col(name), schema[name], rule).alias(rule.name))
            checks.append(_value_check(name, rule))
        return self._rejects.split(frame.with_columns(numbers).with_columns(columns), checks)

    def _scoped(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns that go on, request ids that are unique only within a file or a user hashed together with it."""
        if self._mapping.request_id and self._scope != "log":
            within = pl.col("user_id").cast(pl.String)
            if self._scope == "file":
                names = pl.Series(list(self._rejects.files), dtype=pl.String)
                within = pl.lit(names.gather(frame["file"]))
            scoped = frame.select(pl.concat_str(within, pl.col("request_key"), separator=LIST_MARK))
            frame = frame.with_columns(hash_strings(scoped.to_series()).alias("request_id"))
        keep = ["user_id", "item_id", "request_id", "user_key", "item_key", "request_key", "ts_us", ARRIVED_US]
        keep += [*self._mapping.label_names, *(rule.name for rule in self._features), "history", "history_times"]
        candidates = self._mapping.candidates
        keep += [*(["position"] if candidates and candidates.position else []), "file", "line"]
        return frame.select(name for name in keep if name in frame.columns)

    @property
    def _features(self) -> tuple[FeatureRule, ...]:
        return self._mapping.request_columns + self._mapping.item_columns


def _joined(parts: list[str], schema: pl.Schema) -> pl.Expr:
    """Texts of several columns as one, which two different combinations never share; null if one of them is."""
    texts = [
        read_string_id(pl.col(part), schema[part])
        .str.replace_all("\\", "\\\\", literal=True)
        .str.replace_all("|", "\\|", literal=True)
        for part in parts
    ]
    return pl.concat_str(texts, separator="|")


def _with_id(frame: pl.DataFrame, name: str, *, is_string: bool) -> pl.DataFrame:
    """The frame with the int64 id of a key column, null if it cannot be read, and of strings the text."""
    value, dtype = pl.col(name), frame.schema[name]
    if not is_string:
        return frame.with_columns(read_integer_id(value, dtype).alias(f"{name}_id"))
    frame = frame.with_columns(read_string_id(value, dtype).alias(f"{name}_key"))
    return frame.with_columns(hash_strings(frame[f"{name}_key"]).alias(f"{name}_id"))


def _id_checks(name: str, is_string: bool) -> list[Check]:
    value = pl.col(name)
    wanted = "text or a whole number required"
    if not is_string:
        wanted = 'a 64-bit integer in its one spelling required; if ids are text, say type = "string"'
    return [
        Check("null_id", value.is_null(), pl.lit(f"{name} is null")),
        Check(
            "id",
            pl.col(f"{name}_{'key' if is_string else 'id'}").is_null(),
            pl.format(f"{name} {{}}: {wanted}", value.cast(pl.String)),
        ),
    ]


def _unfit_check(name: str) -> Check:
    reason = _REASONS.get(name.partition("+")[0]) or ("label" if name.startswith("label ") else "value")
    return Check(reason, pl.col(f"unfit {name}").is_not_null(), pl.format(f"{name} {{}}", pl.col(f"unfit {name}")))


def _value_check(name: str, rule: FeatureRule) -> Check:
    bad = pl.col(rule.name).is_null() & pl.col(name).is_not_null()
    detail = pl.format(f"{{}} {{}} is not {rule.dtype}", pl.lit(rule.name), pl.col(name).cast(pl.String))
    return Check("value", bad, detail)
