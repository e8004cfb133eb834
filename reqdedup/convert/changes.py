"""What a conversion changes although "row for row the same" is said: types, zones, ids; in words, for its report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.convert.candidates import CandidateSource
from reqdedup.convert.mapping import ColumnMapping, Conversion, TargetColumn
from reqdedup.dedup.encoding import element_type
from reqdedup.dedup.history_time import PLAUSIBLE_TIMES
from reqdedup.dedup.stored import is_binary, is_list, is_nested
from reqdedup.schema import REQUEST_TS, Kind, Level
from reqdedup.storage.foreign.leaves import Shape
from reqdedup.storage.foreign.source import RowSource


def changes_of(source: RowSource, columns: Sequence[TargetColumn], mapping: ColumnMapping) -> list[str]:
    """One line for each kind of change, with the columns of the source that it is about."""
    found: dict[str, list[str]] = {}
    for target in columns:
        for name in target.sources[:1] if len(target.sources) == 1 else ():
            how = _change(source, target)
            if how:
                found.setdefault(how, []).append(name)
    lines = [f"{', '.join(names)}: {how}" for how, names in found.items()]
    if len(mapping.request_names) > 1:
        lines.append(f"{', '.join(mapping.request_names)}: together the hash request_id, and each as it was")
    if mapping.session_gap_s is not None:
        lines.append(
            f"request_id, request_ts: made of pauses of over {mapping.session_gap_s:g} s between rows of a "
            f"{mapping.user}"
        )
    if isinstance(source, CandidateSource):
        lines.append(f"{', '.join(source.exploded)}: elements of a list, each now a row of its own")
    structs = [field.name for field in source.files.schema if _has_struct(field.type)]
    if structs:
        lines.append(
            f"{', '.join(structs)}: structs, now a column for each field; a null struct is one whose fields are null"
        )
    return lines


def times_note(mapping: ColumnMapping, table: Table, files: Sequence[DataFile]) -> list[str]:
    """What to look at if times that were whole numbers lie where their unit is hardly right; by the files' bounds."""
    field = table.schema().find_field(REQUEST_TS).field_id
    bounds = [(side or {}).get(field) for file in files for side in (file.lower_bounds, file.upper_bounds)]
    times = [np.datetime64(int.from_bytes(bound, "little", signed=True), "us") for bound in bounds if bound]
    if len(times) < len(bounds):  # no bounds are written of such times
        where = "partly outside the years 1 to 9999"
    elif not times or (PLAUSIBLE_TIMES[0] <= min(times) and max(times) < PLAUSIBLE_TIMES[1]):
        return []
    else:
        where = f"from {min(times)} to {max(times)}"
    return [
        f"the times of {mapping.time}, read as {mapping.time_unit} since 1970, are {where}; "
        "if that is wrong, convert the rows again with another unit (--time-unit)"
    ]


def _change(source: RowSource, target: TargetColumn) -> str | None:
    """What happens to the values of a column that has one source; None if only whole numbers get wider."""
    leaf = source.leaves[target.sources[0]]
    kind, column = leaf.type, target.column
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if target.conversion is Conversion.HISTORY_TIME:
        return "times in whole milliseconds since 1970"
    if target.conversion is Conversion.ITEM:
        return f"keys of {column.vocabulary}, which gives them their ids"
    if target.conversion is Conversion.HASH:
        return "ids, whose int64 hash is kept" if column.is_blob else f"ids, whose int64 hash is {column.name}"
    if _is_uuid(source, target.sources[0]):
        return "UUIDs as text"
    if (is_binary(kind) or pa.types.is_fixed_size_binary(kind)) and column.dtype == "string":
        return f"binary ids as hexadecimal text in {column.name}"
    if pa.types.is_decimal(kind) and column.level is Level.KEY:
        return "decimals without a fraction as int64"
    if pa.types.is_date(kind) and column.dtype == "timestamp":
        return "dates as the times of their midnight in UTC"
    if pa.types.is_integer(kind) and column.name == REQUEST_TS:
        return "numbers as times in UTC"
    if pa.types.is_timestamp(kind):
        zone = kind.tz
        return "times without a zone as times in UTC" if zone is None else _zone(zone)
    if pa.types.is_boolean(kind) and column.dtype == "int32":
        return "truth values as 0 and 1"
    if leaf.shape is Shape.LIST and column.kind is not Kind.SCALAR and element_type(column) != kind:
        return f"lists of {kind} as lists of {column.dtype}"
    many = "lists of " if leaf.shape is Shape.LIST else ""
    if pa.types.is_float16(kind):
        return f"{many}half-precision numbers (float16) as float32"
    if _is_category(source, leaf.name):
        return f"categories as plain {column.dtype} values"
    return None


def _is_category(source: RowSource, name: str) -> bool:
    """Whether some file has the column as categories, which pandas, Polars and Arrow call dictionaries."""
    found = [(file.schema, file.leaf_in_file.get(name)) for file in source.files.files]
    return any(
        pa.types.is_dictionary(schema.field(leaf.column).type)
        for schema, leaf in found
        if leaf is not None and leaf.name == leaf.column
    )


def _zone(zone: str) -> str | None:
    return None if zone.upper() in ("UTC", "Z", "+00:00", "ETC/UTC") else f"times of {zone} as the same instants in UTC"


def _is_uuid(source: RowSource, name: str) -> bool:
    return any(leaf.name == name and leaf.is_uuid for leaf in source.files.leaves)


def _has_struct(kind: pa.DataType) -> bool:
    """Outside of maps, which stay whole."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if is_list(kind):
        return _has_struct(kind.value_type)
    return is_nested(kind) and pa.types.is_struct(kind)
