"""How good the sequences of a namespace are: a table of figures by day of arrival and event type.

    figure       of           value
    delivered                 events as delivered, the rejected ones left out
    duplicate                 of them, those that a delivery within the horizon brought before
    late                      of them, those that arrived over an hour after they happened
    lag_p50_s, lag_p99_s      seconds from event to arrival
    kept                      events of the timeline
    covered      enrichment   share of the kept that have a value of it
    null_share   column       share of the kept without a value, NaN included
    rejected     reason       delivered rows that are no event; event_type is empty

Each day of delivery is read once, some columns only; memory is that of the days of a redelivery horizon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.sequences.definition import ARRIVAL_TS, EVENT_ID, EVENT_TS, EVENT_TYPE, USER, enrichments_of
from reqdedup.sequences.naive import DAY_US, HORIZON_US
from reqdedup.sequences.tables import POSITION, REJECTED_TABLE, delivered_of, load_raw
from reqdedup.sequences.timeline import Timeline, open_timeline
from reqdedup.sequences.timeline_builder import LATE_US
from reqdedup.storage.iceberg.manifests import data_files

QUALITY_TABLE = "sequence_quality"
_SCHEMA = {"day": pl.Date, EVENT_TYPE: pl.String, "figure": pl.String, "of": pl.String, "value": pl.Float64}


@dataclass(frozen=True, kw_only=True)
class QualityLimits:
    """What is still good. lag_p50_s: of any event type, seconds.  late_share: of the delivered.
    coverage: share of the kept events with a value of an enrichment.
    null_drift: a column's null share on the last day may lie this far from that of the days before, beyond chance."""

    lag_p50_s: float = 60.0
    late_share: float = 0.05
    coverage: float = 0.95
    null_drift: float = 0.02


@dataclass(frozen=True)
class Finding:
    """A check of the figures. wrong: one line for each that is not within its limit."""

    name: str
    checked: int
    wrong: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.wrong


def sequence_quality(catalog: Catalog, namespace: str, *, days: int = 30, horizon_us: int = HORIZON_US) -> pa.Table:
    """The figures of the last days on which events arrived. Raises ValueError if there are no events or no timeline."""
    raw, timeline = load_raw(catalog, namespace), open_timeline(catalog, namespace)
    last = datetime.fromtimestamp(delivered_of(raw).arrival_us / 1e6, UTC).date()
    every = [last - timedelta(days=back) for back in reversed(range(days))]
    found: list[pl.DataFrame] = []
    first_positions: list[tuple[date, int]] = []
    for day, rows in _delivered(raw, every[0], horizon_us):
        today = rows.filter(pl.col(ARRIVAL_TS).dt.date() == day)
        first_positions.append((day, int(today[POSITION][0])))
        found.append(_of_delivered(rows, day, horizon_us))
    found += [_of_kept(timeline, set(every)), _of_rejected(catalog, namespace, first_positions)]
    return pl.concat(found).sort("day", EVENT_TYPE, "figure", "of").to_arrow().cast(_arrow())


def check_quality(report: pa.Table, limits: QualityLimits = QualityLimits()) -> list[Finding]:
    """lag, coverage and null_drift of a report's last day against the limits."""
    rows = _frame(report)
    last = rows.filter(pl.col("day") == rows["day"].max())
    return [_lag(last, limits), _coverage(last, limits), _null_drift(rows, limits)]


def waiting_events(catalog: Catalog, namespace: str) -> int:
    """Delivered events that are not in the timeline yet."""
    return delivered_of(load_raw(catalog, namespace)).next_position - open_timeline(catalog, namespace).state.position


def shares(report: pa.Table, figure: str) -> dict[str, float]:
    """Of the last day, by what the figure is of: the mean over event types, each by its kept events."""
    rows = _frame(report)
    last = rows.filter(pl.col("day") == rows["day"].max())
    kept = last.filter(pl.col("figure") == "kept").select(EVENT_TYPE, kept="value")
    joined = last.filter(pl.col("figure") == figure).join(kept, on=EVENT_TYPE)
    means = joined.group_by("of").agg((pl.col("value") * pl.col("kept")).sum() / pl.col("kept").sum()).sort("of")
    return dict(means.iter_rows())


