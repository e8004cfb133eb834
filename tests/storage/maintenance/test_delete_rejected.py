"""A deleted user's rejected rows go too: text, bounds and all, and nobody else's without need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.logs import read_log
from reqdedup.logs.ids import hash_string
from reqdedup.storage import ConflictError, IntegrityError, Layout, create_table, write, write_rejects
from reqdedup.storage.maintenance import delete_user, rejected_rows, row_deletion
from reqdedup.storage.maintenance.namespace import tables_of
from reqdedup.storage.maintenance.rejected_rows import names_users
from tests.storage.maintenance.searched_bytes import bytes_of

KEY = "mitglied-Ж7"
USER = hash_string(KEY)
OTHER_KEY = "mitglied-Ж70"
LOG = f"""member,item,at,clicked
{KEY},10,2025-11-01T10:00:00,1
{KEY},11,2025-11-01T10:00:05,0
{KEY},12,yesterday,0
{KEY},10,2025-11-01T10:00:09,1
{KEY},13,2025-11-01T10:00:10,1,and one field more
{OTHER_KEY},10,2025-11-01T11:00:00,1
{OTHER_KEY},11,never,1
{OTHER_KEY},12,2025-11-01T11:00:00,0,and one more
,10,2025-11-01T11:00:00,1
"""
MAPPING = {"user_id": {"column": "member", "type": "string"}, "item_id": "item", "time": {"column": "at"}}
NEEDLES = {"key": f"{KEY},".encode(), "id as text": str(USER).encode(), "id": USER.to_bytes(8, "little")}


@pytest.fixture
def tables(catalog, tmp_path):
    """The log's table and its rejects: two rows of the user by id, one that could not be split, three of others."""
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    log = read_log(path, mapping={**MAPPING, "labels": {"click": "clicked"}}, max_rejects=1)
    table = create_table(catalog, "test.engagements", log.schema, Layout.BY_REQUEST, num_buckets=2)
    write(table, log)
    write_rejects(catalog, "test.rejected_engagements", log.rejects)  # replaced once: an old manifest has the bounds
    return table, write_rejects(catalog, "test.rejected_engagements", log.rejects)


def lines(table) -> list[tuple[int, str]]:
    rows = table.refresh().scan().to_arrow().to_pylist()
    return sorted((row["line"], row["reason"]) for row in rows)


def test_rejected_rows_say_whose_they_are(tables):
    rows = tables[1].scan().to_arrow().to_pylist()
    owners = {(row["line"], row["reason"]): row["user_id"] for row in rows}
    other = hash_string(OTHER_KEY)
    assert owners == {
        (4, "time"): USER,
        (5, "duplicate"): USER,
        (6, "fields"): None,
        (8, "time"): other,
        (9, "fields"): None,
        (10, "null_id"): None,
    }


@pytest.mark.slow
def test_a_dry_run_says_what_would_go_and_changes_nothing(tables):
    before = [table.metadata_location for table in tables]
    planned = delete_user(tables, USER, dry_run=True)
    assert [table.refresh().metadata_location for table in tables] == before
    assert [(report.table, report.rows, report.rewritten) for report in planned] == [
        ("test.rejected_engagements", 3, 0),
        ("test.engagements", 2, 0),
    ]
    done = delete_user(tables, USER)
    figures = [(report.table, report.rows, report.requests, report.files, report.old_bytes) for report in planned[1:]]
    assert figures == [(r.table, r.rows, r.requests, r.files, r.old_bytes) for r in done[1:]]
    assert done[0].rows == planned[0].rows


@pytest.mark.slow
def test_the_user_is_in_no_byte_of_any_table_and_others_stay(catalog, tables):
    folders = [Path(table.location().removeprefix("file://")) for table in tables]
    held = [bytes_of(folder, NEEDLES) for folder in folders]
    assert held[0]["parquet"] == {"id"}
    assert {"key", "id as text", "id"} <= held[1]["raw"] | held[1]["parquet"]
    # Neither the ids nor the order in which the tables are named tell the key: the engagement table has it.
    reports = delete_user(tables, USER, erase=True)
    assert [report.rows for report in reports] == [3, 2]
    for folder in folders:
        assert bytes_of(folder, NEEDLES) == {"raw": set(), "manifests": set(), "parquet": set()}
    assert lines(tables[1]) == [(8, "time"), (9, "fields"), (10, "null_id")]
    assert [report.rows for report in delete_user(tables, USER)] == [0, 0]
    assert delete_user(tables[1], hash_string(OTHER_KEY), keys=[OTHER_KEY])[0].rows == 2


