"""From mapped columns to typed impressions, one row each, and every row that does not fit to the rejects.

Knows nothing of other rows: sessions, duplicates and histories come later (`requests`, `sequences`). Columns of the
result: user_id, item_id, request_id (int64; the last only if the log has one), user_key, item_key, request_key
(strings, if the ids were strings), ts_us, the labels (int32), mapped columns under their own names, history and
history_times (packed text, if the log has its own), position, file and line.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from reqdedup.logs.checks import Check, Rejects
from reqdedup.logs.ids import hash_strings
from reqdedup.logs.mapping import FeatureRule, LogMapping
from reqdedup.logs.values import (
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


def detect_id_types(frame: pl.DataFrame, mapping: LogMapping) -> IdTypes:
    """Ids are integers if the mapping says so, or says auto and most of these first rows have integers.

    Most and not all, since one bad id must not turn a log's integers into strings; the bad ones are rejected. `007` and
    dates are strings.
    """

    def is_string(name: str, rule_type: str) -> bool:
        if rule_type != "auto":
            return rule_type == "string"
        texts = frame[name]
        if isinstance(texts.dtype, pl.List) and mapping.candidates is not None:
            elements = frame.select(pl.col(name).list.explode(keep_nulls=False, empty_as_null=False))
            texts = elements.select(candidate_item(name, mapping.candidates)).to_series()
        if texts.dtype != pl.String:
            return texts.dtype.is_temporal()
        texts = texts.str.strip_chars().drop_nulls()
        texts = texts.filter(~texts.is_in(list(mapping.null_values)))
        return 2 * int(texts.str.contains(INTEGER_ID).sum()) <= len(texts)

    return IdTypes(
        user=is_string("user", mapping.user_id.type),
        item=(
            is_string("item", mapping.item_id.type)
            if mapping.item_id
            else is_string("candidates", mapping.candidate_id_type)
        ),
        request=bool(mapping.request_id)
        and is_string("request", mapping.request_id.type if mapping.request_id else ""),
    )


class ImpressionParser:
    """Turns blocks of one log into impressions. Times later than a day after its making are absurd by default."""

    def __init__(self, mapping: LogMapping, ids: IdTypes, rejects: Rejects, *, request_scope: str):
        self._mapping, self._ids, self._rejects, self._scope = mapping, ids, rejects, request_scope
        latest = mapping.time.latest or datetime.now(UTC) + timedelta(days=1)
        self._earliest_us = round(mapping.time.earliest.timestamp() * 1e6)
        self._latest_us = round(latest.timestamp() * 1e6)

    def parse(self, frame: pl.DataFrame, file: int) -> pl.DataFrame:
        """Impressions of a block's rows (columns: internal names, line, raw); the rest goes to the rejects."""
        mapping = self._mapping
        lists = mapping.list_separators
        frame = frame.with_columns(
            pl.lit(file, pl.UInt32).alias("file"),
            *(self._without_nulls(name, frame.schema[name]) for name in mapping.sources() if name not in lists),
        )
        if frame["raw"].null_count() == frame.height:
            shown = [name for name in ("user", "request", "item", "time") if name in frame.columns]
            texts = [pl.format(f"{name}={{}}", pl.col(name).cast(pl.String).fill_null("null")) for name in shown]
            frame = frame.with_columns(pl.concat_str(texts, separator=", ").alias("raw"))
        # First of all, so that a rejected row says whose it is.
        frame = frame.with_columns(_id_columns(frame, "user", is_string=self._ids.user))
        frame = self._parse_request(frame)
        if mapping.candidates:
            frame = self._explode_candidates(frame)
        frame = self._parse_row(frame)
        frame = self._add_ids(frame)
        return frame.drop("raw")

    def _without_nulls(self, name: str, dtype: pl.DataType) -> pl.Expr:
        if dtype.is_float() and {"nan", "NaN"} & set(self._mapping.null_values):
            return pl.col(name).fill_nan(None)
        if dtype != pl.String:
            return pl.col(name)
        stripped = pl.col(name).str.strip_chars()
        return pl.when(~stripped.is_in(list(self._mapping.null_values))).then(stripped).alias(name)

    def _parse_request(self, frame: pl.DataFrame) -> pl.DataFrame:
        """User, request, time, request-level columns and history: what a row has once, however many candidates."""
        mapping, schema = self._mapping, frame.schema
        ts_us = parse_time(pl.col("time"), schema["time"], mapping.time)
        frame = frame.with_columns(ts_us.alias("ts_us"))
        checks = [_unfit_check(name) for name in mapping.sources() if f"unfit {name}" in schema]
        checks.append(Check("null_id", pl.col("user").is_null(), pl.lit("user is null")))
        checks += _id_checks("user", schema["user"], self._ids.user)
        if mapping.request_id:
            checks.append(Check("null_id", pl.col("request").is_null(), pl.lit("request is null")))
            checks += _id_checks("request", schema["request"], self._ids.request)
        time_text = pl.col("time").cast(pl.String).fill_null("null")
        absurd = (pl.col("ts_us") < self._earliest_us) | (pl.col("ts_us") > self._latest_us)
        as_time = pl.from_epoch(pl.col("ts_us"), time_unit="us").dt.to_string("%Y-%m-%d %H:%M:%S")
        as_time = pl.when(pl.col("ts_us") < FAR_FUTURE_US).then(as_time).otherwise(pl.lit("a year after 9999"))
        checks += [
            Check("time", pl.col("ts_us").is_null(), pl.format("time {} cannot be read", time_text)),
            Check("absurd_time", absurd, pl.format("time {} means {}, check its unit", time_text, as_time)),
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
        element = pl.element().str.strip_chars()
        frame = frame.with_columns(pl.col(names).list.eval(element.filter((element != "").fill_null(True))))
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
        along = [name for name in self._mapping.sources() if name.startswith(("label ", "row "))]
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
        frame = frame.explode(lists)
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
        schema = frame.schema
        checks = [Check("null_id", pl.col("item").is_null(), pl.lit("item is null"))]
        checks += _id_checks("item", schema["item"], self._ids.item)
        columns: list[pl.Expr] = []
        for label in self._mapping.labels:
            name = f"label {label.name}"
            if label.value is not None:
                columns.append(pl.lit(label.value, pl.Int32).alias(label.name))
                continue
            if name not in frame.columns:
                columns.append(pl.lit(None, pl.Int32).alias(label.name))
                continue
            value, dtype = pl.col(name), schema[name]
            columns.append(read_label(value, dtype, label).alias(label.name))
            no_number = read_float(value, dtype).is_null() & value.is_not_null()
            within = f"from {label.lowest:g} to {label.highest:g}"
            if label.at_least is None:
                within = f"a whole number {within}, at most {2**31 - 1},"
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
        return self._rejects.split(frame.with_columns(columns), checks)

    def _add_ids(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The int64 keys of item and request, and the original strings beside them."""
        columns = _id_columns(frame, "item", is_string=self._ids.item)
        if self._mapping.request_id:
            columns += _id_columns(frame, "request", is_string=self._ids.request)
        frame = frame.with_columns(columns)
        if self._mapping.request_id and self._scope != "log":
            within = pl.col("file") if self._scope == "file" else pl.col("user_id")
            if self._scope == "file":
                names = pl.Series(list(self._rejects.files), dtype=pl.String)
                within = pl.lit(names.gather(frame["file"]))
            scoped = frame.select(
                pl.concat_str(within.cast(pl.String), pl.col("request").cast(pl.String), separator=LIST_MARK)
            )
            frame = frame.with_columns(hash_strings(scoped.to_series()).alias("request_id"))
        keep = ["user_id", "item_id", "request_id", "user_key", "item_key", "request_key", "ts_us"]
        keep += [*self._mapping.label_names, *(rule.name for rule in self._features), "history", "history_times"]
        keep += ["position", "file", "line", "raw"]
        return frame.select(name for name in keep if name in frame.columns)

    @property
    def _features(self) -> tuple[FeatureRule, ...]:
        return self._mapping.request_columns + self._mapping.item_columns


def _id_columns(frame: pl.DataFrame, name: str, *, is_string: bool) -> list[pl.Series]:
    """The int64 id of a key column, null if it cannot be read, and of strings the original."""
    value, dtype = pl.col(name), frame.schema[name]
    if is_string:
        texts = frame.with_columns(read_string_id(value, dtype).alias("_text"))["_text"]
        return [texts.alias(f"{name}_key"), hash_strings(texts).alias(f"{name}_id")]
    return [frame.with_columns(read_integer_id(value, dtype).alias(f"{name}_id"))[f"{name}_id"]]


def _id_checks(name: str, dtype: pl.DataType, is_string: bool) -> list[Check]:
    value = pl.col(name)
    text = value.cast(pl.String)
    if is_string:
        detail = pl.format("{} {}: text or a whole number required", pl.lit(name), text)
        return [Check("id", read_string_id(value, dtype).is_null(), detail)]
    detail = pl.format('{} {} is not a 64-bit integer; if ids are text, say type = "string"', pl.lit(name), text)
    return [Check("id", read_integer_id(value, dtype).is_null(), detail)]


def _unfit_check(name: str) -> Check:
    reason = _REASONS.get(name) or ("label" if name.startswith("label ") else "value")
    return Check(reason, pl.col(f"unfit {name}").is_not_null(), pl.format(f"{name} {{}}", pl.col(f"unfit {name}")))


def _value_check(name: str, rule: FeatureRule) -> Check:
    bad = pl.col(rule.name).is_null() & pl.col(name).is_not_null()
    detail = pl.format(f"{{}} {{}} is not {rule.dtype}", pl.lit(rule.name), pl.col(name).cast(pl.String))
    return Check("value", bad, detail)
