"""The Parquet files of a table that a team already has: how to open each, and which of its leaves
is which of the table's."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.storage.foreign.leaves import Leaf, Shape, is_text, leaf_arrays, leaves_of, relist, same_values, wholes_of
from reqdedup.storage.iceberg.small_files import fetched

TAIL_BYTES, SIGNATURE_BYTES = 8, 28
"""The end of a Parquet file: the length of the footer, and `PAR1`; before it, where columns are
encrypted, nonce and tag."""

PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".zip")
"""Of files that are compressed as a whole; Parquet compresses inside."""


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table.

    schema: of the file.  leaf_in_file: the file's leaf for each leaf name of the table that it has.
    list_in_file: of list leaves that it lacks, a leaf of the same list, for their lengths.
    whole_in_file: maps and lists of lists, as `wholes_of` has them, by their names in the table.
    constants: values that all rows of the file have in columns that it lacks.
    """

    path: str
    open_bytes: Callable[[], Any] = field(repr=False, compare=False)
    schema: pa.Schema = field(repr=False)
    leaf_in_file: dict[str, Leaf] = field(repr=False)
    list_in_file: dict[str, Leaf] = field(repr=False)
    size_bytes: int
    whole_in_file: dict[str, Leaf] = field(default_factory=dict, repr=False)
    constants: dict[str, pa.Scalar] = field(default_factory=dict, repr=False, compare=False)

    @contextlib.contextmanager
    def parquet(self, names: Collection[str] = ()) -> Iterator[pq.ParquetFile]:
        """The opened file; those leaves of `names` that Parquet allows come as dictionaries. Read it by `batches`."""
        found = [self.leaf_in_file[name] for name in names if name in self.leaf_in_file]
        encoded = [
            leaf.name for leaf in found if leaf.name == leaf.column and is_text(self.schema.field(leaf.name).type)
        ]
        with reading(self.path):
            stream = self.open_bytes()
        with contextlib.closing(stream):
            with reading(self.path):
                stream = fetched(stream, self.size_bytes)
                # Buffered reads, one page at a time: pre_buffer would hold whole column chunks.
                # Spark's old times are nanoseconds of a day that 64 bits of nanoseconds do not reach: 9999-12-31.
                opened = pq.ParquetFile(
                    stream,
                    read_dictionary=encoded,
                    pre_buffer=False,
                    buffer_size=1 << 20,
                    coerce_int96_timestamp_unit="us",
                )
            yield opened

    def batches(
        self, parquet: pq.ParquetFile, num_rows: int, *, row_groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Rows of the opened file. Its name stands in what goes wrong here, not in what a caller's own work raises."""
        with reading(self.path):
            found = parquet.iter_batches(num_rows, row_groups=row_groups, columns=columns, use_threads=False)
        while True:
            with reading(self.path):
                batch = next(found, None)
            if batch is None:
                return
            yield batch

    def columns(self, names: Collection[str]) -> list[str]:
        """The file's top-level columns that `arrays` needs for these leaves of the table."""
        return list(dict.fromkeys(leaf.column for leaf in self._leaves(names).values()))

    def arrays(self, batch: pa.RecordBatch, names: Collection[str]) -> dict[str, pa.Array]:
        """Those leaves that the file has or is partitioned by, by the table's names; an added field of a list of
        structs is null in each element."""
        wanted = self._leaves(names)
        found: dict[str, pa.Array] = {}
        for column in self.columns(names):
            found |= leaf_arrays(column, batch.column(column))
        arrays = {}
        for name, leaf in wanted.items():
            if name in self.leaf_in_file or name in self.whole_in_file:
                arrays[name] = found[leaf.name]
            else:
                arrays[name] = relist(found[leaf.name], pa.nulls(len(found[leaf.name].flatten())))
        alike = {name: pa.repeat(self.constants[name], batch.num_rows) for name in names if name in self.constants}
        return arrays | alike

    def _leaves(self, names: Collection[str]) -> dict[str, Leaf]:
        either = self.list_in_file | self.whole_in_file | self.leaf_in_file
        return {name: either[name] for name in names if name in either}


@dataclass(frozen=True)
class TableFiles:
    """Where a table's rows lie.

    name: for people.  kind: folder, file or iceberg.  schema: the table's columns, types that hold every file's values.
    notes: what a reader of the report must know about what was, and was not, taken in.
    table_format: the table of another format that the folder belongs to; None if there is none.
    """

    name: str
    kind: str
    files: tuple[DataFile, ...]
    schema: pa.Schema
    notes: tuple[str, ...] = ()
    table_format: str | None = None

    @property
    def leaves(self) -> list[Leaf]:
        return leaves_of(self.schema)

    @property
    def wholes(self) -> list[Leaf]:
        return wholes_of(self.schema)

    def is_required(self, leaf: Leaf) -> bool:
        """Whether no file can hold a null in it."""
        if leaf.name != leaf.column:
            return False
        in_files = [file.leaf_in_file.get(leaf.name) for file in self.files]
        return all(
            found is not None and not file.schema.field(found.column).nullable
            for file, found in zip(self.files, in_files)
        )


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Name the file in whatever goes wrong with its bytes."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: data file required, found nothing there; was it moved or expired?") from error
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        if "ncrypt" in text or "PARE" in text:
            raise _encrypted(path) from error
        found, todo = ("a packed", "unpack it") if path.endswith(PACKED_SUFFIXES) else ("a damaged", "restore it")
        raise ValueError(
            f"{path}: a readable Parquet file required, found {found} one ({text[:200]}); {todo} or leave it out"
        ) from error


