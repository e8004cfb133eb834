"""Which catalog and which tables a subcommand means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from reqdedup.cli.options import Options
from reqdedup.cli.output import note

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

    from reqdedup.lake import Lake


def lake_of(arguments: Options, *, make: bool = False) -> Lake:
    """The lake that --catalog, or --catalog-uri and --warehouse, name; else the one that `reqdedup.environment` finds.

    make: it is going to be made if it is not there yet; unless it was named, say so.
    """
    from reqdedup import lake

    if arguments.catalog and (arguments.catalog_uri or arguments.warehouse):
        raise ValueError("--catalog names a configured catalog: leave --catalog-uri and --warehouse out beside it")
    found = lake.open(arguments.catalog_uri, catalog=arguments.catalog, warehouse=arguments.warehouse)
    database = found.place.database
    if make and database is not None and not (database.exists() or arguments.catalog_uri):
        note(f"{arguments.command}: making a new catalog, {database}; --catalog-uri or --catalog name another")
    return found


def open_catalog(arguments: Options, *, make: bool = False) -> Catalog:
    """The catalog of that lake. make: an embedded catalog that is not there yet; else that is an error."""
    found = lake_of(arguments, make=make)
    return found.make() if make else found.catalog


def describe_catalog(arguments: Options) -> str:
    """The options that open the same catalog again from any folder, without a password."""
    return lake_of(arguments).place.options


def check_table_name(name: str) -> None:
    """Raise ValueError for a name that a new table of engagements cannot have: without a namespace,
    or that of rejects."""
    from reqdedup.storage.write.rejects import rejects_identifier

    if "." not in name.strip("."):
        raise ValueError(
            f"a table is named as namespace.table, found {name!r}; for example lake.{name.strip('.') or 't'}"
        )
    rejects_identifier(name)


def load_table(catalog: Catalog, name: str) -> Table:
    """The table of this name. Raises ValueError if there is none, naming those that there are."""
    from reqdedup.storage.maintenance.namespace import load_listed

    return load_listed(catalog, name)


def load_tables(catalog: Catalog, names: Iterable[str]) -> list[Table]:
    """The tables of these names, each once."""
    return [load_table(catalog, name) for name in dict.fromkeys(names)]


def snapshot_of(catalog: Catalog, name: str) -> int | None:
    """Id of the table's present snapshot; None if there is no such table, or nothing in it."""
    current = catalog.load_table(name).current_snapshot() if catalog.table_exists(name) else None
    return None if current is None else current.snapshot_id


def kept_of_write(catalog: Catalog, name: str, before: int | None) -> str:
    """What an interrupt left of a command that writes one table in one commit."""
    now = snapshot_of(catalog, name)
    if now != before:
        return f"the commit had landed: {name} has the new rows (snapshot {now})"
    is_there = catalog.table_exists(name)
    state = f"{name} is as it was" if before else f"{name} is there, and empty" if is_there else f"{name} was not made"
    return f"nothing was kept: {state}, and files that were written are removed; run it again from the start"