def _delivered(raw: Table, first: date, horizon_us: int) -> Iterator[tuple[date, pl.DataFrame]]:
    """Days from the first on that have events, with these and those of the horizon before, without their columns."""
    names = [USER, EVENT_ID, EVENT_TYPE, EVENT_TS, ARRIVAL_TS, POSITION]
    back = timedelta(days=-(-horizon_us // DAY_US))
    of_day: dict[date, list[DataFile]] = {}
    current = raw.current_snapshot()
    for file in data_files(raw, current.snapshot_id) if current is not None else []:
        of_day.setdefault(date(1970, 1, 1) + timedelta(days=int(file.partition[0])), []).append(file)
    kept: dict[date, pl.DataFrame] = {}
    for day in sorted(day for day in of_day if day >= first - back):
        parts = []
        for file in of_day[day]:
            with raw.io.new_input(file.file_path).open() as stream, pq.ParquetFile(stream) as parquet:
                parts.append(_frame(parquet.read(names, use_threads=False)))
        kept = {other: rows for other, rows in kept.items() if other >= day - back}
        kept[day] = pl.concat(parts).sort(POSITION)
        if day >= first:
            yield day, pl.concat(kept.values())


def _of_delivered(rows: pl.DataFrame, day: date, horizon_us: int) -> pl.DataFrame:
    arrival_us, event_us = (pl.col(name).dt.epoch("us") for name in (ARRIVAL_TS, EVENT_TS))
    since = (arrival_us - arrival_us.shift(1)).over(USER, EVENT_ID, order_by=POSITION)
    today = rows.with_columns(is_again=(since <= horizon_us).fill_null(False), lag_us=arrival_us - event_us).filter(
        pl.col(ARRIVAL_TS).dt.date() == day
    )
    made = today.group_by(EVENT_TYPE).agg(
        pl.len().cast(pl.Float64).alias("delivered"),
        pl.col("is_again").sum().cast(pl.Float64).alias("duplicate"),
        (pl.col("lag_us") > LATE_US).sum().cast(pl.Float64).alias("late"),
        *((pl.col("lag_us") / 1e6).quantile(q / 100, "nearest").alias(f"lag_p{q}_s") for q in (50, 99)),
    )
    long = made.unpivot(index=EVENT_TYPE, variable_name="figure", value_name="value")
    return _rows(long.with_columns(pl.lit(day).alias("day"), pl.lit("").alias("of")))


def _of_kept(timeline: Timeline, days: set[date]) -> pl.DataFrame:
    """Counts and shares of the timeline's events, from sums over its files."""
    enrichments = enrichments_of(timeline.definitions)
    names = [*timeline.log.columns, *(name for one in enrichments for name in one.columns)]
    sums = []
    for file in timeline.files:
        if file.partition[1] < min(days).year * 12 + min(days).month - 1 - 1970 * 12:
            continue
        frame = pl.from_arrow(timeline.read_file(file, [EVENT_TYPE, ARRIVAL_TS, *names]))
        assert isinstance(frame, pl.DataFrame)
        is_null = {
            name: pl.col(name).is_null() | pl.col(name).is_nan().fill_null(False)
            if frame.schema[name].is_float()
            else pl.col(name).is_null()
            for name in names
        }
        sums.append(
            frame.group_by(pl.col(ARRIVAL_TS).dt.date().alias("day"), EVENT_TYPE)
            .agg(
                pl.len().cast(pl.Float64).alias("kept"),
                *(is_null[name].sum().cast(pl.Float64).alias(f"null_share {name}") for name in names),
                *(
                    (~pl.all_horizontal(is_null[name] for name in one.columns))
                    .sum()
                    .cast(pl.Float64)
                    .alias(f"covered {one.name}")
                    for one in enrichments
                ),
            )
            .filter(pl.col("day").is_in(list(days)))
        )
    if not sums:
        return pl.DataFrame(schema=_SCHEMA)
    made = pl.concat(sums).group_by("day", EVENT_TYPE).sum()
    made = made.with_columns(pl.exclude("day", EVENT_TYPE, "kept") / pl.col("kept"))
    long = made.unpivot(index=["day", EVENT_TYPE], variable_name="said", value_name="value")
    return _rows(
        long.with_columns(
            pl.col(EVENT_TYPE).replace_strict(dict(enumerate(timeline.log.types)), return_dtype=pl.String),
            pl.col("said").str.split(" ").list.first().alias("figure"),
            pl.col("said").str.split(" ").list.get(1, null_on_oob=True).fill_null("").alias("of"),
        )
    )


def _of_rejected(catalog: Catalog, namespace: str, first_positions: Iterable[tuple[date, int]]) -> pl.DataFrame:
    """Rows that are no event have no time that holds: they count for the day in whose deliveries they lie."""
    starts = list(first_positions)
    try:
        table = catalog.load_table(f"{namespace}.{REJECTED_TABLE}")
    except NoSuchTableError:
        return pl.DataFrame(schema=_SCHEMA)
    rows = pl.from_arrow(table.scan(selected_fields=("reason", POSITION)).to_arrow())
    assert isinstance(rows, pl.DataFrame)
    place = np.searchsorted([position for _, position in starts], rows[POSITION].to_numpy(), "right") - 1
    rows = rows.with_columns(pl.Series("place", place)).filter((pl.col("place") >= 0) | (len(starts) == 1))
    if not starts or not rows.height:
        return pl.DataFrame(schema=_SCHEMA)
    days = pl.Series([starts[max(0, at)][0] for at in rows["place"].to_list()], dtype=pl.Date)
    made = rows.with_columns(days.alias("day")).group_by("day", pl.col("reason").alias("of")).agg(value=pl.len())
    return _rows(made.with_columns(pl.lit("").alias(EVENT_TYPE), pl.lit("rejected").alias("figure")))


def _lag(last: pl.DataFrame, limits: QualityLimits) -> Finding:
    lags = last.filter(pl.col("figure") == "lag_p50_s")
    wrong = [
        f"{kind}: a median lag of at most {limits.lag_p50_s:g} s required, found {lag:.1f} s"
        for kind, lag in lags.select(EVENT_TYPE, "value").iter_rows()
        if lag > limits.lag_p50_s
    ]
    delivered, late = (float(last.filter(pl.col("figure") == n)["value"].sum()) for n in ("delivered", "late"))
    if delivered and late / delivered > limits.late_share:
        wrong.append(f"late events of at most {limits.late_share:.1%} required, found {late / delivered:.1%}")
    return Finding("lag", lags.height, tuple(wrong))


def _coverage(last: pl.DataFrame, limits: QualityLimits) -> Finding:
    rows = last.filter(pl.col("figure") == "covered")
    wrong = [
        f"{kind}: {of} of at least {limits.coverage:.1%} of the events required, found {share:.1%}"
        for kind, of, share in rows.select(EVENT_TYPE, "of", "value").iter_rows()
        if share < limits.coverage
    ]
    return Finding("coverage", rows.height, tuple(wrong))


def _null_drift(rows: pl.DataFrame, limits: QualityLimits) -> Finding:
    """The last day against all days before it together; a difference of four standard deviations is none of chance."""
    kept = rows.filter(pl.col("figure") == "kept").select("day", EVENT_TYPE, kept="value")
    nulls = rows.filter(pl.col("figure") == "null_share").join(kept, on=["day", EVENT_TYPE])
    is_last = pl.col("day") == rows["day"].max()
    sums = nulls.group_by(EVENT_TYPE, "of", is_last.alias("is_last")).agg(
        pl.col("kept").sum(), nulls=(pl.col("value") * pl.col("kept")).sum()
    )
    both = sums.filter("is_last").join(sums.filter(~pl.col("is_last")), on=[EVENT_TYPE, "of"], suffix="_before")
    wrong = []
    for row in both.to_dicts():
        now, before = row["nulls"] / row["kept"], row["nulls_before"] / row["kept_before"]
        overall = (row["nulls"] + row["nulls_before"]) / (row["kept"] + row["kept_before"])
        chance = 4 * (overall * (1 - overall) * (1 / row["kept"] + 1 / row["kept_before"])) ** 0.5
        if abs(now - before) > max(limits.null_drift, chance):
            said = f"a share of nulls in {row['of']} near {before:.1%} required, found {now:.1%}"
            wrong.append(f"{row[EVENT_TYPE]}: {said}")
    return Finding("null_drift", both.height, tuple(sorted(wrong)))


def _frame(report: pa.Table) -> pl.DataFrame:
    rows = pl.from_arrow(report)
    assert isinstance(rows, pl.DataFrame)
    return rows


def _rows(long: pl.DataFrame) -> pl.DataFrame:
    return long.select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items())


def _arrow() -> pa.Schema:
    kinds = {pl.Date: pa.date32(), pl.String: pa.string(), pl.Float64: pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in _SCHEMA.items()])


def days_of(report: pa.Table, figure: str) -> Iterator[tuple[Any, float]]:
    """(day, sum over event types) of a figure that counts, in order."""
    rows = _frame(report).filter(pl.col("figure") == figure)
    yield from rows.group_by("day").agg(pl.col("value").sum()).sort("day").iter_rows()
