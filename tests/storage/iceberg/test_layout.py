"""Tables describe themselves: partition, order, docs and properties are what any engine, and any later session, needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from pyiceberg.catalog.memory import InMemoryCatalog
from pyiceberg.schema import Schema
from pyiceberg.transforms import BucketTransform, DayTransform
from pyiceberg.types import BinaryType, ListType, LongType, NestedField

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.schema import KEYS, Column, EngagementSchema, Level
from reqdedup.storage import Layout, TableSource, create_table, table_layout, table_schema, write
from reqdedup.storage.iceberg.layout import buckets_of, table_buckets
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import new_table, rows_of


@pytest.mark.parametrize("layout", list(Layout))
def test_a_table_carries_its_schema_layout_partition_and_order(catalog, layout):
    table = catalog.load_table(new_table(catalog, layout, num_buckets=8).name())
    assert table_schema(table) == log_schema()
    assert table_layout(table) is layout
    transforms = [(field.name, field.transform) for field in table.spec().fields]
    order = [table.schema().find_column_name(field.source_id) for field in table.sort_order().fields]
    if layout.is_bucketed:
        assert transforms == [("user_bucket", BucketTransform(8))]
        assert order == ["user_id", "request_id", "item_id"]
    else:
        assert transforms == ([("request_day", DayTransform())] if layout is Layout.ARRIVAL else [])
        assert order == []
    field = table.schema().find_field("history_ts")
    assert isinstance(field.field_type, BinaryType if layout.has_blobs else ListType)
    if not layout.has_blobs:
        assert field.field_type.element_type == LongType()
    assert field.required
    assert not table.schema().find_field("click").required


def test_files_state_partition_order_and_bounds(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log()))
    user_field = table.schema().find_field("user_id").field_id
    blob_field = table.schema().find_field("history_ts").field_id
    for task in table.scan().plan_files():
        assert task.file.sort_order_id == table.sort_order().order_id
        assert user_field in task.file.lower_bounds
        assert blob_field not in task.file.lower_bounds
        assert task.file.record_count > 0
        assert task.file.file_size_in_bytes == Path(task.file.file_path.removeprefix("file://")).stat().st_size


@pytest.mark.slow
def test_creating_again_keeps_the_rows_and_another_form_is_refused_by_name(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log()))
    rows = rows_of(TableSource(table).batches())
    assert rows_of(TableSource(new_table(catalog, Layout.BY_REQUEST)).batches()) == rows
    schema, count = log_schema(), table_buckets(table)
    wider = schema.with_columns(Column(name="save", dtype="int32", level=Level.LABEL))
    docs = EngagementSchema((*schema.columns[:-1], dataclasses.replace(schema.columns[-1], doc="another text")))
    for other, layout, num_buckets, difference in (
        (schema, Layout.BY_REQUEST, count + 1, f"{count + 1} buckets required, found {count}"),
        (schema, Layout.SORTED, count, "layout sorted required, found by_request"),
        (schema, Layout.SHUFFLED, count, "layout shuffled required, found by_request"),
        (wider, Layout.BY_REQUEST, count, "columns save required, found none"),
        (schema.select([*KEYS, "request_ts"]), Layout.BY_REQUEST, count, "found, not required"),
        (docs, Layout.BY_REQUEST, count, f"doc of column {schema.columns[-1].name}: 'another text' required"),
        (EngagementSchema(schema.columns[::-1]), Layout.BY_REQUEST, count, "columns in the order"),
    ):
        with pytest.raises(ValueError, match=f"in another form .*{difference}.*replace_table"):
            create_table(catalog, "test.by_request", other, layout, num_buckets=num_buckets)
        assert rows_of(TableSource(catalog.load_table("test.by_request")).batches()) == rows


def test_a_table_that_reqdedup_did_not_make_is_left_alone(catalog):
    catalog.create_namespace_if_not_exists("test")
    catalog.create_table("test.others", table_of_others := Schema(NestedField(1, "n", LongType(), required=False)))
    with pytest.raises(ValueError, match="is not a reqdedup table"):
        create_table(catalog, "test.others", log_schema(), Layout.BY_REQUEST)
    assert catalog.load_table("test.others").schema().as_struct() == table_of_others.as_struct()


def test_a_location_of_ones_own(catalog, tmp_path):
    location = f"file://{tmp_path}/elsewhere"
    table = create_table(catalog, "test.away", log_schema(), Layout.BY_REQUEST, location=location)
    write(table, to_batches(make_log(num_users=3)))
    assert all(path.startswith(location) for path in TableSource(table).paths)


@pytest.mark.parametrize("secret", ["s3://KEY:SECRET@bucket/x", "s3://bucket/x?secret_key=SECRET"])
def test_a_new_table_keeps_no_credential_in_its_location(catalog, secret):
    def made(catalog, **options):
        create_table(catalog, "test.t", log_schema(), Layout.BY_REQUEST, **options)

    beside = InMemoryCatalog("other", warehouse=secret)
    for make in (lambda: made(catalog, location=secret), lambda: made(beside)):
        with pytest.raises(ValueError, match=r"test\.t: a location without credentials required") as caught:
            make()
        assert "SECRET" not in str(caught.value)
    assert not catalog.list_namespaces()
    mapping = ColumnMapping(user="u", request="r", item="i", time="t")
    with pytest.raises(ValueError, match="without credentials") as caught:  # before the source is read
        convert_table("nowhere", catalog, "test.t", mapping, location=secret)
    assert "SECRET" not in str(caught.value)


def test_wrong_arguments_are_refused(catalog):
    with pytest.raises(ValueError, match="num_buckets must be positive"):
        create_table(catalog, "test.t", log_schema(), Layout.SORTED, num_buckets=0)
    with pytest.raises(ValueError, match=r"namespace\.name required"):
        create_table(catalog, "t", log_schema(), Layout.SORTED)


def test_buckets_are_those_of_the_iceberg_specification():
    """Against pyiceberg's transform of one value, and the specification's own example (34 hashes to 2017239379)."""
    users = [0, 1, -1, 34, 2**63 - 1, -(2**63), *np.random.default_rng(0).integers(-(2**63), 2**63, 50).tolist()]
    transform = BucketTransform(16).transform(LongType())
    assert buckets_of(np.array(users), 16).tolist() == [transform(user) for user in users]
    assert buckets_of(np.array([34]), 2**31 - 1).tolist() == [2017239379]
