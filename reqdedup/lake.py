"""`rd.open(...)`: the verbs that people use, as methods of a lake and of its tables.

A thin layer. Every verb calls one function of a room below, which stays the place of its options, and refreshes what
must be fresh: no object here goes stale if another process writes. What spans rooms is composed here and in `ingest`
alone, for the command line and the graph too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup import storage
from reqdedup.display import ReportTable, counted
from reqdedup.distributed import Engine
from reqdedup.environment import LakePlace, find_lake
from reqdedup.ingest import IngestReport, append_log, ingest
from reqdedup.logs import LogReader, read_log
from reqdedup.logs.presets import Preset
from reqdedup.schema import Column, EngagementSchema
from reqdedup.storage import BucketJoin, Layout, TableSource, UserSample
from reqdedup.storage.features.checks import features_current
from reqdedup.storage.iceberg import catalogs
from reqdedup.storage.maintenance.deletion import check_deletion, user_array
from reqdedup.storage.maintenance.everywhere import UserDeletion, listed, users_scope
from reqdedup.storage.maintenance.namespace import list_tables, load_listed
from reqdedup.storage.maintenance.served_rows import requests_shown
from reqdedup.storage.read.feature_table import MAIN_TABLE_PROPERTY
from reqdedup.storage.write.rejects import rejects_identifier

if TYPE_CHECKING:
    from reqdedup.audit.report import AuditReport
    from reqdedup.convert import ColumnMapping, ConvertReport
    from reqdedup.sequences.namespace import NamespaceSequences
    from reqdedup.training import RequestLoader

LayoutName = Literal["arrival", "shuffled", "sorted", "sorted_large_pages", "by_request"]


def open(where: str | Path | None = None, *, warehouse: str | None = None, catalog: str | None = None) -> Lake:
    """The lake at a folder or a catalog's uri; by default that of the environment (`reqdedup.environment`).

    warehouse: location of new tables' files, for the uri of a server.  catalog: name in pyiceberg's configuration.
    Nothing is read or made yet. Raises ValueError for arguments or a reqdedup.toml that name no lake.
    """
    return Lake(find_lake(where, warehouse=warehouse, catalog=catalog))


class Lake:
    """The tables of one catalog. `place` says where it is and what decided that."""

    def __init__(self, place: LakePlace) -> None:
        self.place = place
        self._catalog: Catalog | None = None

    @property
    def catalog(self) -> Catalog:
        """pyiceberg's catalog. Raises ValueError if the SQLite file of an embedded one is not there."""
        database = self.place.database
        if database is not None and not database.exists():
            raise ValueError(
                f"a catalog required, found none at {database} ({self.place.said_by}); name one with --catalog-uri or "
                "rd.open(...), or make one with `reqdedup ingest` or `make run`"
            )
        return self.make()

    def make(self) -> Catalog:
        """The catalog, an embedded one made if it is not there."""
        if self._catalog is None:
            if self.place.database is not None:
                self.place.database.parent.mkdir(parents=True, exist_ok=True)
            self._catalog = catalogs.open_catalog(self.place.catalog_name, self.place.properties)
        return self._catalog

    def tables(self, namespace: str | None = None) -> ReportTable:
        """Every table, or those of a namespace: layout, rows, bytes, files and snapshot."""
        rows = list_tables(self.catalog, namespace)
        return ReportTable(f"{self.place.options}: {counted(rows.num_rows, 'table')}", rows)

    def table(self, name: str) -> EngagementTable:
        """The engagement table `namespace.name`. Raises ValueError if there is none, naming those that there are."""
        return EngagementTable(self, load_listed(self.catalog, name))

    def items(self, table: str, item_id: Iterable[int] | None = None) -> pa.Table:
        """item_id and item_key of all items that a table's ids may be of, by id; or of some, one row for each given.

        The key of an id that was never given is "". Raises ValueError if the ids are the log's own, or hashes.
        """
        source = self.table(table).source
        if (words := source.vocabulary) is None:
            its = "keys are in its column item_key" if "item_key" in source.schema else "ids are those of the log"
            raise ValueError(f"{table}: its items' {its}; dense ids of a vocabulary required")
        if item_id is None:
            return words.table().scan(selected_fields=("item_id", "item_key")).to_arrow().sort_by("item_id")
        ids = np.fromiter(item_id, np.int64)
        return pa.table({"item_id": ids, "item_key": pa.array(words.keys(ids), pa.string())})

    def sequences(self, namespace: str) -> NamespaceSequences:
        """The user sequences of a namespace: definitions, the timeline, histories of requests, the online store."""
        from reqdedup.sequences.namespace import NamespaceSequences

        return NamespaceSequences(namespace, self.make)

    def ingest(
        self,
        log: str | Path | LogReader,
        table: str,
        *,
        preset: Preset | None = None,
        mapping: Any = None,
        layout: LayoutName | Layout = "by_request",
        num_buckets: int | None = None,
        replace: bool = False,
        progress: Callable[[object], None] | None = None,
        engine: str | Engine | None = None,
        **options: Any,
    ) -> IngestReport:
        """Read a log into `table`, which then holds exactly its rows; those that cannot be read go beside it.

        preset, mapping, options: as of `reqdedup.logs.read_log`.  replace: also if the table has another form.
        num_buckets: partitions by user; by default those of the table, of a new one what fits the size of the log.
        engine: as of `storage.write`.
        Raises ValueError for a log, a mapping or a table that does not fit; then no table is new or changed.
        """
        rejects_identifier(table)  # refused before anything is read
        reader = log if isinstance(log, LogReader) else read_log(log, preset=preset, mapping=mapping, **options)
        return ingest(
            *(self.make(), table, reader, Layout(layout)),
            num_buckets=num_buckets,
            replace=replace,
            progress=progress,
            engine=engine,
        )

    def convert(
        self,
        source: str | Path | Sequence[str | Path] | Table,
        table: str,
        columns: ColumnMapping | Mapping[str, Any],
        *,
        layout: LayoutName | Layout | None = None,
        **options: Any,
    ) -> ConvertReport:
        """Make `table` from Parquet files or an Iceberg table; columns and options are those of `convert_table`."""
        from reqdedup.convert import ColumnMapping, convert_table, open_source

        mapping = columns if isinstance(columns, ColumnMapping) else ColumnMapping(**columns)
        rows = open_source(source, mapping)  # before a catalog is made
        catalog = self.catalog if options.get("append") else self.make()
        return convert_table(rows, catalog, table, mapping, layout=layout and Layout(layout), **options)

    def audit(self, source: str | Path | Sequence[str | Path] | Table, **options: Any) -> AuditReport:
        """What a table of yours would save: a name here, Parquet files, or any Iceberg table (see `audit_table`)."""
        from reqdedup.audit import audit_table

        is_name = isinstance(source, str) and "/" not in source and not Path(source).exists()
        return audit_table(load_listed(self.catalog, str(source)) if is_name else source, **options)

    def delete_user(
        self,
        user_ids: int | Iterable[int] | pa.Array | pa.ChunkedArray = (),
        *,
        keys: str | Iterable[str] = (),
        namespaces: str | Iterable[str] = (),
        tables: str | Iterable[str] = (),
        store: str | Path | None = None,
        impressions: str | Path | None = None,
        user_states: str | Path | None = None,
        online: str | Path | None = None,
        apply: bool = False,
        **options: Any,
    ) -> UserDeletion:
        """Delete users from all tables of some namespaces, or from some tables and what belongs to them.

        keys: original ids of a log with ids of text.  store, impressions, user_states: what servers keep outside the
        catalog, as `reqdedup serve` was told it.  online: folder of an online store of sequences. What is not given is
        named as not searched.
        apply: do it; without it what would go is said.
        options: drop_refs, erase, progress and engine of `storage.delete_user`. Raises ValueError if no user or place
        is named.
        """
        from reqdedup.logs.ids import hash_string
        from reqdedup.serving.deletion import ServedPlaces

        keys, namespaces, tables = listed(keys), listed(namespaces), listed(tables)
        if not (namespaces or tables):
            raise ValueError("namespaces or tables required, found neither; name where the users are to be deleted")
        searched, not_searched = users_scope(self.catalog, namespaces, tables)
        if isinstance(user_ids, (pa.Array, pa.ChunkedArray)):  # of which one by one comes out as scalars of Arrow
            user_ids = user_ids.to_pylist()
        ids = [*(user_ids if isinstance(user_ids, Iterable) else [user_ids]), *map(hash_string, keys)]
        served = ServedPlaces(
            store=None if store is None else str(store),
            impressions=None if impressions is None else Path(impressions),
            user_states=None if user_states is None else Path(user_states),
            online=None if online is None else Path(online),
        )
        served.check_searched(namespaces)
        users = user_array(ids)
        check_deletion(searched, users, keys, erase=bool(options.get("erase")))
        theirs = frozenset(users.tolist())
        requests = served.requests(theirs) | frozenset(requests_shown(searched, users).tolist())
        places = served.delete_clicks(requests, dry_run=not apply)
        reports = storage.delete_user(searched, ids, keys=keys, requests=requests, dry_run=not apply, **options)
        places += served.delete_rest(theirs, self.catalog, dry_run=not apply)
        return UserDeletion(reports, [*not_searched, *served.not_searched], dry_run=not apply, places=places)

    def __repr__(self) -> str:
        return f"<Lake {self.place.options}, named by {self.place.said_by}>"

    def _repr_html_(self) -> str:
        return self.tables()._repr_html_()


