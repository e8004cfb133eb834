"""A table by reference: what a process without a catalog, and without a credential, needs to read and write its files.

    TableRef.of(table) -> pickle -> another process -> ref.open() -> Table, for its files alone

A reference carries the metadata of one moment, the current snapshot alone, and of the store's properties those that say
where it is. Who asks is up to the process that opens it: keys come from its environment or its role there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.io import FileIO, load_file_io
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata, TableMetadataUtil

from reqdedup.environment import variables
from reqdedup.masking import SECRET_NAMES, has_credentials
from reqdedup.storage.iceberg.paths import local_path

STORE_PROPERTIES = (
    "py-io-impl",
    "s3.endpoint",
    "s3.region",
    "s3.force-virtual-addressing",
    "s3.connect-timeout",
    "s3.request-timeout",
    "s3.role-arn",
    "s3.anonymous",
    "gcs.project-id",
    "gcs.service.host",
    "adls.account-name",
    "adls.account-host",
)
"""What pyiceberg must know of an object store beside who asks; no secrets."""

_STORES = ("s3.", "client.", "gcs.", "adls.")
_VARIABLES = {
    "s3.access-key-id": "AWS_ACCESS_KEY_ID",
    "s3.secret-access-key": "AWS_SECRET_ACCESS_KEY",
    "s3.session-token": "AWS_SESSION_TOKEN",
}
"""Where another process finds what a catalog gave this one."""


def store_properties(io: FileIO | None) -> dict[str, str]:
    """Where a FileIO's store is, without who asks."""
    properties: Mapping[str, Any] = {} if io is None else io.properties
    return {name: str(properties[name]) for name in STORE_PROPERTIES if name in properties}


def open_store(store: Mapping[str, str], location: str) -> FileIO:
    """A FileIO for the files under `location`; credentials are those of this process (AWS_ACCESS_KEY_ID and so on)."""
    return load_file_io(dict(store), location)


@dataclass(frozen=True, kw_only=True)
class TableRef:
    """A table as it was, without catalog and credentials; equal references open equal tables.

    name: parts of its identifier.  metadata: Iceberg's table metadata as JSON, with the current snapshot alone.
    metadata_location: of the whole metadata, for messages.  store: properties that say where its files are.
    """

    name: tuple[str, ...]
    metadata: str = field(repr=False)
    metadata_location: str
    store: dict[str, str]

    @classmethod
    def of(cls, table: Table) -> TableRef:
        """Raises ValueError if a property of the table holds a credential: it would travel with every task."""
        for name, value in table.properties.items():
            if SECRET_NAMES.search(name) or has_credentials(value):
                raise ValueError(
                    f"{'.'.join(table.name())}: properties without credentials required, found {name}; remove it from "
                    "the table"
                )
        return cls(
            name=table.name(),
            metadata=_of_one_moment(table.metadata).model_dump_json(by_alias=True),
            metadata_location=table.metadata_location,
            store=store_properties(table.io),
        )

    def open(self) -> Table:
        """The table: it reads and writes files, and has no catalog that could commit or refresh it."""
        metadata = TableMetadataUtil.parse_raw(self.metadata)
        io = open_store(self.store, metadata.location)
        return Table(self.name, metadata, self.metadata_location, io, NoopCatalog("reference"))


def _of_one_moment(metadata: TableMetadata) -> TableMetadata:
    current = metadata.current_snapshot()
    return metadata.model_copy(
        update={
            "snapshots": [] if current is None else [current],
            "snapshot_log": [],
            "metadata_log": [],
            "refs": {
                name: ref for name, ref in metadata.refs.items() if current and ref.snapshot_id == current.snapshot_id
            },
            "statistics": [],
            "partition_statistics": [],
        }
    )


class PortableTable:
    """The table itself in this process, and its reference on the way to another: what a task's work holds.

    Raises ValueError, when it is pickled, if the store's keys are no variables of the environment: another process
    would have none.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __getstate__(self) -> TableRef:
        check_keys(".".join(self.table.name()), self.table.location(), self.table.io)
        return TableRef.of(self.table)

    def __setstate__(self, reference: TableRef) -> None:
        self.table = reference.open()


def check_keys(name: str, location: str, io: FileIO) -> None:
    """Raise ValueError if the catalog, or its configuration, gave this process keys that another has to find itself.

    name: what is to be read, or written.  location: of its files, which `io` opens.
    """
    if local_path(location) is not None:
        return
    found = variables()
    given = [
        key
        for key, value in io.properties.items()
        if key.startswith(_STORES) and SECRET_NAMES.search(key) and found.get(_VARIABLES.get(key, "")) != value
    ]
    if given:
        raise ValueError(
            f"{name}: keys of its store that other processes have too required "
            f"({', '.join(_VARIABLES.values())}, or a role of the machine), found {', '.join(sorted(given))} of the "
            "catalog, which no task carries; set the variables, or choose engine='inline'"
        )
