"""A replacement exists completely before the old content goes, in one commit, whatever form either of them has."""

from __future__ import annotations

import itertools

import pytest
import requests
from pyiceberg.exceptions import NoSuchTableError, ServerError, ServiceUnavailableError
from pyiceberg.expressions import EqualTo
from pyiceberg.types import StringType

from reqdedup.schema import Column, Level
from reqdedup.storage import (
    ConflictError,
    Layout,
    TableSource,
    add_request_feature,
    create_feature_table,
    create_table,
    replace_feature_table,
    replace_table,
    tag,
    write,
)
from reqdedup.storage.iceberg import commit as commit_module
from reqdedup.storage.iceberg.layout import form_differences, table_buckets
from reqdedup.storage.read.feature_table import feature_buckets, feature_schema, is_by_position
from reqdedup.storage.tasks.replace import STREAM_BUCKETS
from tests.storage.feature_tables import COUNT, RATE, VECTOR, constant, of_request, values
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import data_files_on_disk, rows_of

NAME = "lake.t"
LOG, OTHER = to_batches(make_log(num_users=15)), to_batches(make_log(num_users=9, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(Layout, 2)))
def test_any_layout_becomes_any_other_in_one_commit(catalog, before, after):
    old = create_table(catalog, NAME, log_schema(), before, num_buckets=2)
    first = write(old, LOG).snapshot_id
    report = replace_table(catalog, NAME, log_schema(), after, OTHER, num_buckets=3)
    new = catalog.load_table(NAME)
    assert form_differences(new, log_schema(), after, 3) == []
    assert rows_of(TableSource(new).batches()) == rows_of(OTHER)
    assert [snapshot.snapshot_id for snapshot in new.snapshots()] == [first, report.snapshot_id]
    # pyiceberg reads both versions, each by its own columns and partitions
    assert new.scan().count() == report.rows
    user = OTHER[0]["user_id"][0].as_py()
    here = sum(batch["user_id"].to_pylist().count(user) for batch in OTHER)
    assert new.scan(EqualTo("user_id", user)).to_arrow().num_rows == here
    assert new.scan(snapshot_id=first).to_arrow().num_rows == sum(batch.num_rows for batch in LOG)
    written_by_default = create_table(catalog, "lake.direct", log_schema(), after, num_buckets=3)
    ours = {k: v for k, v in new.properties.items() if k not in ("reqdedup.form-since", "reqdedup.columns")}
    assert ("reqdedup.columns" in new.properties) is (not after.has_writer_defaults)
    assert ours == written_by_default.properties


@pytest.mark.slow
def test_another_count_of_buckets_keeps_old_snapshots_readable_and_another_form_names_them(catalog):
    table = create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)
    first = write(table, LOG).snapshot_id
    replace_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, OTHER, num_buckets=5)
    table = catalog.load_table(NAME)
    assert rows_of(TableSource(table, snapshot_id=first).batches()) == rows_of(LOG)
    replace_table(catalog, NAME, log_schema(), Layout.SORTED, OTHER, num_buckets=2)
    with pytest.raises(ValueError, match="from before its columns or layout were replaced"):
        TableSource(catalog.load_table(NAME), snapshot_id=first)


@pytest.mark.slow
def test_buckets_that_nobody_names_are_the_tables_the_sources_or_what_fits_its_size(catalog):
    form = (log_schema(), Layout.BY_REQUEST)

    def buckets(name, rows, **options):
        replace_table(catalog, name, *form, rows, **options)
        return table_buckets(catalog.load_table(name))

    assert (buckets("lake.three", LOG, num_buckets=3), buckets("lake.three", OTHER)) == (3, 3)
    assert buckets("lake.of_buckets", TableSource(catalog.load_table("lake.three"))) == 3
    replace_table(catalog, "lake.days", log_schema(), Layout.ARRIVAL, LOG)
    assert buckets("lake.of_days", TableSource(catalog.load_table("lake.days"))) == 1
    assert buckets("lake.days", LOG) == STREAM_BUCKETS


@pytest.mark.slow
def test_an_empty_table_takes_another_form_too(catalog):
    create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)
    report = replace_table(catalog, NAME, log_schema(), Layout.SORTED, [], num_buckets=3)
    assert (report.rows, report.snapshot_id) == (0, None)
    assert form_differences(catalog.load_table(NAME), log_schema(), Layout.SORTED, 3) == []
    replace_table(catalog, NAME, log_schema(), Layout.SORTED, LOG, num_buckets=3)
    replace_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, [], num_buckets=3)
    assert list(TableSource(catalog.load_table(NAME)).batches()) == []


