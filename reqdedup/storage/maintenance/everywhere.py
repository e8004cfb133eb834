"""Which tables a user is to be deleted from, so that nothing that belongs together is forgotten,
and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup.display import ReportTable, counted
from reqdedup.storage.maintenance.deletion import DeletionReport
from reqdedup.storage.maintenance.namespace import feature_tables_of, load_listed, tables_of
from reqdedup.storage.read.feature_table import MAIN_TABLE_PROPERTY, is_feature_table

ELSEWHERE = (
    "the log files that were ingested, which bring the users back with the next ingest",
    "models that were trained on the users' rows, and files that were exported",
)


def listed(names: str | Iterable[str]) -> list[str]:
    """The names; a text is one of them, not its letters."""
    return [names] if isinstance(names, str) else list(names)


def users_scope(catalog: Catalog, namespaces: Iterable[str], names: Iterable[str]) -> tuple[list[Table], list[str]]:
    """Tables that users are to be deleted from, and names of what else may hold them.

    These are all tables of the namespaces, and the named ones with their main table, feature tables and rejected rows.
    Raises ValueError for a namespace or table that is not there.
    """
    tables: dict[str, Table] = {}
    beside: set[str] = set()
    namespaces = list(dict.fromkeys(namespaces))
    for namespace in namespaces:
        found = tables_of(catalog, namespace)
        tables |= {".".join(table.name()): table for table in found.with_users}
        beside |= {".".join(other.name()) for other in found.others} | set(found.unreadable)
    for name in dict.fromkeys(names):
        together = [load_listed(catalog, name)]
        if is_feature_table(together[0]):  # its rows follow its main table
            together.append(load_listed(catalog, together[0].properties[MAIN_TABLE_PROPERTY]))
        together += [side for main in together if not is_feature_table(main) for side in feature_tables_of(main)]
        for namespace in dict.fromkeys(".".join(one.name()[:-1]) for one in tuple(together)):
            around = tables_of(catalog, namespace)
            together += around.rejects
            beside |= {".".join(one.name()) for one in (*around.with_users, *around.others)} | set(around.unreadable)
        tables |= {".".join(one.name()): one for one in together}
    not_searched = [f"table {name}" for name in sorted(beside - set(tables))]
    searched = {name.rpartition(".")[0] for name in tables} | set(namespaces)
    others = sorted({".".join(name) for name in catalog.list_namespaces()} - searched)
    return list(tables.values()), [*not_searched, *(f"namespace {name}" for name in others), *ELSEWHERE]


@dataclass(frozen=True, kw_only=True)
class PlaceReport:
    """What was found outside the catalog. num_records: deleted, or to be.  num_held: of them, what a server is writing
    and nobody else may change; delete again once it has closed its file."""

    place: str
    num_records: int
    num_held: int = 0


@dataclass(frozen=True)
class UserDeletion:
    """What a deletion did, or without `apply` would do.

    reports: of every table that was searched.  places: of what serving keeps beside them, as far as it was named.
    not_searched: what else there is, and may be.
    """

    reports: list[DeletionReport]
    not_searched: list[str]
    dry_run: bool
    places: list[PlaceReport] = field(default_factory=list)

    @property
    def is_found(self) -> bool:
        return any(report.rows or report.held_by for report in self.reports) or any(
            place.num_records for place in self.places
        )

    def __repr__(self) -> str:
        return repr(self.shown())

    def _repr_html_(self) -> str:
        return self.shown()._repr_html_()

    def shown(self) -> ReportTable:
        names = ("table", "rows", "requests", "files", "old_bytes", "untouched", "snapshots")
        rows = pa.Table.from_pylist(
            [
                {**{name: getattr(report, name) for name in names}, "held_by": ", ".join(report.held_by)}
                for report in self.reports
            ]
            + [{"table": place.place, "rows": place.num_records} for place in self.places]
        )
        would = "would go: apply=True does it" if self.dry_run else "gone"
        held = [f"{ref} of {report.table}" for report in self.reports for ref in report.held_by]
        held += [f"{counted(one.num_held, 'open record')} in {one.place}" for one in self.places if one.num_held]
        held += [
            f"maybe {counted(one.snapshots, 'old snapshot')} of {one.table}" for one in self.reports if one.snapshots
        ]
        still = f"; still held by {', '.join(held)} (drop_refs=True, erase=True)" if held and not self.dry_run else ""
        return ReportTable(f"users, {would}{still}; not searched: {', '.join(self.not_searched)}", rows)
