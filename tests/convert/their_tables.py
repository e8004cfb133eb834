"""Tables as people have them: written by DuckDB, Polars, pandas, pyarrow and as Spark does, flat and nested.

Each is written into a folder, and comes with the mapping that converts it and two selections in SQL that must give
the same rows: of the source, and of the new table.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

START = dt.datetime(2026, 11, 1, 9)


@dataclass
class TheirTable:
    """write: puts files into a folder.  mapping: of `ColumnMapping`.  theirs, ours: SQL, column for column the same.

    rows: SQL of the source's rows, with {files}.  requests: how many the new table must have.
    """

    write: Callable[[Path], None]
    mapping: dict[str, Any]
    theirs: str
    ours: str
    requests: str
    rows: str = "read_parquet({files})"
    changes: list[str] = field(default_factory=list)


def log(num_requests: int = 50, seed: int = 0) -> list[dict[str, Any]]:
    """Plain rows: requests of 17 users, 1 to 8 rows each, histories of 0 to 9."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_requests):
        user, when = number % 17, START + dt.timedelta(minutes=37 * number)
        shared = {"user": user, "request": number, "at": when, "seen": rng.integers(0, 99, number % 10).tolist()}
        for place in range(1 + number % 8):
            rows.append(shared | {"item": int(rng.integers(0, 500)), "place": place, "click": bool(rng.random() < 0.3)})
    return rows


def frame() -> pl.DataFrame:
    return pl.DataFrame(log())


def by_duckdb(folder: Path) -> None:
    rows = frame()  # noqa: F841
    duckdb.sql(
        'copy (select "user" uid, md5(request::varchar)::uuid rid, "at" ts, item, place::tinyint pos, click, '
        '(item / 7.0)::decimal(9,3) price, "at"::date "day", "at"::time clock, item::varchar::blob raw, '
        "map {'place': place} extra, [['a', item::varchar], []] pairs, case when place > 2 then ['new', null] end tags, "
        f"seen from rows) to '{folder}/log.parquet' (format parquet, compression zstd, row_group_size 64)"
    )


def by_duckdb_in_folders(folder: Path) -> None:
    rows = frame()  # noqa: F841
    duckdb.sql(
        'copy (select "user", "at", item, click, "at"::date "day", case when request % 3 > 0 then \'Zürich/1\' end city '
        f"from rows) to '{folder}' (format parquet, partition_by (\"day\", city), overwrite_or_ignore)"
    )


def by_polars(folder: Path) -> None:
    frame().select(
        pl.col("user").cast(pl.String).cast(pl.Categorical).alias("who"),
        "request",
        pl.col("at").dt.replace_time_zone("Europe/Berlin"),
        pl.struct(pl.col("item").alias("id"), pl.col("item").cast(pl.Decimal(12, 2)).alias("price")).alias("shown"),
        pl.col("seen").list.eval(pl.struct(pl.element().alias("item"), (pl.element() % 3).alias("kind"))),
        pl.col("at").dt.time().alias("clock"),
        pl.col("item").cast(pl.String).cast(pl.Binary).alias("raw"),
        pl.lit(dt.timedelta(seconds=1)).alias("took"),
    ).write_parquet(folder / "log.parquet", row_group_size=50)


def as_pandas(folder: Path) -> None:
    """What `DataFrame.to_parquet` writes: the index a column, nanoseconds, categories, a column of None without a type."""
    rows = log()
    table = pa.table(
        {
            "user": pa.array([f"u{row['user']}" for row in rows]),
            "request": pa.array([row["request"] for row in rows]),
            "at": pa.array([row["at"] for row in rows], pa.timestamp("ns")),
            "item": pa.array([row["item"] for row in rows]),
            "place": pa.array([row["place"] for row in rows]).dictionary_encode(),
            "click": pa.array([row["click"] for row in rows]),
            "nothing": pa.nulls(len(rows)),
            "score": pa.array([float("nan") if row["click"] else 0.5 for row in rows]),
            "__index_level_0__": pa.array(range(100, 100 + len(rows))),
        }
    )
    pq.write_table(table, folder / "log.parquet")


