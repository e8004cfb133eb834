"""Which column is request-level, item-level or a label.

One `EngagementSchema` describes a log from the first Parquet page to the model: the writer reads from it what may be
stored once per request, the loader what belongs on axis R and what on axis B. Pure Python on purpose: storage maps the
type names to Arrow and Iceberg, the loader maps them to torch.
"""

from __future__ import annotations

import enum
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import Any

SCALAR_TYPES = ("bool", "int32", "int64", "float32", "float64", "string", "timestamp")
"""Type names of scalars; `timestamp` is microseconds, UTC."""

STORED_TYPES = ("date", "time", "binary", "decimal(P,S)", "fixed(N)", "list<T>", "map<K,V>", 'struct<"name":T,...>')
"""Type names of what tables keep as it is, in its own Iceberg type, and no model reads; T, K, V are any type name."""

TypeTree = tuple[Any, ...]
"""A type name taken apart: ("int32",), ("decimal", 10, 2), ("list", T), ("map", K, V), ("struct", (name, T), ...)."""

NUMBER_WIDTH_BYTES = {"int32": 4, "int64": 8, "float32": 4, "float64": 8}
"""Bytes of one element of a sequence or vector column."""

USER_ID, REQUEST_ID, ITEM_ID, REQUEST_TS = "user_id", "request_id", "item_id", "request_ts"
KEYS = (USER_ID, REQUEST_ID, ITEM_ID)
HISTORY_END, TIMELINE_VERSION = "history_end", "timeline_version"
HISTORY_ITEM_ID, HISTORY_TS = "history_item_id", "history_ts"


class Level(enum.Enum):
    """Where a column's value is decided: `KEY` identifies, `REQUEST` is one value per request, the others per row."""

    KEY = "key"
    REQUEST = "request"
    ITEM = "item"
    LABEL = "label"


class Kind(enum.Enum):
    """Shape of one value: `SCALAR`; `SEQUENCE`, ragged, one element per history event; `VECTOR`, of fixed `width`."""

    SCALAR = "scalar"
    SEQUENCE = "sequence"
    VECTOR = "vector"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of an engagement log.

    dtype: a name of SCALAR_TYPES or STORED_TYPES; for sequences and vectors the element type, a number.
    width: elements per value of a VECTOR, else 0.
    doc: what the column means, with its unit; it becomes the column doc of the Iceberg tables.
    vocabulary: name of the table that says which key each id is of; empty if ids are the log's own, or hashes.
    computed: of a request-level column whose value follows from the request's history and time, by what
        (`reqdedup.arrays.recent_events`); a server computes it anew. Empty: it is a fact of its own.
    """

    name: str
    dtype: str
    level: Level
    doc: str = ""
    kind: Kind = Kind.SCALAR
    width: int = 0
    nullable: bool = False
    vocabulary: str = ""
    computed: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in SCALAR_TYPES:
            try:
                type_tree(self.dtype)
            except ValueError:
                raise ValueError(
                    f"column {self.name}: dtype must be one of {(*SCALAR_TYPES, *STORED_TYPES)}, found {self.dtype!r}"
                ) from None
        if self.kind is not Kind.SCALAR:
            if self.level is not Level.REQUEST:
                raise ValueError(
                    f"column {self.name}: a {self.kind.value} must be request-level, found {self.level.value}"
                )
            if self.dtype not in NUMBER_WIDTH_BYTES:
                raise ValueError(f"column {self.name}: a {self.kind.value} holds numbers, found {self.dtype!r}")
            if self.nullable:
                raise ValueError(f"column {self.name}: a {self.kind.value} cannot be null; store an empty one")
        if (self.kind is Kind.VECTOR) != (self.width > 0):
            raise ValueError(f"column {self.name}: width is for vectors and must be positive there, found {self.width}")

    @property
    def is_blob(self) -> bool:
        """True if one value is many numbers, stored as one binary value in the deduplicated form."""
        return self.kind is not Kind.SCALAR

    @property
    def is_number(self) -> bool:
        """True if a tensor can hold it: all but text and what is only stored; times count as numbers."""
        return self.dtype in SCALAR_TYPES and self.dtype != "string"

    @property
    def is_stored(self) -> bool:
        """True if its type is one of STORED_TYPES."""
        return self.dtype not in SCALAR_TYPES


@dataclass(frozen=True)
class EngagementSchema:
    """The columns of one engagement log, in table order.

    - the three int64 keys user_id, request_id, item_id are there, none null
    - `request_ts` is there, request-level
    - all sequence columns of a request have the same length
    """

    columns: tuple[Column, ...]

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        if twice:
            raise ValueError(f"engagement schema: every column once, found twice: {', '.join(twice)}")
        for key in KEYS:
            column = self._by_name.get(key)
            if column is None or column.level is not Level.KEY or column.dtype != "int64" or column.nullable:
                raise ValueError(f"engagement schema: {key} must be a non-null int64 at Level.KEY, found {column}")
        extra = [column.name for column in self.columns if column.level is Level.KEY and column.name not in KEYS]
        if extra:
            raise ValueError(f"engagement schema: the keys are {KEYS}, found also {extra}")
        request_ts = self._by_name.get(REQUEST_TS)
        if request_ts is None or request_ts.level is not Level.REQUEST or request_ts.dtype != "timestamp":
            raise ValueError(f"engagement schema: {REQUEST_TS} must be a request-level timestamp, found {request_ts}")

    def __getitem__(self, name: str) -> Column:
        if name not in self:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.names)}")
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def at(self, *levels: Level) -> tuple[Column, ...]:
        """The columns of these levels, in table order."""
        return tuple(column for column in self.columns if column.level in levels)

    @property
    def request_columns(self) -> tuple[Column, ...]:
        return self.at(Level.REQUEST)

    @property
    def row_columns(self) -> tuple[Column, ...]:
        """Item-level columns and labels: what differs per row, the item key left out."""
        return self.at(Level.ITEM, Level.LABEL)

    @property
    def labels(self) -> tuple[Column, ...]:
        return self.at(Level.LABEL)

    @property
    def blobs(self) -> tuple[Column, ...]:
        """Sequences and vectors: the columns that deduplication is about."""
        return tuple(column for column in self.columns if column.is_blob)

    @property
    def sequences(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.kind is Kind.SEQUENCE)

    def select(self, names: Iterable[str]) -> EngagementSchema:
        """The same schema with only these columns (the keys and request_ts must be among them)."""
        wanted = set(names)
        unknown = wanted - set(self.names)
        if unknown:
            raise ValueError(f"no such columns: {sorted(unknown)}; there are {', '.join(self.names)}")
        return EngagementSchema(tuple(column for column in self.columns if column.name in wanted))

    def with_columns(self, *columns: Column) -> EngagementSchema:
        return EngagementSchema(self.columns + columns)

    def to_json(self) -> str:
        """A stable text form; tables carry it in the property `reqdedup.schema`, so that they describe themselves."""
        return json_of_columns(self.columns)

    @classmethod
    def from_json(cls, text: str, *, where: str = "schema") -> EngagementSchema:
        """The schema of `to_json`. where: named in the ValueError for a text that is none."""
        return cls(columns_of_json(text, where=where))


def json_of_columns(columns: Iterable[Column]) -> str:
    """Columns as the list of objects in a table's property."""
    rows = [{**asdict(column), "level": column.level.value, "kind": column.kind.value} for column in columns]
    for row in rows:
        for name in ("vocabulary", "computed"):
            if not row[name]:  # a table without one is read by earlier versions too
                del row[name]
    return json.dumps(rows, separators=(",", ":"))


