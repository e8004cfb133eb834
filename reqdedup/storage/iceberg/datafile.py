"""One Parquet data file of a table: the writer settings of each layout, the Iceberg statistics, the
check after writing.

Our settings: zstd at the table's level; dictionaries of whole sequences without a size limit, so that they never fall
back to plain; a dictionary for scalars of the request (one value repeated F times), none for floats of the item. Where
values decide, the first rows are tried (`reqdedup.storage.iceberg.encodings`). The control layouts take exactly what
pyiceberg's own writer takes. pyiceberg 0.12 has no public way to write a file with settings per column, hence its
private `_get_parquet_writer_kwargs` and the hand-built DataFile.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    MetricModeTypes,
    MetricsMode,
    StatisticsCollector,
    _get_parquet_writer_kwargs,
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.table import Table
from pyiceberg.types import TimestampType, TimestamptzType

from reqdedup.arrays.keys import key_runs
from reqdedup.schema import KEYS, REQUEST_TS, EngagementSchema, type_tree
from reqdedup.storage.iceberg.encodings import PAGES_BY_BYTES, choose, stored_choices, writer_options
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.layout import (
    Layout,
    buckets_of,
    file_schema,
    key_order_id,
    table_buckets,
)
from reqdedup.storage.iceberg.settings import WriteSettings
from reqdedup.storage.iceberg.small_files import fetched
from reqdedup.storage.iceberg.stored_types import leaves

DAY_MICROSECONDS = 86_400_000_000


class FileSettings:
    """How the files of one table are written: its `WriteSettings`, and what was chosen for each column.

    properties: those of the table; columns for which it has no choice are tried by `decide`, or on a file's first rows.
    choices: how each column is encoded, for the table to keep; see `encodings`.
    """

    def __init__(self, layout: Layout, schema: EngagementSchema, properties: Mapping[str, str]) -> None:
        self._layout, self._schema, self._properties = layout, schema, dict(properties)
        self.settings = WriteSettings.of(properties, layout, schema)
        self.choices = {} if layout.has_writer_defaults else stored_choices(properties)
        self._options: tuple[dict[str, str], dict[str, Any]] | None = None

    @property
    def is_decided(self) -> bool:
        """Whether nothing is left to be tried."""
        tried = {column.name for column in self._schema.columns if not column.is_stored}
        return self._layout.has_writer_defaults or tried <= self.choices.keys()

    def decide(self, rows: pa.Table, *, renew: bool = False) -> None:
        """Choose for the columns that have no choice yet by these rows, the first of the table's order.

        renew: whether for all columns. If rows are few, nothing is chosen for good: the next rows may be more.
        """
        names = set(self._schema.names)
        if self._layout.has_writer_defaults or not len(rows) or (self.is_decided and not renew):
            return
        found = choose(rows, self._schema, self.settings, blobs=self._layout.has_blobs)
        self.choices = found if renew else found | {name: self.choices[name] for name in names & self.choices.keys()}

    def of(self, first_rows: pa.Table) -> dict[str, Any]:
        """Keyword arguments of `pq.ParquetWriter` for a file that begins with these rows."""
        if self._layout.has_writer_defaults:
            return {**_get_parquet_writer_kwargs(self._properties), "store_decimal_as_integer": True}
        self.decide(first_rows)
        if self._options is None or self._options[0] is not self.choices:
            self._options = self.choices, self._ours()
        return self._options[1]

    def _ours(self) -> dict[str, Any]:
        lists = self._layout is Layout.SORTED_LARGE_PAGES
        return {
            **writer_options(self.choices, self._schema, self.settings, blobs=self._layout.has_blobs),
            "write_statistics": [
                path
                for column in self._schema.columns
                if not column.is_blob
                for path, _ in leaves(column.name, type_tree(column.dtype))
            ],
            "store_decimal_as_integer": True,
            "store_schema": False,
            "write_page_checksum": True,  # so that a flipped bit is an error, not another value
            "data_page_size": self.settings.page_bytes,
            "dictionary_pagesize_limit": self.settings.page_bytes if lists else 2**31 - 1,
            **({} if lists else PAGES_BY_BYTES),
        }


class FileForm:
    """What the data files of a table have in common. schema: their columns, with field ids."""

    def __init__(self, table: Table, schema: EngagementSchema, layout: Layout) -> None:
        self._table, self.layout = table, layout
        self.schema = file_schema(table, schema, layout)

    @cached_property
    def field_ids(self) -> Mapping[str, int]:
        """Of each path in a file."""
        return parquet_path_to_id_mapping(self._table.schema())

    @cached_property
    def statistics(self) -> Mapping[int, StatisticsCollector]:
        """What a commit says of each field."""
        return compute_statistics_plan(self._table.schema(), self._table.properties)


class DataFileWriter:
    """Writes one data file of `table`, row group by row group.

    partition: the bucket, or the day since 1970, or None if the table is not partitioned.
    write_id: name of the write that the file belongs to; with partition and attempt it makes the file's name, so that
        what an abandoned write left can be found.
    metadata: entries for the file's footer, until it is closed.
    """

    def __init__(
        self,
        table: Table,
        form: FileForm,
        partition: int | None,
        settings: FileSettings,
        *,
        write_id: str,
    ) -> None:
        self._table, self._form, self._settings = table, form, settings
        self.partition = partition
        key = PartitionKey(
            [PartitionFieldValue(field, partition) for field in table.spec().fields], table.spec(), table.schema()
        )
        self._record = key.partition
        name = f"{write_id}-{'all' if partition is None else partition}-{uuid.uuid4().hex[:12]}.parquet"
        self.path = table.location_provider().new_data_location(name, key if table.spec().fields else None)
        self.schema = form.schema
        with _naming(self.path):
            self._stream = table.io.new_output(self.path).create(
                overwrite=True
            )  # nobody has this name: do not ask the store
        self._parquet: pq.ParquetWriter | None = None
        self.metadata: dict[str, str] = {}
        self.num_rows = 0

    @property
    def num_bytes(self) -> int:
        """Compressed bytes so far."""
        return int(self._stream.tell())

    def write(self, rows: pa.Table) -> None:
        """Write these rows as one row group."""
        with _naming(self.path):
            if self._parquet is None:
                self._parquet = self._open(rows)
            self._parquet.write_table(rows.cast(self.schema) if rows.schema != self.schema else rows, len(rows))
        self.num_rows += len(rows)

    def _open(self, first_rows: pa.Table) -> pq.ParquetWriter:
        settings = self._settings.of(first_rows)
        if self._form.layout.is_bucketed:
            keys = [name for name in KEYS if name in self.schema.names]
            sorting_columns = [pq.SortingColumn(self.schema.get_field_index(name)) for name in keys]
            settings = settings | {"sorting_columns": sorting_columns}
        return pq.ParquetWriter(self._stream, self.schema, **settings)

    def close(self) -> DataFile:
        """Finish the file; what the commit needs to know about it."""
        assert self._parquet is not None
        with _naming(self.path):
            if self.metadata:
                self._parquet.add_key_value_metadata(self.metadata)
            self._parquet.close()
            footer = self._parquet.writer.metadata
            num_bytes = self.num_bytes
            self._stream.close()
        self._parquet = None
        ids = dict(self._form.field_ids)
        statistics = data_file_statistics_from_parquet_metadata(
            parquet_metadata=footer,
            stats_columns=_bounded(self._form.statistics, footer, ids),
            parquet_column_mapping=ids,
        )
        data_file = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=self.path,
            file_format=FileFormat.PARQUET,
            partition=self._record,
            file_size_in_bytes=num_bytes,
            sort_order_id=key_order_id(self._table) if self._form.layout.is_bucketed else None,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )
        data_file.spec_id = self._table.spec().spec_id  # from_args of pyiceberg 0.12 drops it
        return data_file

    def abandon(self) -> None:
        """Leave the file unfinished; the caller deletes it."""
        self._parquet = None
        self._stream.close()


def _bounded(
    plan: Mapping[int, StatisticsCollector], footer: pq.FileMetaData, ids: Mapping[str, int]
) -> dict[int, StatisticsCollector]:
    """The plan without bounds of columns with times outside the years 1 to 9999.

    pyiceberg makes bounds of Python's datetimes, which end there; a column without bounds is read in every query.
    """
    bounded = dict(plan)
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        for position in range(footer.num_columns):
            column = group.column(position)
            field_id = ids[column.path_in_schema]
            if not column.is_stats_set or not isinstance(plan[field_id].iceberg_type, TimestampType | TimestamptzType):
                continue
            try:
                _ = column.statistics.min, column.statistics.max
            except OverflowError:
                bounded[field_id] = replace(plan[field_id], mode=MetricsMode(MetricModeTypes.COUNTS))
    return bounded


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path}: could not be written ({error}); check that the storage has space, answers and takes the "
            "credentials. Nothing was committed",
        ) from error


def verify_file(table: Table, path: str, layout: Layout, partition: int | None, num_rows: int) -> int:
    """Read the keys of a written file back and check what a commit would promise; returns its number of requests.

    Raises IntegrityError if rows are missing, lie in another partition than the file's, or break the order: a wrong
    bucket would silently lose rows to pruning.
    """
    keys = [name for name in KEYS if name in table.schema().column_names]  # a feature table has no items
    names = [*keys, REQUEST_TS] if layout is Layout.ARRIVAL else keys
    if not layout.is_bucketed and layout is not Layout.ARRIVAL:
        names = []
    num_requests, found = 0, 0
    last: list[int] | None = None  # key of the row group before
    num_buckets = table_buckets(table)
    with fetched(table.io.new_input(path).open()) as stream, pq.ParquetFile(stream, pre_buffer=True) as file:
        found = file.metadata.num_rows
        for index in range(file.num_row_groups if names else 0):
            group = file.read_row_group(index, columns=names).combine_chunks()
            if layout is Layout.ARRIVAL:
                days = group.column(REQUEST_TS).cast(pa.int64()).to_numpy() // DAY_MICROSECONDS
                _require(bool(np.all(days == partition)), table, path, index, f"rows of day {partition}")
                continue
            key = [group.column(name).to_numpy() for name in keys]
            runs, disorder = key_runs(key, len(keys))
            buckets = buckets_of(key[0][runs.starts[0]], num_buckets or 1)
            _require(bool(np.all(buckets == partition)), table, path, index, f"rows of bucket {partition}")
            first, end = ([int(column[at]) for column in key] for at in (0, -1))
            in_order = disorder < 0 and (last is None or last <= first)
            _require(in_order, table, path, index, f"rows in ({', '.join(keys)}) order")
            if last is not None:
                _require(last[:2] < first[:2], table, path, index, "a new request at the start of a row group")
            num_requests += len(runs.starts[1])
            last = end
    if found != num_rows:
        raise IntegrityError(
            f"{'.'.join(table.name())}: {path}: {num_rows} rows written, {found} found; nothing committed"
        )
    return num_requests


def _require(holds: bool, table: Table, path: str, index: int, what: str) -> None:
    if not holds:
        raise IntegrityError(
            f"{'.'.join(table.name())}: {path}: {what} required, row group {index} differs; nothing was committed. "
            "This is a defect of the writer: report it with the batches that were written"
        )