def by_pyarrow(folder: Path) -> None:
    rows = log()
    columns = {
        "user": pa.array([row["user"].to_bytes(16, "big") for row in rows], pa.binary(16)),
        "part": pa.array([Decimal(row["request"]) for row in rows], pa.decimal128(20, 0)),
        "started": pa.array([row["at"] for row in rows], pa.timestamp("ms")),
        "item": pa.array([f"i-{row['item']}" for row in rows], pa.large_string()),
        "seen": pa.array([row["seen"] for row in rows], pa.large_list(pa.int16())),
        "taste": pa.array([[row["user"], 0.5, 1.0] for row in rows], pa.list_(pa.float32(), 3)),
        "flags": pa.array(
            [{"a": [row["place"]], "b": None} for row in rows],
            pa.struct([("a", pa.list_(pa.int8())), ("b", pa.string())]),
        ),
        "weird": pa.array(
            [[[("k", [row["place"], None])]] for row in rows], pa.list_(pa.map_(pa.string(), pa.list_(pa.int32())))
        ),
        "until": pa.array([dt.date(9999, 12, 31)] * len(rows)),
    }
    table = pa.table(columns)
    for number in range(3):
        pq.write_table(table.slice(number * 80, 80), folder / f"{number}.parquet", row_group_size=33)


def as_spark(folder: Path) -> None:
    """Folders of partitions, files with Spark's names, times of 96 bits, markers and checksums beside them."""
    rows = pa.Table.from_pylist(log())
    hours = [when.hour for when in rows["at"].to_pylist()]
    for hour in sorted(set(hours)):
        part = rows.filter(pa.array([one == hour for one in hours]))
        inside = folder / f"dt={START:%Y-%m-%d}" / f"hour={hour:02d}"
        inside.mkdir(parents=True)
        part = part.append_column("expires", pa.array([dt.datetime(9999, 12, 31)] * len(part), pa.timestamp("us")))
        pq.write_table(
            part,
            inside / "part-00000-0a1b2c3d-4e5f-6789-abcd-ef0123456789.c000.snappy.parquet",
            flavor="spark",
            coerce_timestamps=None,
            use_deprecated_int96_timestamps=False,
        )
        (inside / ".part-00000.c000.snappy.parquet.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()


def as_old_spark(folder: Path) -> None:
    rows = pa.Table.from_pylist(log())
    pq.write_table(rows, folder / "part-00000.snappy.parquet", use_deprecated_int96_timestamps=True)
    (folder / "_SUCCESS").touch()


def requests_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a request, its candidates in a list of structs and in lists side by side."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        one = found.setdefault(
            row["request"], {key: row[key] for key in ("user", "request", "at", "seen")} | {"shown": []}
        )
        one["shown"].append({"item": row["item"], "click": row["click"], "words": [str(row["place"])]})
    lists = [
        one | {"ids": [shown["item"] for shown in one["shown"]], "places": list(range(len(one["shown"])))}
        for one in found.values()
    ]
    return [*lists, {**lists[0], "request": 9999, "shown": [], "ids": [], "places": None}]


def candidate_lists(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(requests_of(log())), folder / "log.parquet", row_group_size=10)


def views(folder: Path) -> None:
    """No request ids, the rows of a user scattered over files."""
    rows = frame().drop("request", "seen").sample(fraction=1.0, shuffle=True, seed=1)
    for number in range(3):
        rows[number::3].write_parquet(folder / f"{number}.parquet")


SESSIONS = (
    '(select * exclude (new), sum(new::int) over (partition by "user" order by "at") session '
    'from (select *, coalesce("at" - lag("at") over (partition by "user" order by "at") > interval {gap}, true) new '
    "from read_parquet({{files}})))"
)

