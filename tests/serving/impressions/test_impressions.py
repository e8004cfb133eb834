"""What is shown is logged, collected and, once mature, labelled; whatever is killed or comes twice in between."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from reqdedup import storage
from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig
from reqdedup.models.registry import build_model
from reqdedup.sequences.store import events_digest
from reqdedup.serving.impressions import attribution
from reqdedup.serving.impressions.attribution import collect_impressions, impressions_of, mature_impressions
from reqdedup.serving.impressions.log import Click, ImpressionLog, read_log, sealed_files
from reqdedup.storage import Layout, TableSource
from reqdedup.training import RequestLoader
from tests.serving.shown import COLUMNS, HOUR_US, NOW_S, feed_schema, impression_of, raw_table, store_of_users


@pytest.fixture
def feed(catalog, tmp_path):
    """Table, store, log folder."""
    return raw_table(catalog), store_of_users(tmp_path / "store.sqlite", [40, 0, 9]), tmp_path / "log"


def logged(folder, *records):
    with ImpressionLog(folder) as log:
        for record in records:
            assert (log.click if isinstance(record, Click) else log.show)(record)
    assert log.counts().written == len(records)
    assert log.counts().dropped == 0


def click(impression, place, *, label="click", hours_after=1.0):
    return Click(
        request_id=impression.request_id,
        item_id=int(impression.slate[place]),
        event_ts=int(impression.request_ts + hours_after * HOUR_US),
        label=label,
    )


def mature(catalog, store, **options):
    return mature_impressions(
        catalog, "feed", catalog.load_table("feed.raw_engagements"), store, **{"now_s": NOW_S, **options}
    )


def rows(catalog):
    return TableSource(catalog.load_table("feed.raw_engagements")).to_arrow().to_pylist()


def same(found, wanted):
    for name, value in vars(wanted).items():
        other = getattr(found, name)
        if isinstance(value, np.ndarray):
            assert other.dtype == value.dtype
            assert other.tobytes() == value.tobytes(), name
        elif name in ("logits", "items", "request"):
            assert list(other) == list(value)
            for key, one in value.items():
                if isinstance(one, np.ndarray):
                    assert np.asarray(other[key], one.dtype).tobytes() == one.tobytes(), (name, key)
                else:
                    assert other[key] == one, (name, key)
        else:
            assert other == value, name


def test_records_come_back_from_the_file_and_from_the_table_as_they_were(catalog, feed):
    _, store, folder = feed
    shown = [impression_of(store, user, 100 + user) for user in range(3)]
    logged(folder, *shown, click(shown[0], 1), replace(click(shown[0], 2), user_id=0))
    (path,) = sealed_files(folder)
    found = read_log(path)
    for one, wanted in zip(found.impressions, shown, strict=True):
        same(one, wanted)
    assert found.clicks == [click(shown[0], 1), replace(click(shown[0], 2), user_id=0)]
    report = collect_impressions(folder, catalog, "feed")
    assert report.counts() == {
        "num_files": 1,
        "num_impressions": 3,
        "num_clicks": 2,
        "num_dropped": 0,
        "num_damaged": 0,
    }
    table = catalog.load_table("feed.impressions").scan().to_arrow().sort_by("request_id")
    for one, wanted in zip(impressions_of(table), shown, strict=True):
        same(one, wanted)
    assert sealed_files(folder) == []
    assert collect_impressions(folder, catalog, "feed").num_files == 0


@pytest.mark.slow
def test_a_click_becomes_a_label_and_an_impression_without_one_is_negative_once_it_is_mature(catalog, feed):
    _, store, folder = feed
    old, young = impression_of(store, 0, 1), impression_of(store, 0, 2, hours_ago=2)
    logged(folder, old, young, click(old, 1), click(old, 1, label="save", hours_after=23), click(young, 0))
    collect_impressions(folder, catalog, "feed")
    report = mature(catalog, store)
    assert (report.num_requests, report.num_rows, report.num_clicked, report.num_young) == (1, 3, 1, 1)
    found = rows(catalog)
    assert [row["item_id"] for row in found] == old.slate.tolist()
    assert [(row["click"], row["save"]) for row in found] == [(0, 0), (1, 1), (0, 0)]
    assert [row["position"] for row in found] == [0, 1, 2]
    assert [row["item_category"] for row in found] == [item % 9 for item in old.slate.tolist()]
    for row in found:
        assert (row["user_id"], row["request_id"], row["history_end"], row["timeline_version"]) == (0, 1, 40, 0)
        assert row["history_item_id"] == [number * 3 for number in range(40)]
        assert np.array(row["user_embedding"], np.float32).tobytes() == old.request["user_embedding"].tobytes()
        assert (row["device"], row["country"]) == (0, None)
    later = mature(catalog, store, now_s=NOW_S + 48 * 3600)
    assert (later.num_requests, later.num_young) == (1, 0)
    assert [row["click"] for row in rows(catalog) if row["request_id"] == 2] == [1, 0, 0]


def test_histories_are_those_of_the_moment_whatever_came_later(catalog, feed):
    _, store, folder = feed
    shown = impression_of(store, 0, 1, start=10)
    logged(folder, shown)
    store.append(0, {"item_id": np.array([999]), "action": np.array([1], np.int32)}, key="later")
    store.correct(0, {"item_id": np.array([5]), "action": np.array([1], np.int32)}, key="corrected")
    collect_impressions(folder, catalog, "feed")
    assert mature(catalog, store).num_requests == 1
    assert rows(catalog)[0]["history_item_id"] == [number * 3 for number in range(10, 40)]


@pytest.mark.slow
def test_late_clicks_unknown_labels_and_lost_histories_are_counted_and_give_no_row(catalog, feed):
    _, store, folder = feed
    one, gone, other = (impression_of(store, user, 10 + user) for user in range(3))
    strange = Click(request_id=one.request_id, item_id=-5, event_ts=one.request_ts, label="click")
    foreign = replace(click(one, 2), user_id=1)
    logged(folder, one, gone, other, one, click(one, 0, hours_after=25), click(one, 1, label="like"), strange, foreign)
    collect_impressions(folder, catalog, "feed")
    store.delete_user(2)
    store.append(2, {"item_id": np.arange(9), "action": np.zeros(9, np.int32)}, key="again")
    report = mature(catalog, store)
    assert report.counts() == {
        "num_requests": 2,  # that of user 1 has no history, and needs none
        "num_rows": 6,
        "num_clicked": 0,
        "num_young": 0,
        "num_known": 0,
        "num_repeated": 1,
        "num_late": 1,
        "num_unknown": 2,
        "num_foreign": 1,
        "num_forgotten": 0,
        "num_changed": 1,
        "num_own": 0,
        "num_incomplete": 0,
    }
    store.delete_user(2)
    assert mature(catalog, store).num_forgotten == 1
    assert {row["user_id"] for row in rows(catalog)} == {0, 1}


def test_an_impression_that_showed_nothing_gives_no_row_and_is_counted_by_no_run(catalog, feed):
    _, store, folder = feed
    one, empty = impression_of(store, 0, 1), impression_of(store, 1, 2, num_shown=0)
    logged(folder, one, empty)
    collect_impressions(folder, catalog, "feed")
    assert (report := mature(catalog, store)).num_requests == 1
    assert (report.num_rows, sum(report.counts().values())) == (3, 4)
    assert not any(mature(catalog, store).counts().values())


def test_an_impression_without_a_required_column_is_counted_and_named(catalog, feed):
    _, store, folder = feed
    shown = impression_of(store, 0, 1)
    del shown.request["device"]
    logged(folder, shown)
    collect_impressions(folder, catalog, "feed")
    report = mature(catalog, store)
    assert (report.num_incomplete, report.missing) == (1, "request 1: device")


@pytest.mark.slow
def test_every_step_that_is_killed_repeats_without_losing_or_doubling(catalog, feed, monkeypatch):
    _, store, folder = feed
    shown = [impression_of(store, 0, number) for number in range(1, 6)]
    logged(folder, *shown[:3], click(shown[0], 0))
    logged(folder, *shown[3:])

    class KilledError(BaseException):
        pass

    def killed(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:  # after the commits, before the files are gone
        patch.setattr("pathlib.Path.unlink", killed)
        with pytest.raises(KilledError):
            collect_impressions(folder, catalog, "feed")
    assert len(sealed_files(folder)) == 2
    collect_impressions(folder, catalog, "feed")
    assert sealed_files(folder) == []
    assert catalog.load_table("feed.impressions").scan().count() == 5

    with monkeypatch.context() as patch:
        patch.setattr(attribution, "write", killed)
        with pytest.raises(KilledError):
            mature(catalog, store)
    assert rows(catalog) == []
    assert mature(catalog, store).num_requests == 5
    assert mature(catalog, store).num_requests == 0
    assert len(rows(catalog)) == 15


LOG_FOREVER = """
import sys
from pathlib import Path
from reqdedup.serving.impressions.log import ImpressionLog
from tests.serving.shown import impression_of, store_of_users
store = store_of_users(Path(sys.argv[1]) / "store.sqlite", [40])
log = ImpressionLog(sys.argv[1] + "/log")
for number in range(10**9):
    log.show(impression_of(store, 0, number))
    if number % 50 == 49:
        log.flush()
        print(log.counts().written, flush=True)
