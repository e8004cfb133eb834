"""Damaged and missing files, full disks, storage or catalog that stops half-way: a clear error, and no half-written table."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import AwsStandardS3RetryStrategy
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, WriteProgress, create_table, write
from reqdedup.storage.iceberg.catalogs import open_catalog
from tests.catalogs.conftest import postgres_config
from tests.catalogs.files import catalog_in, no_file_larger_than
from tests.catalogs.rows import plain, same, stored_files
from tests.servers.dropping_proxy import DroppingProxy
from tests.servers.postgres import Postgres
from tests.servers.seaweedfs import SeaweedFS


class Hasty(AwsStandardS3RetryStrategy):
    """One try of each request: by default there are ten, which take 25 s with a server that does not answer."""

    def __init__(self) -> None:
        super().__init__(max_attempts=1)


@pytest.fixture
def table(catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]) -> Table:
    table = create_table(catalog, f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=2)
    write(table, batches)
    return table


def test_a_missing_file_is_named(table: Table, batches: list[pa.RecordBatch]) -> None:
    path = data_paths(table)[0]
    table.io.delete(path)
    with pytest.raises(FileNotFoundError, match="data file of the snapshot required") as caught:
        plain(TableSource(table).batches())
    assert path in str(caught.value)


def test_a_damaged_file_is_named_and_no_wrong_value_is_read(table: Table) -> None:
    path = data_paths(table)[0]
    whole = content(table, path)
    middle = len(whole) // 3
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", whole[: len(whole) // 2], whole[:-4], whole[1:], flipped):
        put(table, path, damaged)
        with pytest.raises(
            ValueError, match=r"a whole Parquet file required, found a damaged one.*restore it"
        ) as caught:
            plain(TableSource(table).batches())
        assert path in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.ARRIVAL, Layout.BY_REQUEST, Layout.SORTED_LARGE_PAGES])
def test_a_flipped_bit_is_never_read_as_another_value(
    tmp_path: Path, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch], layout: Layout
) -> None:
    table = create_table(catalog_in(tmp_path), f"{namespace}.t", schema, layout, num_buckets=1)
    write(table, batches[:1])
    path = data_paths(table)[0]
    whole = content(table, path)
    wanted = plain(TableSource(table).batches())
    for at in range(4, len(whole) - 4, len(whole) // 40):
        put(table, path, whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            found = plain(TableSource(table).batches())
        except ValueError:
            continue
        assert same(wanted, found), f"byte {at} of {len(whole)}"


def test_a_full_disk_under_the_spill_is_named(table: Table, batches: list[pa.RecordBatch]) -> None:
    before, files = snapshot_of(table), sorted(stored_files(table))
    with no_file_larger_than(20_000), pytest.raises(OSError, match=r"space for the arriving log.*spill_dir") as caught:
        write(table, batches)
    assert caught.value.errno == errno.EFBIG
    assert snapshot_of(table) == before
    assert sorted(stored_files(table)) == files


def test_a_full_disk_under_the_table_is_named(
    tmp_path: Path, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    table = create_table(catalog_in(tmp_path), f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=2)
    write(table, batches)
    before, files = snapshot_of(table), sorted(stored_files(table))
    with no_file_larger_than(10**9) as limit:

        def fill(progress: WriteProgress) -> None:
            if progress.phase == "write":  # the first file is there, the second has no room
                limit(100)

        with pytest.raises(OSError, match=r"\.parquet: could not be written.*space.*Nothing was committed"):
            write(table, batches, progress=fill)
    assert snapshot_of(table) == before
    assert sorted(stored_files(table)) == files


@pytest.mark.servers
def test_storage_that_stops_during_a_write_leaves_the_table_as_it_was(
    postgres: Postgres,
    seaweedfs: SeaweedFS,
    namespace: str,
    schema: EngagementSchema,
    batches: list[pa.RecordBatch],
) -> None:
    hasty = {"s3.request-timeout": "1", "s3.retry-strategy-impl": f"{__name__}.Hasty"}
    properties = postgres_config(postgres, seaweedfs).properties | hasty
    table = create_table(open_catalog("f", properties), f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=2)
    write(table, batches[:1])
    before, wanted = snapshot_of(table), plain(batches)

    def stop(progress: WriteProgress) -> None:
        if progress.rows_done == wanted.num_rows:  # all has arrived, the first file comes next
            seaweedfs.server.pause()

    try:
        with pytest.raises(OSError, match=r"s3://.*\.parquet: could not be written") as caught:
            write(table, batches, progress=stop)
    finally:
        seaweedfs.server.resume()
    assert seaweedfs.secret_key not in str(caught.value)
    assert snapshot_of(table) == before
    assert write(table, batches).rows == len(wanted)


@pytest.mark.servers
def test_a_catalog_that_stops_before_the_commit_leaves_the_table_as_it_was(
    postgres: Postgres,
    seaweedfs: SeaweedFS,
    namespace: str,
    schema: EngagementSchema,
    batches: list[pa.RecordBatch],
) -> None:
    import psycopg2

    catalog = open_catalog("f", postgres_config(postgres, seaweedfs).properties, answer_timeout_s=1)
    table = create_table(catalog, f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=2)
    write(table, batches[:1])
    before = snapshot_of(table)
    holder = psycopg2.connect(postgres.uri().replace("+psycopg2", ""))

    def lock(progress: WriteProgress) -> None:
        if progress.phase == "commit":
            holder.cursor().execute("lock table iceberg_tables in access exclusive mode")

    try:
        with pytest.raises(TimeoutError, match="what holds its locks"):
            write(table, batches, progress=lock)
    finally:
        holder.close()
    assert snapshot_of(table) == before
    assert write(table, batches).rows == len(plain(batches))
    assert same(plain(batches), plain(TableSource(catalog.load_table(f"{namespace}.t")).batches()))


@pytest.mark.servers
def test_a_commit_whose_answer_is_lost_is_not_lost_and_not_repeated(
    seaweedfs: SeaweedFS, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    with DroppingProxy(seaweedfs.rest_uri) as proxy:
        properties = {**seaweedfs.rest_properties, "uri": proxy.uri}
        catalog = open_catalog("f", properties, answer_timeout_s=5)
        table = create_table(catalog, f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=2)
        proxy.drop_answers_to(f"tables/{table.name()[-1]}")
        report = write(table, batches, mode="append")
        assert proxy.dropped == 1
    loaded = open_catalog("f", seaweedfs.rest_properties).load_table(f"{namespace}.t")
    assert snapshot_of(loaded) == report.snapshot_id
    assert same(plain(batches), plain(TableSource(loaded).batches()))


def data_paths(table: Table) -> list[str]:
    return [task.file.file_path for task in table.scan().plan_files()]


def content(table: Table, path: str) -> bytes:
    with table.io.new_input(path).open() as stream:
        return bytes(stream.read())


def put(table: Table, path: str, data: bytes) -> None:
    with table.io.new_output(path).create(overwrite=True) as stream:
        stream.write(data)


def snapshot_of(table: Table) -> int | None:
    current = table.refresh().current_snapshot()
    return None if current is None else current.snapshot_id