@pytest.mark.slow
def test_columns_that_go_come_and_change_their_type(catalog):
    table = create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)
    write(table, LOG)
    ids = {field.name: field.field_id for field in table.schema().fields}
    others = [column for column in log_schema().columns if column.name not in ("click", "item_category", "item_price")]
    schema = type(log_schema())(
        (
            *others,
            Column(name="item_price", dtype="int64", level=Level.ITEM),
            Column(name="save", dtype="int32", level=Level.LABEL),
        )
    )
    batches = [
        batch.select([column.name for column in others])
        .append_column("item_price", batch["item_id"])
        .append_column("save", batch["item_category"])
        for batch in OTHER
    ]
    batches = [batch.select(list(schema.names)) for batch in batches]
    replace_table(catalog, NAME, schema, Layout.BY_REQUEST, batches, num_buckets=2)
    table = catalog.load_table(NAME)
    assert rows_of(TableSource(table).batches()) == rows_of(batches)
    now = {field.name: field.field_id for field in table.schema().fields}
    assert {name: now[name] for name in ids if name in now and name != "item_price"} == {
        name: ids[name] for name in ids if name in now and name != "item_price"
    }
    assert min(now["item_price"], now["save"]) > max(ids.values())
    replace_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, LOG, num_buckets=2)
    assert rows_of(TableSource(catalog.load_table(NAME)).batches()) == rows_of(LOG)


@pytest.mark.slow
def test_what_fails_leaves_the_old_content_and_no_file_and_a_new_table_is_not_there(catalog, tmp_path):
    def failing():
        yield LOG[0]
        raise ValueError("line 17")

    with pytest.raises(ValueError, match="line 17"):
        replace_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, failing())
    assert not catalog.table_exists(NAME)
    replace_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, LOG, num_buckets=2)
    files = data_files_on_disk(tmp_path)
    with pytest.raises(ValueError, match="line 17"):
        replace_table(catalog, NAME, log_schema(), Layout.SORTED, failing())
    table = catalog.load_table(NAME)
    assert (data_files_on_disk(tmp_path), table_buckets(table)) == (files, 2)
    assert rows_of(TableSource(table).batches()) == rows_of(LOG)


def test_only_the_table_that_the_call_made_goes_and_the_first_error_is_told(catalog, monkeypatch):
    def failing(error, action):
        yield LOG[0]
        action()
        raise error

    def made_anew():
        catalog.purge_table(NAME)
        create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST)

    for error, action, stays in (
        (ValueError("line 17"), lambda: catalog.drop_table(NAME), False),
        (ValueError("line 17"), made_anew, True),
        (ConnectionError("line 17"), int, False),
        (KeyboardInterrupt("line 17"), int, False),
    ):
        with pytest.raises(type(error), match="line 17"):
            replace_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, failing(error, action))
        assert catalog.table_exists(NAME) is stays
        if stays:
            catalog.purge_table(NAME)


def test_two_that_make_a_table_at_once_are_told_and_the_first_keeps_it(catalog, monkeypatch):
    create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST)
    main = create_table(catalog, "lake.main", log_schema(), Layout.BY_REQUEST)

    def not_yet(identifier):
        raise NoSuchTableError(identifier)

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "load_table", not_yet)
        for call in (
            lambda: replace_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, LOG),
            lambda: create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST),
            lambda: replace_feature_table(catalog, NAME, main, [COUNT], constant(1)),
        ):
            with pytest.raises(ConflictError, match=r"lake\.t: another process made this table"):
                call()
    assert catalog.table_exists(NAME)


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_a_column_or_spec_that_another_engine_changed_does_not_stand_against_a_replacement(catalog, layout):
    table = create_table(catalog, NAME, log_schema(), layout, num_buckets=2)
    write(table, LOG)
    with table.update_schema() as update:
        update.rename_column("click", "clicked")
    if layout is Layout.ARRIVAL:
        with table.update_spec() as update:
            update.add_field("user_id", "identity", "user")
    for _ in range(2):
        replace_table(catalog, NAME, log_schema(), layout, OTHER, num_buckets=2)
        table = catalog.load_table(NAME)
        assert rows_of(TableSource(table).batches()) == rows_of(OTHER)
        assert [field.name for field in table.schema().fields] == list(log_schema().names)
        assert len(table.spec().fields) == (layout is not Layout.SHUFFLED)
    assert len(table.schemas()) == 3


@pytest.mark.slow
def test_a_write_asks_for_the_layout_that_the_table_has_now(catalog):
    stale = create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)
    replace_table(catalog, NAME, log_schema(), Layout.SORTED, LOG, num_buckets=2)
    assert write(stale, OTHER, Layout.SORTED).rows == sum(batch.num_rows for batch in OTHER)


@pytest.mark.slow
def test_an_append_to_a_table_that_was_made_anew_meanwhile_is_a_conflict(catalog):
    table = create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)

    def meanwhile():
        yield LOG[0]
        catalog.drop_table(NAME)
        create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)

    with pytest.raises(ConflictError):
        write(table, meanwhile(), mode="append")
    assert not catalog.load_table(NAME).metadata.snapshots


_HTTPClientError = type("HTTPClientError", (Exception,), {"__module__": "botocore.exceptions"})


class LostDatabaseError(Exception):
    """As SQLAlchemy's errors say that the connection broke."""

    connection_invalidated = True