TABLES: dict[str, TheirTable] = {
    "duckdb": TheirTable(
        by_duckdb,
        {
            "user": "uid",
            "request": "rid",
            "item": "item",
            "time": "ts",
            "labels": ["click"],
            "rename": {"seen": "history_item_id"},
        },
        'uid, rid::varchar, item, epoch_us(ts), pos, click::int, price, "day", clock, raw, extra, pairs, tags, seen',
        'user_id, request_key, item_id, epoch_us(request_ts), pos, click, price, "day", clock, raw, '
        "extra, pairs, tags, history_item_id",
        "count(distinct rid)",
        changes=["click: truth values as 0 and 1", "ts: times without a zone as times in UTC"],
    ),
    "duckdb in folders": TheirTable(
        by_duckdb_in_folders,
        {"user": "user", "request": ["user", "at", "day"], "item": "item", "time": "at"},
        '"user", epoch_us("at"), item, click, "day"::date, city',
        'user_id, epoch_us(request_ts), item_id, click, "day", city',
        'count(distinct ("user", "at"))',
        rows="read_parquet({files}, hive_partitioning=true)",
        changes=["user, at, day: together the hash request_id, and each as it was"],
    ),
    "polars": TheirTable(
        by_polars,
        {"user": "who", "request": "request", "item": "shown.id", "time": "at", "exclude": ["took"]},
        'who, request, shown.id, epoch_us("at"), shown.price, [x.item for x in seen], '
        "[x.kind for x in seen], clock, raw",
        "user_key, request_id, item_id, epoch_us(request_ts), shown_price, seen_item, seen_kind, clock, raw",
        "count(distinct request)",
        changes=["at: times of Europe/Berlin as the same instants in UTC"],
    ),
    "pandas": TheirTable(
        as_pandas,
        {"user": "user", "request": "request", "item": "item", "time": "at", "exclude": ["nothing"]},
        '"user", request, item, epoch_us("at"), place, click, score::varchar, __index_level_0__',
        "user_key, request_id, item_id, epoch_us(request_ts), place, click, score::varchar, __index_level_0__",
        "count(distinct request)",
        changes=["user: ids, whose int64 hash is user_id"],
    ),
    "pyarrow": TheirTable(
        by_pyarrow,
        {"user": "user", "request": ["user", "part", "started"], "item": "item", "time": "started", "hash_items": True},
        'lower(hex("user")), part, epoch_us(started), item, seen, taste, flags.a, flags.b, weird, until',
        "user_key, part, epoch_us(request_ts), item_key, seen, taste, flags_a, flags_b, weird, until",
        'count(distinct ("user", part))',
        changes=["user: binary ids as hexadecimal text in user_key"],
    ),
    "spark": TheirTable(
        as_spark,
        {"user": "user", "request": "request", "item": "item", "time": "at"},
        '"user", request, item, epoch_us("at"), epoch_us(expires), dt, "hour", seen, place, click',
        'user_id, request_id, item_id, epoch_us(request_ts), epoch_us(expires), dt, "hour", seen, place, click',
        "count(distinct request)",
        rows="read_parquet({files}, hive_partitioning=true, hive_types={{'dt': date, 'hour': varchar}})",
    ),
    "old spark": TheirTable(
        as_old_spark,
        {"user": "user", "request": "request", "item": "item", "time": "at"},
        '"user", request, item, epoch_us("at"), seen, place, click',
        "user_id, request_id, item_id, epoch_us(request_ts), seen, place, click",
        "count(distinct request)",
    ),
    "a list of candidates": TheirTable(
        candidate_lists,
        {
            "user": "user",
            "request": "request",
            "item": "shown.item",
            "time": "at",
            "labels": ["shown.click"],
            "exclude": ["ids", "places"],
        },
        '"user", request, one.item, epoch_us("at"), one.click::int, one.words, seen',
        "user_id, request_id, item_id, epoch_us(request_ts), shown_click, shown_words, seen",
        "count(distinct request)",
        rows="(select *, unnest(shown) one from read_parquet({files}))",
        changes=["shown.item, shown.click, shown.words: elements of a list, each now a row of its own"],
    ),
    "lists of candidates": TheirTable(
        candidate_lists,
        {
            "user": "user",
            "request": "request",
            "item": "ids",
            "time": "at",
            "candidates": ["places"],
            "exclude": ["shown.item", "shown.click", "shown.words"],
        },
        '"user", request, id, epoch_us("at"), place, seen',
        "user_id, request_id, item_id, epoch_us(request_ts), places, seen",
        "count(distinct request)",
        rows="(select *, unnest(ids) id, unnest(places) place from read_parquet({files}))",
    ),
    "sessions of half an hour": TheirTable(
        views,
        {"user": "user", "session_gap_s": 1800, "item": "item", "time": "at"},
        '"user", item, epoch_us("at"), min(epoch_us("at")) over (partition by "user", session), place, click',
        'user_id, item_id, epoch_us("at"), epoch_us(request_ts), place, click',
        'count(distinct ("user", session))',
        rows=SESSIONS.format(gap="1800 seconds"),
        changes=["request_id, request_ts: made of pauses of over 1800 s between rows of a user"],
    ),
    "sessions of twelve hours": TheirTable(
        views,
        {"user": "user", "session_gap_s": 43200, "item": "item", "time": "at"},
        '"user", item, epoch_us("at"), min(epoch_us("at")) over (partition by "user", session), place, click',
        'user_id, item_id, epoch_us("at"), epoch_us(request_ts), place, click',
        'count(distinct ("user", session))',
        rows=SESSIONS.format(gap="43200 seconds"),
    ),
    "requests by user and time": TheirTable(
        views,
        {"user": "user", "request": ["user", "at"], "item": "item", "time": "at"},
        '"user", item, epoch_us("at"), place, click',
        "user_id, item_id, epoch_us(request_ts), place, click",
        'count(distinct ("user", "at"))',
    ),
}
