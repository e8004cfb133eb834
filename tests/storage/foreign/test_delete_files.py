"""Rows that a merge-on-read engine has deleted: every reader of row groups refuses, `convert` leaves them out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pyiceberg.manifest import FileFormat

from reqdedup.audit import audit_table
from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.display import counted
from reqdedup.storage import (
    Layout,
    TableSource,
    bucket_join,
    compact,
    compression_report,
    create_table,
    delete_user,
    sample_users,
    write,
)
from reqdedup.storage.iceberg.errors import IntegrityError
from tests.storage.foreign.delete_files import delete_positions, delete_where_equal
from tests.storage.small_log import log_schema, make_log, to_batch

BATCH = to_batch(make_log(num_users=12))
MAPPING = ColumnMapping(user="user_id", request="request_id", item="item_id", time="request_ts", labels=["click"])


def plain(batches) -> list[str]:
    return sorted(repr(row) for batch in batches for row in batch.to_pylist())


@pytest.fixture(params=[Layout.BY_REQUEST, Layout.SORTED])
def table(request, catalog):
    table = create_table(catalog, "lake.t", log_schema(), request.param, num_buckets=2)
    write(table, [BATCH])
    return table


@pytest.mark.slow
def test_deleted_rows_are_refused_by_readers_and_left_out_by_convert(catalog, table):
    source = TableSource(table)
    paths, gone, kept = source.paths, {}, []
    for group in source.row_groups():
        rows = source.read_row_group(group).to_pylist()
        gone[group.path] = [0, 3, group.num_rows - 1]
        kept += [repr(row) for number, row in enumerate(rows) if number not in gone[group.path]]
    delete_positions(table, gone)
    assert len(table.scan().to_arrow()) == len(kept), "Iceberg's own reader agrees on what is deleted"

    for read in (
        lambda: TableSource(table),
        lambda: sample_users(table, rate=1.0),
        lambda: bucket_join(table, table),
        lambda: compression_report({"t": table}),
        lambda: compact(table, force=True),
        lambda: delete_user(table, BATCH["user_id"][0].as_py()),
    ):
        with pytest.raises(ValueError, match=r"delete files.*convert"):
            read()
    report = audit_table(table, request_key="request_id", user_key="user_id")
    assert any("delete files were not applied" in note for note in report.notes)
    converted = convert_table(table, catalog, "lake.new", MAPPING)
    assert f"left out, as delete files name them: {counted(BATCH.num_rows - len(kept), 'row')}" in converted.notes
    assert plain(TableSource(catalog.load_table("lake.new")).batches()) == sorted(kept)
    write(table, [BATCH])  # what replaces everything needs no reader
    assert not set(TableSource(table).paths) & set(paths)
    compact(table, force=True)
    assert plain(TableSource(table).batches()) == plain([BATCH])


def test_deletes_by_value_are_refused_by_all(catalog, table):
    user = BATCH["user_id"][0].as_py()
    (partition,) = {task.file.partition for task in table.scan(row_filter=f"user_id = {user}").plan_files()}
    delete_where_equal(table, "user_id", user, partition)
    for read in (
        lambda: TableSource(table),
        lambda: convert_table(table, catalog, "lake.new", MAPPING),
        lambda: audit_table(table, request_key="request_id", user_key="user_id"),
    ):
        with pytest.raises(ValueError, match=r"lake\.t: .* found equality deletes, .* in 1 of .*CREATE TABLE"):
            read()
    assert not catalog.table_exists("lake.new")


def test_delete_files_of_a_format_that_is_not_read_are_refused_by_name(catalog, table):
    delete_positions(table, {TableSource(table).paths[0]: [0]}, FileFormat.AVRO)
    with pytest.raises(ValueError, match=r"lake\.t: delete files in Parquet, ORC or Puffin .* 1 in AVRO; .*CREATE"):
        convert_table(table, catalog, "lake.new", MAPPING)


@pytest.mark.parametrize("left", [None, b"", b"PAR1 cut PAR1"])
def test_a_delete_file_that_is_damaged_or_gone_is_named(catalog, table, left):
    (path,) = delete_positions(table, {TableSource(table).paths[0]: [0]})
    local = Path(path.removeprefix("file://"))
    local.unlink() if left is None else local.write_bytes(left)
    with pytest.raises(
        IntegrityError, match=rf"lake\.t: delete file {re.escape(path)} is (not there|damaged).*rollback_to"
    ):
        convert_table(table, catalog, "lake.new", MAPPING)