def read_footer(path: str, stream: Any) -> pq.ParquetFile:
    """The opened file. Raises ValueError if some of its columns are encrypted under a plain footer.

    pyarrow 26 ends the process when it is asked for the metadata of such a column. A plain footer of an encrypted file
    is followed by a signature, which the length at the end of the file counts and the footer's own does not.
    """
    parquet = pq.ParquetFile(stream, pre_buffer=False)
    stream.seek(-TAIL_BYTES, 2)
    tail_bytes = int.from_bytes(stream.read(4), "little")
    if tail_bytes - parquet.metadata.serialized_size == SIGNATURE_BYTES:
        raise _encrypted(path)
    return parquet


def _encrypted(path: str) -> ValueError:
    return ValueError(
        f"{path}: an unencrypted Parquet file required, found an encrypted one; audit a decrypted copy of some files"
    )


def open_file(
    path: str,
    open_bytes: Callable[[], Any],
    size_bytes: int,
    *,
    ids: Callable[[pa.Schema], pa.Schema] | None = None,
    leaves: Sequence[Leaf] | None = None,
    wholes: Sequence[Leaf] = (),
) -> DataFile:
    """The file, its footer read.

    ids: gives a file's schema the ids that it has in the table.  leaves, wholes: of the table, found in the file by
    their ids; the file's own, by name, if None.
    """
    with reading(path), contextlib.closing(open_bytes()) as stream:
        schema = read_footer(path, stream).schema_arrow
    with_ids = ids(schema) if ids else schema
    own, own_wholes = leaves_of(with_ids), wholes_of(with_ids)
    if leaves is None:
        _check_names(path, own)
        return DataFile(
            path, open_bytes, schema, {leaf.name: leaf for leaf in own}, {}, size_bytes, {w.name: w for w in own_wholes}
        )
    by_id = {leaf.field_id: leaf for leaf in own}
    by_list = {leaf.list_id: leaf for leaf in own if leaf.shape is Shape.LIST}
    found = {leaf.name: by_id[leaf.field_id] for leaf in leaves if leaf.field_id in by_id}
    beside = {
        leaf.name: by_list[leaf.list_id] for leaf in leaves if leaf.shape is Shape.LIST and leaf.list_id in by_list
    }
    whole_by_id = {whole.field_id: whole for whole in own_wholes}
    whole = {one.name: whole_by_id[one.field_id] for one in wholes if one.field_id in whole_by_id}
    return DataFile(path, open_bytes, schema, found, beside, size_bytes, whole)


def united(name: str, kind: str, files: Sequence[DataFile]) -> TableFiles:
    """Files without a table around them: one schema over all; the columns in the order in which they are first met.

    Those of folders' names come last.
    """
    types: dict[str, pa.DataType] = {}
    first_file: dict[str, str] = {}
    for file in files:
        for column in file.schema:
            known = types.setdefault(column.name, column.type)
            first_file.setdefault(column.name, file.path)
            both = same_values(known, column.type)
            if both is None:
                raise ValueError(
                    f"{name}: one type per column required, found {column.name} as {known} in "
                    f"{first_file[column.name]} and as {column.type} in {file.path}; read files of one schema at a "
                    "time"
                )
            types[column.name] = both
    for column, kind in _partition_types(files).items():
        types.setdefault(column, kind)
    schema = pa.schema([pa.field(column, kind) for column, kind in types.items()])
    leaves = leaves_of(schema)
    matched = []
    for file in files:
        alike = {name: value.cast(types[name]) for name, value in file.constants.items() if name not in first_file}
        by_list = {leaf.list_id: leaf for leaf in file.leaf_in_file.values() if leaf.shape is Shape.LIST}
        beside = {leaf.name: by_list[leaf.list_id] for leaf in leaves if leaf.list_id in by_list}
        matched.append(replace(file, list_in_file=beside, constants=alike))
    return with_notes(TableFiles(name, kind, tuple(matched), schema))


def _partition_types(files: Sequence[DataFile]) -> dict[str, pa.DataType]:
    """Types of the columns that stand in folder names; text if folders that were given apart differ in it."""
    found: dict[str, set[pa.DataType]] = {}
    for file in files:
        for name, value in file.constants.items():
            found.setdefault(name, set()).add(value.type)
    return {name: next(iter(kinds)) if len(kinds) == 1 else pa.string() for name, kinds in found.items()}


def with_notes(table: TableFiles) -> TableFiles:
    """The table with a note on leaves that some of its files lack. Raises ValueError if two leaves have one name."""
    _check_names(table.name, table.leaves)
    names = [leaf.name for leaf in table.leaves]
    missing = [
        name
        for name in names
        if any(name not in file.leaf_in_file and name not in file.constants for file in table.files)
    ]
    if not missing:
        return table
    note = f"columns that some files do not have count as null there: {', '.join(missing[:8])}"
    return replace(table, notes=(*table.notes, note))


def _check_names(where: str, leaves: Sequence[Leaf]) -> None:
    twice = sorted(name for name, times in Counter(leaf.name for leaf in leaves).items() if times > 1)
    if twice:
        raise ValueError(
            f"{where}: one column per name required, found {', '.join(twice)} more than once (a dot in a column's "
            "name counts as that of a field inside a struct); rename one of them"
        )
