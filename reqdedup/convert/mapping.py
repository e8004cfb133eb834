"""What a team says of its table, and the engagement schema that follows: a target column for every leaf.

user = "member_id"          string: int64 hash, original kept in user_key (request: request_key)
item = "sku"                string: dense id, of which the table `items` has the key; or as a user, if it is hashed
history.item_id  list<int>  sequence `history_item_id`
embedding  fixed list       vector
country  string             scalar, at the level that the audit's sample found, or that was given
price  decimal(9,2)         kept in its own Iceberg type, as dates, times, binary values, maps and all other lists are
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from reqdedup.dedup.history_time import UNIT_DIGITS
from reqdedup.dedup.stored import is_binary, is_text, type_name
from reqdedup.schema import (
    HISTORY_ITEM_ID,
    HISTORY_TS,
    ITEM_ID,
    NUMBER_WIDTH_BYTES,
    REQUEST_ID,
    REQUEST_TS,
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

    user, item: one column each; an item in a list makes a row of each of its elements, with the other fields of a list
    of structs beside it.  request: one, or several that together tell requests apart.  time: of the request.
    session_gap_s: instead of a request: a longer pause of a user starts a new one.  candidates: lists beside the
    item's, of as many elements, that belong to its elements.
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
    request: str | Sequence[str] = ()
    item: str
    time: str
    session_gap_s: float | None = None
    candidates: Sequence[str] = ()
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
        if bool(self.request_names) == (self.session_gap_s is not None):
            raise ValueError(
                "request: the columns that tell requests apart required, or session_gap_s (--session-gap) if there are "
                f"none, found {'both' if self.request_names else 'neither'}"
            )
        if self.session_gap_s is not None and not self.session_gap_s >= 1:
            raise ValueError(f"session_gap_s: at least 1 s required, found {self.session_gap_s}")

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
            *self.candidates,
        )


class Conversion(enum.Enum):
    """How a target column is made of its source.

    `PLAIN`, values as they are; `HASH`, the int64 hash of ids; `ITEM`, the ids of a vocabulary; `TIME`; `HISTORY_TIME`,
    lists of times in milliseconds; `SESSION`, the request that a gap makes: its id, or its time.
    """

    PLAIN = "plain"
    HASH = "hash"
    ITEM = "item"
    TIME = "time"
    HISTORY_TIME = "history_time"
    SESSION = "session"


@dataclass(frozen=True)
class TargetColumn:
    """column: of the engagement schema.  sources: the leaves it is made of; several only for a composite key."""

    column: Column
    sources: tuple[str, ...]
    conversion: Conversion


def check_mapping(source: RowSource, mapping: ColumnMapping) -> None:
    """Raise ValueError for a column that is not there, and for key columns that cannot be keys."""
    missing = [name for name in dict.fromkeys(mapping.named) if name not in source.leaves]
    if missing:
        raise ValueError(
            f"{source.name}: column{'s' * (len(missing) > 1)} {', '.join(missing)} required, found "
            f"{', '.join(source.leaves)}; name columns that are there"
        )
    fixed = {mapping.user: USER_ID, mapping.item: ITEM_ID, mapping.time: REQUEST_TS}
    if len(mapping.request_names) == 1:
        fixed[mapping.request_names[0]] = REQUEST_ID
    if kept := sorted(set(mapping.rename) & set(fixed)):
        raise ValueError(
            f"{source.name}: {', '.join(f'column {name} becomes {fixed[name]}' for name in kept)} and cannot be "
            "renamed; leave it out of rename"
        )
    ids = [source.leaves[name] for name in dict.fromkeys((mapping.user, mapping.item))]
    wrong = [_shown(leaf) for leaf in ids if leaf.shape is not Shape.SCALAR or not _is_id(leaf.type)]
    requests = [source.leaves[name] for name in mapping.request_names]
    wrong += [_shown(leaf) for leaf in requests if leaf.shape is not Shape.SCALAR or not _is_key(leaf.type)]
    if wrong:
        raise ValueError(
            f"{source.name}: key columns of whole numbers, text, UUIDs or binary ids required, of a request also "
            f"times, decimals and truth values, found {', '.join(dict.fromkeys(wrong))}; cast them in the source"
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
    sequences: Collection[str],
    vocabulary: str = "",
) -> tuple[TargetColumn, ...]:
    """Target columns in table order: keys, request time, request-level, item-level, labels.

    levels: of every leaf that is neither key nor label.  widths: elements of the lists that are vectors.
    sequences: lists that have as many elements as the history has; others of the request are kept as they are.
    vocabulary: name of the table that gives ids to items that are texts; if there is none, they are hashed. Ids of a
        table of ours that are dense stay those of its vocabulary.
    Raises ValueError for all columns together whose types have no place, and for names that meet.
    """
    if not is_text(source.leaves[mapping.item].type):
        vocabulary = ""
    columns = [*_keys(source, mapping, vocabulary or source.vocabularies.get(mapping.item, ""))]
    used = {name for target in columns if target.conversion is not Conversion.SESSION for name in target.sources[:1]}
    used -= set(mapping.request_names) if len(mapping.request_names) > 1 else set()
    used |= {mapping.user, mapping.item, *mapping.exclude}
    if mapping.session_gap_s is None:
        used.add(mapping.time)
    if len(mapping.request_names) == 1 and is_kept_beside(source.leaves[mapping.request_names[0]].type):
        used -= set(mapping.request_names) - {mapping.time}
    rest = [leaf for leaf in source.leaves.values() if leaf.name not in used and leaf.name not in mapping.labels]
    wanted = [(leaf, levels[leaf.name], widths.get(leaf.name, 0)) for leaf in rest]
    wanted += [(source.leaves[name], Level.LABEL, 0) for name in mapping.labels]
    intervals = source.intervals
    lost = [leaf for leaf, _, _ in wanted if type_name(leaf.type) is None or leaf.name in intervals]
    if lost:
        shown = [f"{leaf.name} (interval)" if leaf.name in intervals else _shown(leaf) for leaf in lost]
        raise ValueError(
            f"{source.name}: columns that an Iceberg table can hold required, found without a type there: "
            f"{', '.join(shown)}; cast them in the source, or leave them out with --exclude "
            f"{' '.join(leaf.name for leaf in lost)}"
        )
    planned, errors = [], []
    for leaf, level, width in wanted:
        try:
            is_new = leaf.name in mapping.ids and is_text(leaf.type)
            of_items = vocabulary if is_new else source.vocabularies.get(leaf.name, "")
            planned.append(
                _column(source, mapping, leaf, level, width, is_sequence=leaf.name in sequences, vocabulary=of_items)
            )
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError(f"{source.name}: {'; '.join(errors)}")
    order = [Level.KEY, Level.REQUEST, Level.ITEM, Level.LABEL]
    columns = sorted([*columns, *planned], key=lambda target: order.index(target.column.level))
    sources_of: dict[str, list[str]] = {}
    for target in columns:
        sources_of.setdefault(target.column.name, []).append(target.sources[0])
    if met := {name: sources for name, sources in sources_of.items() if len(sources) > 1}:
        found = "; ".join(f"{name} for {' and for '.join(sources)}" for name, sources in met.items())
        raise ValueError(
            f"{source.name}: one target column per name required, found {found}; rename or exclude all but one"
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
        if not names:
            column = Column(name=target, dtype="int64", level=Level.KEY, doc=f"session of {mapping.user}")
            columns.append(TargetColumn(column, (mapping.user, mapping.time), Conversion.SESSION))
            continue
        if target == ITEM_ID and vocabulary:
            column = Column(name=target, dtype="int64", level=Level.KEY, doc=mapping.item, vocabulary=vocabulary)
            how = Conversion.ITEM if is_text(source.leaves[mapping.item].type) else Conversion.PLAIN
            columns.append(TargetColumn(column, tuple(names), how))
            continue
        kind = source.leaves[names[0]].type
        is_number = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and target != REQUEST_ID)
        is_hashed = len(names) > 1 or not is_number
        doc = f"{'hash of ' if is_hashed else ''}{', '.join(names)}"
        column = Column(name=target, dtype="int64", level=Level.KEY, doc=doc)
        columns.append(TargetColumn(column, tuple(names), Conversion.HASH if is_hashed else Conversion.PLAIN))
        if is_hashed and len(names) == 1 and not is_kept_beside(kind):
            level = Level.ITEM if target == ITEM_ID else Level.REQUEST
            original = Column(name=ORIGINALS[target], dtype="string", level=level, doc=names[0])
            columns.append(TargetColumn(original, tuple(names), Conversion.PLAIN))
    if mapping.session_gap_s is None:
        time = Column(name=REQUEST_TS, dtype="timestamp", level=Level.REQUEST, doc=mapping.time)
        return [*columns, TargetColumn(time, (mapping.time,), Conversion.TIME)]
    time = Column(name=REQUEST_TS, dtype="timestamp", level=Level.REQUEST, doc=f"first {mapping.time} of the session")
    return [*columns, TargetColumn(time, (mapping.user, mapping.time), Conversion.SESSION)]


def _column(
    source: RowSource,
    mapping: ColumnMapping,
    leaf: Leaf,
    level: Level,
    width: int,
    *,
    is_sequence: bool,
    vocabulary: str,
) -> TargetColumn:
    name = mapping.target_name(leaf.name)
    if level is Level.KEY:
        raise ValueError(f"column {leaf.name}: a level of request, item or label required, found key")
    dtype = type_name(leaf.type)
    assert dtype is not None
    is_id = leaf.name in mapping.ids and is_text(leaf.type)
    as_id = Conversion.ITEM if vocabulary else Conversion.HASH
    id_type = "int32" if vocabulary else "int64"
    if leaf.shape is not Shape.LIST:
        dtype = id_type if is_id else "int32" if level is Level.LABEL and dtype == "bool" else dtype
        column = Column(name=name, dtype=dtype, level=level, doc=leaf.name, nullable=not source.files.is_required(leaf))
        how = as_id if is_id else Conversion.TIME if dtype == "timestamp" else Conversion.PLAIN
        return TargetColumn(replace(column, vocabulary=vocabulary), (leaf.name,), how)
    may_be_times = name == HISTORY_TS and dtype in ("int32", "int64", "float32", "float64", "timestamp", "date")
    if level is Level.REQUEST and may_be_times:
        column = Column(name=name, dtype="int64", level=level, doc=f"{leaf.name}, ms since 1970", kind=Kind.SEQUENCE)
        return TargetColumn(column, (leaf.name,), Conversion.HISTORY_TIME)
    is_numbers = is_id or dtype in ("bool", *NUMBER_WIDTH_BYTES)
    if level is Level.REQUEST and is_numbers and (width or is_sequence or name in ALWAYS_SEQUENCES):
        width = 0 if name in ALWAYS_SEQUENCES else width
        kind = Kind.VECTOR if width else Kind.SEQUENCE
        dtype = id_type if is_id else "int32" if dtype == "bool" else dtype
        column = Column(
            name=name, dtype=dtype, level=level, doc=leaf.name, kind=kind, width=width, vocabulary=vocabulary
        )
        return TargetColumn(column, (leaf.name,), as_id if is_id else Conversion.PLAIN)
    column = Column(name=name, dtype=f"list<{dtype}>", level=level, doc=leaf.name, nullable=True)
    return TargetColumn(column, (leaf.name,), Conversion.PLAIN)


def is_kept_beside(kind: pa.DataType) -> bool:
    """Whether a request key of this type stays as a column of its own: what is neither number, text nor binary."""
    return pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)


def _is_id(kind: pa.DataType) -> bool:
    is_whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    return is_whole or is_text(kind) or is_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _is_key(kind: pa.DataType) -> bool:
    return _is_id(kind) or (is_kept_beside(kind) and not pa.types.is_duration(kind))


def _shown(leaf: Leaf) -> str:
    kind = f"list<{leaf.type}>" if leaf.shape is Shape.LIST else str(leaf.type)
    return f"{leaf.name} ({kind})"
