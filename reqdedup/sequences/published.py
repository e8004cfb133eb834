"""Definitions that are published: a table of them, and what a change would mean.

A row is one text of one definition; nothing is ever changed or deleted there, so that it is also the history. What
decides the values of a sequence changes with a new version alone; owner, retention and stage at any time.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.types import IntegerType, NestedField, StringType, TimestamptzType

from reqdedup.sequences.definition import FREE_FIELDS, EventLog, SequenceDefinition, check_together, computed_of
from reqdedup.sequences.executors import load_executor
from reqdedup.sequences.tables import check_log, continue_log, load_raw
from reqdedup.storage.iceberg.errors import ConflictError, is_conflict
from reqdedup.storage.iceberg.names import make_namespace

DEFINITIONS_TABLE = "sequence_definitions"
_SCHEMA = Schema(
    NestedField(1, "name", StringType(), required=True, doc="name of the sequence"),
    NestedField(2, "version", IntegerType(), required=True, doc="of what it holds, from 1"),
    NestedField(3, "fingerprint", StringType(), required=True, doc="of what decides its values"),
    NestedField(4, "owner", StringType(), required=True, doc="who answers for it"),
    NestedField(5, "stage", StringType(), required=True, doc="draft, shadow, production or retired"),
    NestedField(6, "since", TimestamptzType(), required=True, doc="when it was published, UTC"),
    NestedField(7, "definition", StringType(), required=True, doc="canonical JSON of the whole definition"),
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What publishing a definition would change. differences: one line each; empty if it is published as it is.

    refused: why it cannot be published; empty if it can.
    """

    name: str
    differences: tuple[str, ...]
    refused: str = ""

    @property
    def ok(self) -> bool:
        return not self.refused


@dataclass(frozen=True)
class DefinitionFile:
    """What a Python file defines: the log's events and the sequences over them."""

    log: EventLog
    definitions: tuple[SequenceDefinition, ...] = field(default=())


def read_definitions(path: str | Path) -> DefinitionFile:
    """Run a Python file and take the `EventLog` and every `SequenceDefinition` among its names. Modules beside the file
    can be imported as it runs, those of its executors too.

    Raises ValueError unless it is there and has one log, and definitions that fit it and each other.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: a Python file with definitions required, found no file")
    with _importing_from(Path(path).resolve().parent):
        try:
            found = runpy.run_path(str(path))
        except ValueError:  # of a definition in it
            raise
        except Exception as error:
            raise ValueError(f"{path}: Python that runs required, found {type(error).__name__}: {error}") from error
        for computed in computed_of(one for one in found.values() if isinstance(one, SequenceDefinition)):
            load_executor(computed)
    logs = [value for value in found.values() if isinstance(value, EventLog)]
    definitions = [value for value in found.values() if isinstance(value, SequenceDefinition)]
    if len(logs) != 1:
        raise ValueError(f"{path}: one EventLog required, found {len(logs)}")
    check_together(logs[0], definitions)
    return DefinitionFile(logs[0], tuple(definitions))


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def published_definitions(catalog: Catalog, namespace: str) -> dict[str, SequenceDefinition]:
    """Name -> definition that holds now: of the newest version, its latest text."""
    identifier = f"{namespace}.{DEFINITIONS_TABLE}"
    if not catalog.table_exists(identifier):
        return {}
    rows = catalog.load_table(identifier).scan(selected_fields=("version", "since", "definition")).to_arrow()
    newest: dict[str, SequenceDefinition] = {}
    for row in sorted(rows.to_pylist(), key=lambda row: (row["version"], row["since"])):
        definition = SequenceDefinition.from_json(row["definition"])
        newest[definition.name] = definition
    return newest


def check_definitions(
    definitions: Iterable[SequenceDefinition], published: dict[str, SequenceDefinition]
) -> list[Change]:
    """What publishing each of these would change."""
    return [_change(definition, published.get(definition.name)) for definition in definitions]


def publish_definitions(
    catalog: Catalog, namespace: str, log: EventLog, definitions: Sequence[SequenceDefinition]
) -> list[Change]:
    """Make these the definitions that hold; what changed. Those that are published as they are stay.

    Types and columns that the log has beyond what was delivered so far are taken up, and are the first of the changes.
    Raises ValueError, and changes nothing, if one of them changes what a published version holds, or if the log lacks
    something of what was delivered.
    """
    check_together(log, definitions)
    of_log = check_log(catalog, namespace, log)
    changes = check_definitions(definitions, published_definitions(catalog, namespace))
    refused = [change.refused for change in changes if not change.ok]
    if refused:
        raise ValueError("; ".join(refused))
    if of_log:
        continue_log(catalog, namespace, load_raw(catalog, namespace), log)
    now = datetime.now(UTC)
    rows = [
        {
            "name": definition.name,
            "version": definition.version,
            "fingerprint": definition.fingerprint,
            "owner": definition.owner,
            "stage": definition.stage,
            "since": now,
            "definition": definition.to_json(),
        }
        for definition, change in zip(definitions, changes)
        if change.differences
    ]
    if rows:
        make_namespace(catalog, namespace)
        table = catalog.create_table_if_not_exists(
            f"{namespace}.{DEFINITIONS_TABLE}", _SCHEMA, properties={"commit.retry.num-retries": "0"}
        )
        try:
            table.append(pa.Table.from_pylist(rows, schema_to_pyarrow(_SCHEMA, include_field_ids=False)))
        except Exception as error:
            if is_conflict(error):
                raise ConflictError(
                    f"{namespace}.{DEFINITIONS_TABLE}: another process published; check again"
                ) from error
            raise
    return [*log_changes(of_log), *changes]


def log_changes(added: Sequence[str]) -> list[Change]:
    """What publishing would add to the log, as `check_log` says it; none if that is nothing."""
    return [Change(name="event log", differences=tuple(added))] if added else []


def _change(new: SequenceDefinition, old: SequenceDefinition | None) -> Change:
    if old is None:
        return Change(name=new.name, differences=(f"{new.name}: new, version {new.version}",))
    differences = tuple(
        f"{new.name}: {name}: {_difference(getattr(old, name), getattr(new, name))}"
        for name in new.__dataclass_fields__
        if getattr(old, name) != getattr(new, name)
    )
    refused = ""
    if new.version < old.version:
        refused = f"definition {new.name}: version {old.version} or later required, found {new.version}"
    elif new.fingerprint != old.fingerprint and new.version == old.version:
        changed = [line for line in differences if line.split(": ")[1] not in FREE_FIELDS]
        refused = (
            f"definition {new.name}: version {old.version + 1} required for a change of what it holds, found version "
            f"{new.version} again ({'; '.join(changed)})"
        )
    return Change(name=new.name, differences=differences, refused=refused)


def _difference(old: object, new: object) -> str:
    """Of lists what is gone (-) and new (+), if that is all; else the whole."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        gone, added = ([one for one in some if one not in other] for some, other in ((old, new), (new, old)))
        if [one for one in old if one in new] == [one for one in new if one in old]:
            return ", ".join([*(f"- {one}" for one in gone), *(f"+ {one}" for one in added)])
    return f"{_said(old)} -> {_said(new)}"


def _said(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