"""


@pytest.mark.slow
def test_a_killed_server_leaves_what_it_had_written(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", LOG_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        said = [process.stdout.readline() for _ in range(4)]
        assert sealed_files(tmp_path / "log") == []  # its process still writes
        process.send_signal(signal.SIGKILL)
    (path,) = sealed_files(tmp_path / "log")
    path.write_bytes(path.read_bytes()[:-7] + b"\n" + path.read_bytes()[:20])
    found = read_log(path)
    assert len(found.impressions) >= int(said[-1]) - 1
    assert [one.request_id for one in found.impressions] == list(range(len(found.impressions)))
    assert found.num_damaged == 2


def test_what_cannot_be_queued_is_dropped_at_once_counted_and_said(tmp_path, monkeypatch):
    store = store_of_users(tmp_path / "store.sqlite", [4])
    log = ImpressionLog(tmp_path / "log", max_waiting=3)
    with log._changed:  # the writer is stuck
        taken = [log.show(impression_of(store, 0, number)) for number in range(5)]
    assert taken == [True] * 3 + [False] * 2
    assert log.flush()
    log.show(impression_of(store, 0, 9))
    log.close()
    assert (log.counts().written, log.counts().dropped) == (4, 2)
    assert not log.show(impression_of(store, 0, 10))
    (path,) = sealed_files(tmp_path / "log")
    assert read_log(path).num_dropped == 2


def test_a_full_disk_costs_the_records_that_it_met_and_no_file_handles(tmp_path, monkeypatch):
    write = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with ImpressionLog(tmp_path) as log:
        for number in range(9):
            monkeypatch.setattr(os, "write", full if number in range(1, 8) else write)
            log.click(Click(request_id=number, item_id=1, event_ts=1, label="click"))
            assert log.flush()
        ours = [fd for fd in os.listdir("/proc/self/fd") if _target(fd).startswith(str(tmp_path))]
        assert (len(ours), log.counts().written, log.counts().dropped) == (1, 2, 7)
    found = [one.request_id for path in sealed_files(tmp_path) for one in read_log(path).clicks]
    assert sorted(found) == [0, 8]
    assert all(path.suffix == ".log" for path in tmp_path.iterdir())


def test_a_collector_takes_no_file_that_is_just_being_opened(tmp_path, monkeypatch):
    flock = fcntl.flock

    def collected_meanwhile(file: object, how: int) -> None:
        if how == fcntl.LOCK_EX:
            assert sealed_files(tmp_path) == []
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", collected_meanwhile)
    with ImpressionLog(tmp_path) as log:
        log.click(Click(request_id=1, item_id=1, event_ts=1, label="click"))
        assert log.flush()
    (path,) = sealed_files(tmp_path)
    assert [one.request_id for one in read_log(path).clicks] == [1]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def test_files_are_closed_by_size_and_by_age(tmp_path):
    store = store_of_users(tmp_path / "store.sqlite", [4])
    with ImpressionLog(tmp_path / "log", file_bytes=1) as log:
        for number in range(3):
            log.show(impression_of(store, 0, number))
            log.flush()
    assert len(sealed_files(tmp_path / "log")) == 3


def test_a_table_in_another_order_is_refused(catalog, feed):
    _, store, _ = feed
    table = storage.create_table(catalog, "feed.other", feed_schema(), Layout.BY_REQUEST, num_buckets=2)
    with pytest.raises(ValueError, match=r"feed.other: a table in order of arrival required"):
        mature_impressions(catalog, "feed", table, store)


def online_batch(store, user, request, item_id, items):
    """What a server computes on."""
    window = store.window(user, list(COLUMNS), start_of=lambda end: 0)
    num_rows, length = len(item_id), window.end
    return window, RequestBatch(
        user_id_R=torch.tensor([user]),
        item_id_B=torch.from_numpy(item_id),
        request_of_row_B=torch.zeros(num_rows, dtype=torch.int64),
        row_offsets_R1=torch.tensor([0, num_rows]),
        history_offsets_R1=torch.tensor([0, length]),
        request={
            name: torch.as_tensor(np.asarray(value))[None] for name, value in request.items() if value is not None
        },
        row={name: torch.from_numpy(values) for name, values in items.items()},
        history={name: torch.from_numpy(values) for name, values in window.columns.items()},
    )


@pytest.mark.slow
def test_the_loop_closes_serve_log_mature_and_read_back_with_the_same_scores(catalog, feed):
    """Scores of the rows that training reads equal the logged ones in all bits."""
    _, store, folder = feed
    config = DCATConfig.from_schema(
        feed_schema(), exclude=("position",), width=8, num_heads=2, num_layers=2, max_history=64, item_table_rows=50
    )
    torch.manual_seed(0)
    model = build_model(config).eval()
    shown = []
    for number, user in enumerate((0, 1, 2, 0)):
        plain = impression_of(store, user, 50 + number, num_candidates=7, num_shown=7)
        window, batch = online_batch(store, user, plain.request, plain.item_id, plain.items)
        logits = model.predict_exact(batch).numpy()[::-1]  # as the slate has them
        values = vars(plain) | {
            "logits": {label: logits[:, place].copy() for place, label in enumerate(config.labels)},
            "history_digest": events_digest(window.columns).hex(),
        }
        shown.append(type(plain)(**values))
        store.append(user, {"item_id": np.array([number]), "action": np.array([1], np.int32)}, key=f"n{number}")
    logged(folder, *shown, click(shown[0], 2))
    collect_impressions(folder, catalog, "feed")
    assert mature(catalog, store).num_requests == 4
    raw = TableSource(catalog.load_table("feed.raw_engagements"))
    storage.replace_table(catalog, "feed.by_request", feed_schema(), Layout.BY_REQUEST, raw.batches(), num_buckets=2)
    source = TableSource(catalog.load_table("feed.by_request"))
    online = {one.request_id: one for one in impressions_of(catalog.load_table("feed.impressions").scan().to_arrow())}
    num_rows = 0
    for batch in RequestLoader(source, requests_per_batch=3, shuffle="none"):
        offline = model.predict_exact(batch).numpy()
        for row, (request, item) in enumerate(zip(batch.request_of_row_B.tolist(), batch.item_id_B.tolist())):
            one = online[int(batch.request["request_id"][request])]
            place = one.slate.tolist().index(item)
            num_rows += 1
            for label, logit in zip(config.labels, offline[row]):
                assert logit.tobytes() == one.logits[label][place].tobytes()
            clicked = (one.request_id, item) == (50, int(shown[0].slate[2]))
            assert batch.row["click"][row] == clicked
    assert num_rows == 28
