"""The report's figures are the files' own, the limit is what an independent store of distinct values takes."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.storage import Layout, TableSource, compression_report, create_table, user_overlap, write
from reqdedup.storage.measure.compression import REPORT_SCHEMA
from reqdedup.storage.measure.store_once import Codec, store_once_bytes
from tests.storage.small_log import START_US, log_schema, make_log, make_request, to_batch, to_batches
from tests.storage.tables import files_of, new_table

SEQUENCES = ["history_item_id", "history_action", "history_ts"]


def long_log(*, num_users: int, length: int, fan_out: int, requests_per_user: int = 1) -> list[dict]:
    """Histories as long as real ones; users do not share them, requests of one user grow by two events."""
    rng = np.random.default_rng(7)
    log = []
    for user in range(num_users):
        size = length - int(rng.integers(0, length // 3))
        times = START_US // 1000 - np.sort(rng.integers(1, 10**10, size))[::-1]
        events = np.stack([rng.zipf(1.3, size) % 100_000, rng.integers(0, 8, size), times], axis=1)
        for request in range(requests_per_user):
            log.append(make_request(rng, user, user * 100 + request, fan_out=fan_out, events=events, day=0))
            events = np.concatenate([events[2:], events[:2]])
    return log


def tables_of(catalog, log: list[dict], layouts, *, num_buckets: int = 2) -> dict:
    tables = {}
    for layout in layouts:
        tables[layout.value] = new_table(catalog, layout, num_buckets=num_buckets)
        write(tables[layout.value], to_batches(log))
    return tables


@pytest.fixture
def report_and_tables(catalog):
    tables = tables_of(catalog, make_log(num_users=30), Layout)
    return compression_report(tables), tables


def test_the_report_has_one_row_per_table_and_column(report_and_tables):
    report, tables = report_and_tables
    assert report.schema == REPORT_SCHEMA
    names = "table column level rows requests fan_out uncompressed_bytes compressed_bytes ratio_to_control"
    assert " ".join(report.schema.names) == names + " store_once_bytes fraction_of_limit"
    pairs = list(zip(report["table"].to_pylist(), report["column"].to_pylist()))
    assert pairs == [(name, column) for name in tables for column in log_schema().names]
    log = make_log(num_users=30)
    assert set(report["rows"].to_pylist()) == {sum(len(request["items"]) for request in log)}
    assert set(report["requests"].to_pylist()) == {len(log)}
    assert report["level"].to_pylist()[:4] == ["key", "key", "key", "request"]


@pytest.mark.slow
def test_bytes_are_those_of_the_snapshots_files(report_and_tables, catalog):
    report, tables = report_and_tables
    write(tables["by_request"], to_batches(make_log(num_users=30)))  # old files stay on disk and must not count
    report = compression_report(tables)
    for name, table in tables.items():
        compressed, uncompressed = defaultdict(int), defaultdict(int)
        for path in files_of(table):
            for group in pq.ParquetFile(path).metadata.to_dict()["row_groups"]:
                for leaf in group["columns"]:
                    compressed[leaf["path_in_schema"].split(".")[0]] += leaf["total_compressed_size"]
                    uncompressed[leaf["path_in_schema"].split(".")[0]] += leaf["total_uncompressed_size"]
        rows = [row for row in report.to_pylist() if row["table"] == name]
        assert {row["column"]: row["compressed_bytes"] for row in rows} == dict(compressed)
        assert {row["column"]: row["uncompressed_bytes"] for row in rows} == dict(uncompressed)


def test_ratios_and_fractions_follow_from_the_bytes(report_and_tables):
    report, _ = report_and_tables
    control = {row["column"]: row for row in report.to_pylist() if row["table"] == "shuffled"}
    for row in report.to_pylist():
        assert row["fan_out"] == row["rows"] / row["requests"]
        assert row["ratio_to_control"] == control[row["column"]]["compressed_bytes"] / row["compressed_bytes"]
        assert row["fraction_of_limit"] == row["store_once_bytes"] / row["compressed_bytes"]
        assert row["store_once_bytes"] > 0


def popular_log(num_requests: int = 400) -> list[dict]:
    """Short histories and candidates of popular items, one request a user: scalars weigh as much as sequences."""
    rng = np.random.default_rng(3)
    log = []
    for user in range(num_requests):
        size = int(rng.integers(0, 40))
        times = START_US // 1000 - np.sort(rng.integers(1, 10**8, size))[::-1]
        events = np.stack([rng.zipf(1.2, size) % 5_000, rng.integers(0, 8, size), times], axis=1)
        log.append(make_request(rng, user, user, fan_out=38, events=events, day=0))
    return log


@pytest.mark.slow
def test_no_column_of_any_layout_goes_below_its_limit_and_that_of_scalars_is_the_smaller_encoding(catalog):
    tables = tables_of(catalog, popular_log(), Layout, num_buckets=1)
    report = compression_report(tables).to_pylist()
    assert max(row["fraction_of_limit"] for row in report) <= 1
    items = np.concatenate(
        [batch["item_id"].to_numpy() for batch in TableSource(tables["by_request"]).batches(["item_id"])]
    )
    sizes = []
    for dictionary in (True, False):
        for level in (1, 3, 6):
            sink = pa.BufferOutputStream()
            options = {"use_dictionary": dictionary, "compression_level": level, "dictionary_pagesize_limit": 2**30}
            pq.write_table(pa.table({"x": items}), sink, compression="zstd", write_statistics=False, **options)
            sizes.append(
                pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0).column(0).total_compressed_size
            )
    (limit,) = (row for row in report if (row["table"], row["column"]) == ("by_request", "item_id"))
    assert limit["store_once_bytes"] <= min(sizes) * 1.01


def test_without_a_control_there_is_no_ratio_and_the_limit_stays(catalog, report_and_tables):
    report, tables = report_and_tables
    alone = compression_report({"by_request": tables["by_request"]})
    together = [row for row in report.to_pylist() if row["table"] == "by_request"]
    assert alone["ratio_to_control"].null_count == len(alone)
    assert alone["store_once_bytes"].to_pylist() == [row["store_once_bytes"] for row in together]
    with pytest.raises(ValueError, match="one SHUFFLED table"):
        compression_report({"a": tables["shuffled"], "b": tables["shuffled"]})


def test_the_limit_of_a_shuffled_table_alone_is_found_by_sorting_it(report_and_tables):
    report, tables = report_and_tables
    alone = pl.from_arrow(compression_report({"shuffled": tables["shuffled"]}))
    together = pl.from_arrow(report).filter(pl.col("table") == "shuffled")
    ratio = alone["store_once_bytes"] / together["store_once_bytes"]
    assert ratio.is_between(0.85, 1.15).all(), "users lie in the order of other buckets, nothing else differs"


@pytest.mark.slow
def test_tables_of_different_rows_do_not_share_a_limit(catalog):
    first, second = (
        create_table(catalog, f"test.{name}", log_schema(), layout)
        for name, layout in (("first", Layout.SHUFFLED), ("second", Layout.BY_REQUEST))
    )
    write(first, to_batches(make_log(num_users=5, max_history=10)))
    write(second, to_batches(make_log(num_users=30)))
    report = pl.from_arrow(compression_report({"first": first, "second": second}))
    once = report.filter(pl.col("column") == "history_ts")["store_once_bytes"]
    assert once[0] < once[1] / 3


@pytest.mark.parametrize("codec", [Codec("zstd", 3), Codec("zstd", 1), Codec("snappy"), Codec("none")])
def test_the_limit_is_every_distinct_value_once(codec):
    """Against distinct values found with a plain dictionary and compressed in one piece."""
    log = sorted(long_log(num_users=6, length=600, fan_out=3, requests_per_user=2), key=lambda r: r["request_id"])
    log[3] = {**log[3], "events": log[2]["events"]}  # two requests with the same history: stored once
    batches = to_batches(log, size=5)
    (measured,) = store_once_bytes(batches, log_schema(), [codec]).values()
    for name in ("history_item_id", "history_ts", "user_embedding"):
        distinct = dict.fromkeys(blob for batch in batches for blob in batch.column(name).to_pylist())
        plain = b"".join(len(blob).to_bytes(4, "little") + blob for blob in distinct)
        packed = plain if codec.name == "none" else pa.Codec(codec.name, codec.level).compress(plain)
        assert measured[name] == pytest.approx(len(packed), rel=0.005, abs=60)
    assert len({blob for batch in batches for blob in batch.column("history_ts").to_pylist()}) == 11


@pytest.mark.slow
def test_by_request_reaches_the_limit_and_beats_the_others_by_far(catalog):
    """Fan-out 24, 2,048-token histories: sorted beats shuffled, dictionaries beat sorted, and nothing is left to gain."""
    log = long_log(num_users=60, length=2_048, fan_out=24)
    layouts = (Layout.SHUFFLED, Layout.SORTED, Layout.SORTED_LARGE_PAGES, Layout.BY_REQUEST)
    report = pl.from_arrow(compression_report(tables_of(catalog, log, layouts)))
    totals = (
        report.filter(pl.col("column").is_in(SEQUENCES))
        .group_by("table")
        .agg(pl.col("compressed_bytes", "store_once_bytes").sum())
        .rows_by_key("table", unique=True)
    )
    stored = {name: row[0] for name, row in totals.items()}
    assert stored["sorted"] < stored["shuffled"] / 3
    assert stored["sorted_large_pages"] < stored["sorted"] / 1.5
    assert stored["by_request"] < stored["sorted"] / 1.8
    for name in ("by_request", "sorted_large_pages"):
        compressed, once = totals[name]
        assert once / compressed > (0.98 if name == "by_request" else 0.7)


def test_overlap_is_what_a_request_repeats_of_the_users_request_before(catalog):
    rng = np.random.default_rng(0)
    old = np.stack([np.arange(10), np.arange(10) % 3, np.arange(10) * 1000], axis=1)
    new = old + np.array([100, 1, 10**6])
    histories = {  # user: histories in order of time, and how many of their events repeat
        1: ([old, np.concatenate([old, new[:2]])], 10),  # grown
        2: ([old, np.concatenate([old[4:], new[:4]])], 6),  # the window moved on
        3: ([old, new], 0),  # nothing in common
        4: ([old[:0], old, old], 10),  # empty, then the same twice
        5: ([old], 0),
        6: ([old[3:], old], 7),  # the window begins earlier
    }
    log, repeated, events = [], 0, 0
    for user, (of_user, common) in histories.items():
        for day, history in enumerate(of_user):
            request_id = user * 10 + (9 - day)  # ids fall while time rises: time counts
            log.append(make_request(rng, user, request_id, fan_out=3, events=history, day=day))
            events += len(history)
        repeated += common
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, [to_batch(log)])
    overlap = user_overlap(table)
    assert (overlap.requests, overlap.events, overlap.repeated_events) == (len(log), events, repeated)
    assert overlap.share == repeated / events
    assert overlap.factor == events / (events - repeated)


def test_overlap_needs_request_order(catalog):
    table = new_table(catalog, Layout.SHUFFLED)
    write(table, to_batches(make_log(num_users=3)))
    with pytest.raises(ValueError, match="order required, found layout SHUFFLED"):
        user_overlap(table)


def test_reading_one_blob_column_does_not_expand_it(catalog):
    log = long_log(num_users=20, length=2_048, fan_out=160)
    table = tables_of(catalog, log, [Layout.BY_REQUEST])["by_request"]
    fat_bytes = sum(len(request["items"]) * len(request["events"]) * 8 for request in log)
    source = TableSource(table)
    before = pa.total_allocated_bytes()
    batches = list(source.batches(["history_ts"]))
    assert pa.total_allocated_bytes() - before < fat_bytes / 20
    assert sum(batch.num_rows for batch in batches) == 3_200