@pytest.mark.slow
def test_branches_and_tags_of_rejected_rows_are_named_and_dropped_on_request(tables):
    _, rejects = tables
    rejects.manage_snapshots().create_tag(rejects.current_snapshot().snapshot_id, "v1").commit()
    assert delete_user(tables, USER)[0].held_by == ("v1",)
    assert delete_user(rejects, USER, drop_refs=True, erase=True)[0].held_by == ()
    assert set(rejects.refresh().metadata.refs) == {"main"}


@pytest.mark.slow
def test_an_ingest_that_replaces_the_rows_meanwhile_is_searched_too(catalog, tables, monkeypatch):
    rejects, pending = tables[1], [tables[1].scan().to_arrow()]
    replace_files = row_deletion.replace_files

    def after_another(*arguments, **options):
        if pending:
            rows = pending.pop()
            write_rejects(catalog, "test.rejected_engagements", pa.concat_tables([rows, rows]))
        replace_files(*arguments, **options)

    monkeypatch.setattr(row_deletion, "replace_files", after_another)
    assert delete_user(tables, USER, erase=True)[0].rows == 6
    folder = Path(rejects.location().removeprefix("file://"))
    assert len(list(folder.rglob("*.parquet"))) == len(list(rejects.refresh().scan().plan_files()))
    assert lines(rejects) == sorted(2 * [(8, "time"), (9, "fields"), (10, "null_id")])


def test_only_whole_words_of_rows_without_an_owner_count():
    texts = ["7,1,2", "17,1", "a 7", "7", "x7", "user=7, item=1", "70", "Ж7", None, "it_7", "n-7"]
    rows = pa.table(
        {
            "raw": pa.array(texts, pa.string()),
            "detail": pa.array([""] * len(texts)),
            "user_id": pa.nulls(len(texts), pa.int64()),
        }
    )
    found = names_users(rows, np.array([7]), {"7"})
    assert [text for text, one in zip(texts, found) if one] == ["7,1,2", "a 7", "7", "user=7, item=1", "n-7"]
    owned = rows.set_column(2, "user_id", pa.array([8] * len(texts), pa.int64()))
    assert not names_users(owned, np.array([7]), {"7"}).any()
    named = owned.set_column(1, "detail", pa.array(["request 3 has more rows of user 7; if"] * len(texts)))
    assert names_users(named, np.array([7]), {"7"}).all()
    assert not names_users(named, np.array([3]), {"3"}).any()


def test_the_tables_of_a_namespace_are_found_by_what_they_are(catalog, tables):
    catalog.create_table("test.report", pa.schema([("bytes", pa.int64())]))
    found = tables_of(catalog, "test")
    assert [table.name()[-1] for table in found.with_users] == ["engagements", "rejected_engagements"]
    assert [table.name() for table in found.others] == [("test", "report")]
    with pytest.raises(ValueError, match=r"namespace nowhere is not in the catalog; there are: test"):
        tables_of(catalog, "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["sequence number 1 older than last sequence number 2", "Table UUID does not match: 1"]
)
def test_what_pyiceberg_calls_a_value_error_is_a_conflict_of_rejected_rows_too(tables, words, monkeypatch):
    table, before = tables[1], lines(tables[1])
    with table.transaction() as transaction:
        transaction.set_properties({"commit.retry.num-retries": "1"})

    def stale(*arguments):
        raise ValueError(words)

    monkeypatch.setattr(table.catalog, "commit_table", stale)
    monkeypatch.setattr(row_deletion, "ATTEMPTS", 2)
    with pytest.raises(ConflictError, match="found it changed 2 times"):
        rejected_rows.delete_rejected(table, np.array([USER]), {KEY})
    with pytest.raises(ConflictError, match="faster after 1 repetitions"):
        write_rejects(table.catalog, "test.rejected_engagements", table.scan().to_arrow())
    assert lines(table) == before


def test_a_damaged_manifest_of_rejected_rows_is_named(tables):
    table = tables[1]
    manifest = table.current_snapshot().manifests(table.io)[0].manifest_path
    Path(manifest.removeprefix("file://")).write_bytes(b"")
    for call in (
        lambda: rejected_rows.count_rejected(table, np.array([USER]), {KEY}),
        lambda: rejected_rows.delete_rejected(table, np.array([USER]), {KEY}),
        lambda: write_rejects(table.catalog, "test.rejected_engagements", []),
    ):
        with pytest.raises(IntegrityError, match=r"manifest .* is damaged"):
            call()