class EngagementTable:
    """One engagement table of a lake, always as it is now. `iceberg` is pyiceberg's table, `source` its rows."""

    def __init__(self, lake: Lake, table: Table) -> None:
        self.lake, self.name, self._table = lake, ".".join(table.name()), table
        storage.table_layout(table)  # an error if it is not one of ours

    @property
    def iceberg(self) -> Table:
        self._table.refresh()
        return self._table

    @property
    def source(self) -> TableSource:
        return TableSource(self.iceberg)

    @property
    def schema(self) -> EngagementSchema:
        return storage.table_schema(self.iceberg)

    def append(self, rows: Any, columns: ColumnMapping | Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Add rows in one commit: deduplicated batches (`storage.write`), or foreign ones described by `columns`.

        Raises ValueError for a log or a table whose items are told apart by other URL rules than those of this one.
        """
        if columns is not None:
            return self.lake.convert(rows, self.name, columns, append=True, **options)
        if isinstance(rows, LogReader):
            return append_log(self.iceberg, rows, **options)
        return storage.write(self.iceberg, rows, mode="append", **options)

    def report(self, *others: EngagementTable | str) -> ReportTable:
        """Bytes per column, beside those of other forms of the same rows and the limit."""
        tables = [self, *(one if isinstance(one, EngagementTable) else self.lake.table(one) for one in others)]
        rows = storage.compression_report({one.name: one.iceberg for one in tables})
        return ReportTable(f"compression of {', '.join(one.name for one in tables)}", rows)

    def join(
        self, features: EngagementTable | Table | str, *, how: Literal["left", "inner"] = "left", **options: Any
    ) -> BucketJoin:
        """Its rows with the columns of a feature table or another table, bucket by bucket (see `bucket_join`).

        Raises ValueError if features were computed before the table had other requests: those that are new have none.
        `storage.bucket_join` joins them all the same.
        """
        right = load_listed(self.lake.catalog, features) if isinstance(features, str) else features
        right, main = right.iceberg if isinstance(right, EngagementTable) else right, self.iceberg
        if right.properties.get(MAIN_TABLE_PROPERTY) == self.name:
            found = features_current(main, right)
            if not found.ok:
                raise ValueError(f"{self.name}: {found.detail}, or join them as they are with storage.bucket_join")
        return storage.bucket_join(main, right, how=how, **options)

    def feature(
        self, table: str, columns: Column | Sequence[Column], compute: Any, *, by_position: bool = False, **options: Any
    ) -> storage.FeatureReport:
        """Compute request-level features into the feature table `table`, beside those it has (`compute_features`)."""
        wanted = [columns] if isinstance(columns, Column) else list(columns)
        args = (self.lake.catalog, table, self.iceberg, wanted, compute)
        return storage.compute_features(*args, by_position=by_position, **options)

    def sample(self, **options: Any) -> UserSample:
        """Whole users, per stratum; itself readable, and its `report` says what was drawn (see `sample_users`)."""
        return storage.sample_users(self.iceberg, **options)

    def health(self, **options: bool) -> storage.TableHealth:
        """Files, skew and what to do about them (see `table_health`)."""
        return storage.table_health(self.iceberg, **options)

    def compact(self, **options: Any) -> storage.CompactReport:
        """Make the files of many appends those of one write; the old ones stay until they expire."""
        return storage.compact(self.iceberg, **options)

    def delete_user(self, user_ids: int | Iterable[int] = (), **options: Any) -> UserDeletion:
        """As `Lake.delete_user`, from this table, its feature tables and the rejected rows beside it."""
        return self.lake.delete_user(user_ids, tables=[self.name], **options)

    def loader(self, **options: Any) -> RequestLoader:
        """Batches for training (see `RequestLoader`); needs the `train` extra."""
        from reqdedup.training import RequestLoader

        return RequestLoader(self.source, **options)

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, every sequence a list of its own on each of them: for small tables, or some columns."""
        return self.source.to_arrow(columns)

    def to_polars(self, columns: Sequence[str] | None = None) -> Any:
        return self.source.to_polars(columns)

    def _title(self) -> str:
        source = self.source
        at = source.snapshot_id or "none yet"
        return f"{self.name} ({source.layout.value}): {source.num_rows:,} rows, snapshot {at}"

    def __repr__(self) -> str:
        return f"<EngagementTable {self._title()}>"

    def _repr_html_(self) -> str:
        head = ("column", "level", "kind", "dtype", "doc")
        rows = [(one.name, one.level.value, one.kind.value, one.dtype, one.doc) for one in self.schema.columns]
        return ReportTable(self._title(), pa.Table.from_pylist([dict(zip(head, row)) for row in rows]))._repr_html_()