@pytest.mark.parametrize(
    "error",
    [
        *(ConnectionError, TimeoutError, requests.ConnectionError, requests.ReadTimeout),
        *(requests.exceptions.ChunkedEncodingError, ServerError, ServiceUnavailableError),
        type("ReadTimeoutError", (_HTTPClientError,), {"__module__": "botocore.exceptions"}),
        type("TTransportException", (Exception,), {"__module__": "thrift.transport.TTransport"}),
        LostDatabaseError,
    ],
)
def test_files_of_a_commit_without_an_answer_stay_even_if_manifests_cannot_be_read_either(
    catalog, tmp_path, error, monkeypatch
):
    table = create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)
    write(table, LOG)
    before = data_files_on_disk(tmp_path)

    def fail(kind):
        def failing(*arguments, **options):
            raise kind("away")

        return failing

    monkeypatch.setattr(catalog, "commit_table", fail(error))
    monkeypatch.setattr(commit_module, "check_manifests", fail(OSError))
    with pytest.raises(error, match="away") as caught:
        write(table, OTHER, mode="append")
    assert commit_module.MAY_LAND in caught.value.__notes__
    assert len(data_files_on_disk(tmp_path)) > len(before)


@pytest.mark.slow
def test_a_table_is_replaced_from_its_own_rows_and_keeps_tags_and_chosen_settings(catalog):
    table = create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)
    write(table, LOG)
    tag(table, "mine")
    with table.transaction() as transaction:
        transaction.set_properties({"write.parquet.compression-level": "3", "owner": "me"})
    source = TableSource(table)
    replace_table(catalog, NAME, log_schema(), Layout.SORTED_LARGE_PAGES, source.batches(), num_buckets=3)
    table = catalog.load_table(NAME)
    assert rows_of(TableSource(table).batches()) == rows_of(LOG)
    assert "mine" in table.refs()
    assert (table.properties["write.parquet.compression-level"], table.properties["owner"]) == ("3", "me")


@pytest.mark.slow
def test_of_a_replacement_and_a_write_the_later_is_told(catalog):
    """In both orders; else files of the old form would lie among those of the new one."""

    def meanwhile(action):
        yield LOG[0]
        action()

    def append():
        write(catalog.load_table(NAME), OTHER, mode="append")

    def replace():
        replace_table(catalog, NAME, log_schema(), Layout.SORTED, OTHER, num_buckets=2)

    create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)
    append()
    with pytest.raises(ConflictError):
        replace_table(catalog, NAME, log_schema(), Layout.SORTED, meanwhile(append), num_buckets=2)
    assert rows_of(TableSource(catalog.load_table(NAME)).batches()) == rows_of(OTHER + OTHER)
    with pytest.raises(ConflictError):
        write(catalog.load_table(NAME), meanwhile(replace), mode="append")
    assert rows_of(TableSource(catalog.load_table(NAME)).batches()) == rows_of(OTHER)


@pytest.mark.slow
def test_an_append_survives_a_column_that_another_engine_adds_meanwhile(catalog):
    table = create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)
    write(table, OTHER)

    def meanwhile():
        yield from LOG
        with catalog.load_table(NAME).update_schema() as update:
            update.add_column("note", StringType())

    write(table, meanwhile(), mode="append")
    assert rows_of(TableSource(catalog.load_table(NAME)).batches()) == rows_of(LOG + OTHER)


@pytest.mark.slow
@pytest.mark.parametrize("by_position", [False, True])
def test_a_feature_table_takes_another_form_with_its_values_in_one_commit(catalog, by_position):
    main = create_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, num_buckets=2)
    write(main, LOG)
    side = create_feature_table(catalog, "lake.f", main, [COUNT, VECTOR])
    add_request_feature(
        main, side, lambda requests: {"count": of_request(requests), "vector": [[1.0, 2.0]] * len(requests)}
    )
    replace_table(catalog, NAME, log_schema(), Layout.BY_REQUEST, OTHER, num_buckets=3)
    main = catalog.load_table(NAME)
    with pytest.raises(ValueError, match=r"lake\.f: is there in another form .*3 buckets required, found 2"):
        create_feature_table(catalog, "lake.f", main, [COUNT], by_position=by_position)
    assert len(feature_schema(catalog.load_table("lake.f")).features) == 2
    report = replace_feature_table(catalog, "lake.f", main, [RATE], constant(0.5), by_position=by_position)
    side = catalog.load_table("lake.f")
    assert [column.name for column in feature_schema(side).features] == ["rate"]
    assert (feature_buckets(side), is_by_position(side)) == (3, by_position)
    assert report.requests == len(values(main, side, "rate"))
    assert set(values(main, side, "rate", how="inner").values()) == {0.5}
    assert len(side.snapshots()) == 2
    replace_feature_table(catalog, "lake.f", main, [RATE], constant(0.25), by_position=not by_position)  # and back
    side = catalog.load_table("lake.f")
    assert set(values(main, side, "rate", how="inner").values()) == {0.25}
    assert side.scan(EqualTo("rate", 0.25)).to_arrow().num_rows == report.requests
