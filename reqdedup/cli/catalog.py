"""Which catalog and which tables a subcommand means."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import argparse

    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

DEFAULT_DATA_DIR = Path("warehouse/data")


def open_catalog(arguments: argparse.Namespace, *, make: bool = False) -> Catalog:
    """The catalog of --catalog, or of --catalog-uri and --warehouse; by default the embedded one.

    make: an embedded catalog that is not there yet, which is said; else that is an error.
    """
    from reqdedup.storage.iceberg import catalogs

    if arguments.catalog:
        if arguments.catalog_uri or arguments.warehouse:
            raise ValueError("--catalog names a configured catalog: leave --catalog-uri and --warehouse out beside it")
        return catalogs.open_catalog(arguments.catalog)
    uri = arguments.catalog_uri or f"sqlite:///{DEFAULT_DATA_DIR.absolute() / 'catalog.db'}"
    warehouse = arguments.warehouse
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///")).absolute()
        if make:
            if not (database.exists() or arguments.catalog_uri):
                print(
                    f"reqdedup {arguments.command}: making a new catalog, {database}; --catalog-uri or --catalog name another",
                    file=sys.stderr,
                )
            database.parent.mkdir(parents=True, exist_ok=True)
        elif not database.exists():
            raise ValueError(
                f"a catalog required, found none at {database}; name one with --catalog-uri, or make one with "
                "`reqdedup ingest` or `make run`"
            )
        warehouse = warehouse or str(database.parent / "tables")
    if not warehouse:
        raise ValueError(
            "--catalog-uri of a server needs --warehouse, the folder or s3:// location of the tables' files"
        )
    if "://" not in warehouse:
        warehouse = f"file://{Path(warehouse).absolute()}"
    return catalogs.open_catalog(properties={"uri": uri, "warehouse": warehouse})


def describe_catalog(arguments: argparse.Namespace) -> str:
    """The options that open the same catalog again from any folder, without a password."""
    if arguments.catalog:
        return f"--catalog {arguments.catalog}"
    uri = arguments.catalog_uri or f"sqlite:///{DEFAULT_DATA_DIR.absolute() / 'catalog.db'}"
    if uri.startswith("sqlite:///"):
        return f"--catalog-uri sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    parts = urlsplit(uri)
    return f"--catalog-uri {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check_table_name(name: str) -> None:
    """Raise ValueError for a name that a new table of engagements cannot have: without a namespace, or that of rejects."""
    from reqdedup.storage.write.rejects import rejects_identifier

    if "." not in name.strip("."):
        raise ValueError(
            f"a table is named as namespace.table, found {name!r}; for example lake.{name.strip('.') or 't'}"
        )
    rejects_identifier(name)


def load_table(catalog: Catalog, name: str) -> Table:
    """The table of this name. Raises ValueError where there is none, naming those that there are."""
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

    if "." not in name.strip("."):
        raise ValueError(f"a table is named as namespace.table, found {name!r}; {_tables_there(catalog)}")
    try:
        return catalog.load_table(name)
    except (NoSuchTableError, NoSuchNamespaceError):
        raise ValueError(f"table {name} is not in the catalog; {_tables_there(catalog)}") from None


def load_tables(catalog: Catalog, names: Iterable[str]) -> list[Table]:
    """The tables of these names, each once."""
    return [load_table(catalog, name) for name in dict.fromkeys(names)]


def _tables_there(catalog: Catalog) -> str:
    names = [".".join(name) for namespace in catalog.list_namespaces() for name in catalog.list_tables(namespace)]
    if names:
        return f"there are: {', '.join(sorted(names)[:20])}"
    return (
        f"there are none under the catalog name {catalog.name!r}: run `reqdedup ingest` first, or name a SQL catalog as those "
        "who wrote to it did (`make run`: reqdedup)"
    )