@cache
def type_tree(name: str) -> TypeTree:
    """A type name taken apart. Raises ValueError for what is none."""
    tree, rest = _type_tree(name)
    if rest:
        raise ValueError(f"a type name required, found {rest!r} behind one in {name!r}")
    return tree


def _type_tree(text: str) -> tuple[TypeTree, str]:
    """The tree of the type name that the text begins with, and the rest of the text."""
    found = re.match(r"(\w+)(?:\((\d+(?:,\d+)?)\)|(<))?", text)
    if found is None:
        raise ValueError(f"a type name required, found {text!r}")
    name, numbers, opens = found.groups()
    rest = text[found.end() :]
    if opens is None:
        widths = tuple(map(int, numbers.split(","))) if numbers else ()
        if len(widths) != {"decimal": 2, "fixed": 1}.get(name, 0):
            raise ValueError(f"decimal(P,S) or fixed(N) required, found {text!r}")
        if not widths and name not in (*SCALAR_TYPES, "date", "time", "binary"):
            raise ValueError(f"a type name required, found {name!r}")
        return (name, *widths), rest
    parts: list[Any] = []
    while not parts or rest.startswith(","):
        rest = rest[1:] if parts else rest
        if name == "struct":
            field, end = json.JSONDecoder().raw_decode(rest)
            tree, rest = _type_tree(rest[end + 1 :])
            parts.append((field, tree))
        else:
            tree, rest = _type_tree(rest)
            parts.append(tree)
    if not rest.startswith(">") or {"list": 1, "map": 2}.get(name, len(parts)) != len(parts) or name not in _NESTED:
        raise ValueError(f"list<T>, map<K,V> or struct required, found {text!r}")
    return (name, *parts), rest[1:]


_NESTED = ("list", "map", "struct")


def columns_of_json(text: str, *, where: str) -> tuple[Column, ...]:
    """Columns from the list of objects in a table's property. Raises ValueError naming `where` if it is none."""
    try:
        rows = json.loads(text)
        return tuple(Column(**{**row, "level": Level(row["level"]), "kind": Kind(row["kind"])}) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: a JSON list of columns required, found {text[:60]!r} ({type(error).__name__}: {error}); give it "
            "the value that it had, as older metadata files of the table have it"
        ) from error
