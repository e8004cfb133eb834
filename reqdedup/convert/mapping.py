"""What a team says of its table, and the engagement schema that follows: a target column for every leaf.

user = "member_id"          string: int64 hash, original kept in user_key (request: request_key)
item = "sku"                string: dense id, of which the table `items` has the key; or as a user, if it is hashed
history.item_id  list<int>  sequence `history_item_id`
embedding  fixed list       vector
country  string             scalar, at the level that the audit's sample found, or that was given
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from reqdedup.dedup.history_time import UNIT_DIGITS
from reqdedup.schema import (
    HISTORY_ITEM_ID,
    HISTORY_TS,
    ITEM_ID,
    REQUEST_ID,
    REQUEST_TS,
    SCALAR_TYPES,
    USER_ID,
    Column,
    EngagementSchema,
    Kind,
    Level,
)
from reqdedup.storage.foreign.leaves import Leaf, Shape
from reqdedup.storage.foreign.source import RowSource

TIME_UNITS = tuple(UNIT_DIGITS)
ALWAYS_SEQUENCES = (HISTORY_ITEM_ID, HISTORY_TS)
ORIGINALS = {USER_ID: "user_key", REQUEST_ID: "request_key", ITEM_ID: "item_key"}


@dataclass(frozen=True, kw_only=True)
class ColumnMapping:
    """Columns of the source by what they mean; names are those of leaves, with dots inside structs.

    user, item: one column each.  request: one, or several that together tell requests apart.  time: of the request.
    time_unit: of a time that is a whole number (s, ms, us, ns since 1970).  labels: what is to be predicted.
    history_time_unit: of the numbers in the sequence that becomes history_ts, by default ms; lists of timestamps carry
    their own. In the new table they are whole milliseconds.
    levels: of columns, where they are known; the others are inferred from a sample.  rename: target
        name by source name.
    ids: further columns of string ids, lists too, that become numbers as a string item does: of the same vocabulary,
        or their hash if items are hashed or numbers.  exclude: left out.
    hash_items: whether a string item becomes its int64 hash, and not a dense id.
    vectors: width of the lists that are vectors; None means lists of a fixed size, and lists of fractions that have one
    length in the sample. Other lists are sequences, which must all be of one length in a request.
    """

    user: str
    request: str | Sequence[str]
    item: str
    time: str
    time_unit: str | None = None
    history_time_unit: str | None = None
    labels: Sequence[str] = ()
    levels: Mapping[str, Level] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    ids: Sequence[str] = ()
    exclude: Sequence[str] = ()
    hash_items: bool = False
    vectors: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for name in ("time_unit", "history_time_unit"):
            unit = getattr(self, name)
            if unit is not None and unit not in TIME_UNITS:
                raise ValueError(f"{name}: one of {', '.join(TIME_UNITS)} required, found {unit!r}")
        if not isinstance(self.hash_items, bool):
            raise ValueError(f"hash_items: true or false required, found {self.hash_items!r}")
        if not self.request_names:
            raise ValueError("request: at least one column required, found none")

    @property
    def request_names(self) -> tuple[str, ...]:
        return (self.request,) if isinstance(self.request, str) else tuple(self.request)

    def target_name(self, leaf: str) -> str:
        """Name in the new table of a column that is no key."""
        return self.rename.get(leaf, leaf.replace(".", "_"))

    @property
    def named(self) -> tuple[str, ...]:
        """Every source column that is mentioned."""
        return (
            *(self.user, *self.request_names, self.item, self.time),
            *(*self.labels, *self.levels, *self.rename, *self.ids, *self.exclude, *(self.vectors or ())),
        )


class Conversion(enum.Enum):
    """How a target column is made of its source.

    `PLAIN`, values as they are; `HASH`, the int64 hash of ids; `ITEM`, the ids of a vocabulary; `TIME`; `HISTORY_TIME`,
    lists of times in milliseconds.
    """

    PLAIN = "plain"
    HASH = "hash"
    ITEM = "item"
    TIME = "time"
    HISTORY_TIME = "history_time"


@dataclass(frozen=True)
class TargetColumn:
    """column: of the engagement schema.  sources: the leaves it is made of; several only for a composite key."""

    column: Column
    sources: tuple[str, ...]
    conversion: Conversion


def check_mapping(source: RowSource, mapping: ColumnMapping) -> None:
    """Raise ValueError for a column that is not there, and for key columns that cannot be keys."""
    for name in mapping.named:
        if name in source.leaves or (name in mapping.exclude and name in source.skipped):
            continue
        hint = ", nested too deep or without a type" if name in source.skipped else ""
        raise ValueError(
            f"{source.name}: column {name} required{hint}, found {', '.join(source.leaves)}; name a column that is "
            "there"
        )
    fixed = {mapping.user: USER_ID, mapping.item: ITEM_ID, mapping.time: REQUEST_TS}
    if len(mapping.request_names) == 1:
        fixed[mapping.request_names[0]] = REQUEST_ID
    for name in sorted(set(mapping.rename) & set(fixed)):
        raise ValueError(
            f"{source.name}: column {name} becomes {fixed[name]} and cannot be renamed; leave it out of rename"
        )
    keys = [source.leaves[name] for name in dict.fromkeys((mapping.user, *mapping.request_names, mapping.item))]
    wrong = [
        f"{leaf.name} ({leaf.shape.value} {leaf.type})"
        for leaf in keys
        if leaf.shape is not Shape.SCALAR or not (_is_text(leaf.type) or pa.types.is_integer(leaf.type))
    ]
    if wrong:
        raise ValueError(
            f"{source.name}: key columns of whole numbers, strings or UUIDs required, found {', '.join(wrong)}; cast "
            "them in the source"
        )
    leaf = source.leaves[mapping.time]
    is_time = pa.types.is_timestamp(leaf.type) or pa.types.is_date(leaf.type)
    if leaf.shape is not Shape.SCALAR or not (is_time or (pa.types.is_integer(leaf.type) and mapping.time_unit)):
        raise ValueError(
            f"{source.name}: time column {mapping.time} of timestamps required, or of whole numbers and their unit, "
            f"found {leaf.shape.value} "
            f"{leaf.type}{'' if mapping.time_unit else ' and no unit; name it with time_unit (--time-unit)'}"
        )


def plan_columns(
    source: RowSource,
    mapping: ColumnMapping,
    levels: Mapping[str, Level],
    widths: Mapping[str, int],
    vocabulary: str = "",
) -> tuple[TargetColumn, ...]:
    """Target columns in table order: keys, request time, request-level, item-level, labels.

    levels: of every leaf that is neither key nor label.  widths: elements of the lists that are vectors.
    vocabulary: name of the table that gives ids to items that are texts; if there is none, they are hashed.
    Raises ValueError for types that have no place, lists that differ per row, and names that meet.
    """
    if not _is_text(source.leaves[mapping.item].type):
        vocabulary = ""
    columns = [*_keys(source, mapping, vocabulary)]
    used = {mapping.user, mapping.item, mapping.time, *mapping.exclude}
    if len(mapping.request_names) == 1:
        used |= set(mapping.request_names)
    rest = [leaf for leaf in source.leaves.values() if leaf.name not in used and leaf.name not in mapping.labels]
    wanted = [(leaf, levels[leaf.name], widths.get(leaf.name, 0)) for leaf in rest]
    wanted += [(source.leaves[name], Level.LABEL, 0) for name in mapping.labels]
    planned, errors = [], []
    for leaf, level, width in wanted:
        try:
            planned.append(_column(source, mapping, leaf, level, width, vocabulary))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError(f"{source.name}: {'; '.join(errors)}")
    order = [Level.KEY, Level.REQUEST, Level.ITEM, Level.LABEL]
    columns = sorted([*columns, *planned], key=lambda target: order.index(target.column.level))
    by_name: dict[str, TargetColumn] = {}
    for target in columns:
        other = by_name.setdefault(target.column.name, target)
        if other is not target:
            raise ValueError(
                f"{source.name}: one target column per name required, found {target.column.name} for "
                f"{other.sources[0]} and for {target.sources[0]}; rename or exclude one of them"
            )
    if mapping.history_time_unit and not any(target.conversion is Conversion.HISTORY_TIME for target in columns):
        raise ValueError(
            f"{source.name}: history_time_unit is of lists that are named {HISTORY_TS}, found none; name the lists of "
            f"times with rename (--rename COLUMN={HISTORY_TS}), or leave the unit out"
        )
    return tuple(columns)


def engagement_schema(columns: Sequence[TargetColumn]) -> EngagementSchema:
    return EngagementSchema(tuple(target.column for target in columns))


def _keys(source: RowSource, mapping: ColumnMapping, vocabulary: str) -> list[TargetColumn]:
    columns = []
    for target, names in ((USER_ID, (mapping.user,)), (REQUEST_ID, mapping.request_names), (ITEM_ID, (mapping.item,))):
        if target == ITEM_ID and vocabulary:
            column = Column(name=target, dtype="int64", level=Level.KEY, doc=mapping.item, vocabulary=vocabulary)
            columns.append(TargetColumn(column, tuple(names), Conversion.ITEM))
            continue
        is_hashed = len(names) > 1 or _is_text(source.leaves[names[0]].type)
        doc = f"{'hash of ' if is_hashed else ''}{', '.join(names)}"
        column = Column(name=target, dtype="int64", level=Level.KEY, doc=doc)
        columns.append(TargetColumn(column, tuple(names), Conversion.HASH if is_hashed else Conversion.PLAIN))
        if is_hashed and len(names) == 1:
            level = Level.ITEM if target == ITEM_ID else Level.REQUEST
            original = Column(name=ORIGINALS[target], dtype="string", level=level, doc=names[0])
            columns.append(TargetColumn(original, tuple(names), Conversion.PLAIN))
    time = Column(name=REQUEST_TS, dtype="timestamp", level=Level.REQUEST, doc=mapping.time)
    return [*columns, TargetColumn(time, (mapping.time,), Conversion.TIME)]


def _column(
    source: RowSource, mapping: ColumnMapping, leaf: Leaf, level: Level, width: int, vocabulary: str
) -> TargetColumn:
    name = mapping.target_name(leaf.name)
    is_id = leaf.name in mapping.ids and _is_text(leaf.type)
    if not is_id:
        vocabulary = ""
    dtype = "int32" if vocabulary else "int64" if is_id else scalar_type(leaf.type)
    is_list = leaf.shape is Shape.LIST
    is_history_time = is_list and name == HISTORY_TS and dtype not in (None, "string", "bool")
    if is_history_time:
        dtype = "int64"
    if dtype is None or (is_list and dtype not in ("int32", "int64", "float32", "float64", "bool")):
        kinds = "numbers, or of ids that are named in ids" if is_list else ", ".join(SCALAR_TYPES)
        times = (
            f", or rename it to {HISTORY_TS} where these are the times of history events"
            if dtype == "timestamp"
            else ""
        )
        raise ValueError(
            f"column {leaf.name} of {kinds} required, found {'a list of ' if is_list else ''}{leaf.type}; exclude "
            f"it, or cast it in the source{times}"
        )
    if level is Level.KEY:
        raise ValueError(f"column {leaf.name}: a level of request, item or label required, found key")
    if is_list and level is not Level.REQUEST:
        raise ValueError(
            f"column {leaf.name}: lists that are the same on all rows of a request required, found one that "
            "differs; are --request and --item right? Otherwise exclude it (--exclude), or give its level as request "
            f"(--level {leaf.name}=request) if the sample misled"
        )
    conversion = (
        Conversion.ITEM
        if vocabulary
        else Conversion.HASH
        if is_id
        else Conversion.TIME
        if dtype == "timestamp"
        else Conversion.PLAIN
    )
    if is_history_time:
        column = Column(name=name, dtype=dtype, level=level, doc=f"{leaf.name}, ms since 1970", kind=Kind.SEQUENCE)
        return TargetColumn(column, (leaf.name,), Conversion.HISTORY_TIME)
    if is_list:
        width = 0 if name in ALWAYS_SEQUENCES else width
        kind = Kind.VECTOR if width else Kind.SEQUENCE
        dtype = "int32" if dtype == "bool" else dtype
        column = Column(name=name, dtype=dtype, level=level, doc=leaf.name, kind=kind, width=width)
    else:
        dtype = "int32" if level is Level.LABEL and dtype == "bool" else dtype
        column = Column(name=name, dtype=dtype, level=level, doc=leaf.name, nullable=not source.files.is_required(leaf))
    return TargetColumn(replace(column, vocabulary=vocabulary), (leaf.name,), conversion)


def scalar_type(kind: pa.DataType) -> str | None:
    """The smallest type of SCALAR_TYPES that holds every value of an Arrow type; None if none does."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        small = kind.bit_width < 32 or kind == pa.int32()
        return "int32" if small else "int64"
    if pa.types.is_floating(kind):
        return "float64" if kind.bit_width == 64 else "float32"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "timestamp"
    return "string" if _is_text(kind) else None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
