"""What each layout costs per column, from the footers of the snapshot's own files, beside the store-once limit.

A ratio alone says little: the report states rows, requests and fan-out beside it, compares with the SHUFFLED table of
the same rows, and gives the limit that the layout could reach. User overlap is another thing: `user_overlap`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.arrays.hashing import mix, stable_hash
from reqdedup.arrays.keys import run_starts
from reqdedup.schema import ITEM_ID, REQUEST_ID, USER_ID
from reqdedup.storage.iceberg.encodings import FAST_LEVELS
from reqdedup.storage.iceberg.layout import Layout, buckets_of
from reqdedup.storage.measure.store_once import Codec, store_once_bytes
from reqdedup.storage.read.table_source import TableSource
from reqdedup.storage.write.arrange import in_request_order
from reqdedup.storage.write.spill import Spill

REPORT_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("column", pa.string()),
        ("level", pa.string()),
        ("rows", pa.int64()),
        ("requests", pa.int64()),
        ("fan_out", pa.float64()),
        ("uncompressed_bytes", pa.int64()),
        ("compressed_bytes", pa.int64()),
        ("ratio_to_control", pa.float64()),
        ("store_once_bytes", pa.int64()),
        ("fraction_of_limit", pa.float64()),
    ]
)


def compression_report(tables: Mapping[str, Table]) -> pa.Table:
    """One row per table and column (REPORT_SCHEMA).

    rows, requests, fan_out: of the table.  uncompressed_bytes: encoded, before the codec.  compressed_bytes: as stored.
    ratio_to_control: the SHUFFLED table's compressed bytes of the column over these; null where there is no such table.
    store_once_bytes: the limit at the table's own codec and level, or at zstd's lowest if that is less
    (reqdedup.storage.measure.store_once), or what the column takes in this very table, if another encoding goes below.
    fraction_of_limit: store_once_bytes / compressed_bytes, at most 1, which means that nothing is stored twice.
    Raises ValueError for tables without an engagement schema, and where two tables are SHUFFLED.
    """
    sources = {name: TableSource(table) for name, table in tables.items()}
    controls = [name for name, source in sources.items() if source.layout is Layout.SHUFFLED]
    if len(controls) > 1:
        raise ValueError(f"compression report: one SHUFFLED table as the control, found {', '.join(controls)}")
    contents = {name: _content(source) for name, source in sources.items()}
    footers = {name: _footer_bytes(source) for name, source in sources.items()}
    codecs = {name: _codec(source) for name, source in sources.items()}
    limits = _limits(sources, contents, codecs)
    rows = []
    for name, source in sources.items():
        content = contents[name]
        for column in source.schema.columns:
            uncompressed, compressed = footers[name].get(column.name, (0, 0))
            control = footers[controls[0]].get(column.name) if controls else None
            once = min(limits[name][column.name], compressed or limits[name][column.name])
            rows.append(
                {
                    "table": name,
                    "column": column.name,
                    "level": column.level.value,
                    "rows": content.rows,
                    "requests": content.requests,
                    "fan_out": content.rows / content.requests if content.requests else 0.0,
                    "uncompressed_bytes": uncompressed,
                    "compressed_bytes": compressed,
                    "ratio_to_control": control[1] / compressed if control and compressed else None,
                    "store_once_bytes": once,
                    "fraction_of_limit": once / compressed if compressed else None,
                }
            )
    return pa.Table.from_pylist(rows, schema=REPORT_SCHEMA)


def layout_totals(report: pa.Table, columns: Collection[str] | None = None) -> list[dict[str, Any]]:
    """A report's tables with their columns added up, in its order.

    report: of `compression_report`.  columns: those that are added up, None: all.
    Keys: table; bytes and store_once_bytes; ratio, the control's bytes over these, None if there is no control;
    fraction_of_limit.
    """
    rows = [row for row in report.to_pylist() if columns is None or row["column"] in columns]
    totals = []
    for table in dict.fromkeys(row["table"] for row in rows):
        own = [row for row in rows if row["table"] == table]
        stored, limit = (sum(row[name] for row in own) for name in ("compressed_bytes", "store_once_bytes"))
        ratios = [(row["compressed_bytes"], row["ratio_to_control"]) for row in own if row["compressed_bytes"]]
        known = all(ratio is not None for _, ratio in ratios)
        control = sum(size * ratio for size, ratio in ratios) if known else None
        totals.append(
            {
                "table": table,
                "bytes": stored,
                "store_once_bytes": limit,
                "ratio": control / stored if control is not None and stored else None,
                "fraction_of_limit": limit / stored if stored else None,
            }
        )
    return totals


@dataclass(frozen=True)
class _Content:
    """What a table holds, as far as its keys tell: equal for tables of the same rows, whatever their order."""

    rows: int
    requests: int
    key_checksum: int


def _content(source: TableSource) -> _Content:
    rows, total, requests = 0, 0, np.zeros(0, np.uint64)
    for batch in source.batches([USER_ID, REQUEST_ID, ITEM_ID]):
        user, request, item = (batch.column(name).to_numpy() for name in (USER_ID, REQUEST_ID, ITEM_ID))
        starts = run_starts([user, request])
        request_hash = mix(stable_hash(user[starts], 0) ^ stable_hash(request[starts], 1))
        requests = np.union1d(requests, request_hash)
        row_hash = np.repeat(request_hash, np.diff(np.append(starts, len(user)))) ^ stable_hash(item, 2)
        total = (total + int(np.sum(mix(row_hash), dtype=np.uint64))) % 2**64
        rows += len(user)
    return _Content(rows, len(requests), total)


def _footer_bytes(source: TableSource) -> dict[str, tuple[int, int]]:
    """(uncompressed, compressed) bytes of each column over all files; the leaves of a list belong to their column."""
    found: dict[str, tuple[int, int]] = {}
    for path in source.paths:
        footer = source.footer(path)
        for index in range(footer.num_row_groups):
            group = footer.row_group(index)
            for leaf in (group.column(position) for position in range(group.num_columns)):
                name = leaf.path_in_schema.partition(".")[0]
                uncompressed, compressed = found.get(name, (0, 0))
                found[name] = (uncompressed + leaf.total_uncompressed_size, compressed + leaf.total_compressed_size)
    return found


def _codec(source: TableSource) -> Codec:
    """The codec of the snapshot's files, and the level that the table's properties state (footers do not).

    The codec of the most bytes that have one: scalars that hardly compress are stored as they are, whatever the table's
    codec; `none` where nothing is compressed.
    """
    for path in source.paths:
        footer = source.footer(path)
        if footer.num_row_groups:
            group = footer.row_group(0)
            leaves = [group.column(position) for position in range(group.num_columns)]
            compressed = [leaf for leaf in leaves if leaf.compression != "UNCOMPRESSED"]
            if not compressed:
                return Codec("none")
            name = max(compressed, key=lambda leaf: leaf.total_uncompressed_size).compression.lower()
            level = source.table.properties.get("write.parquet.compression-level")
            return Codec(name, int(level) if level else None)
    return Codec("zstd")


def _limits(
    sources: Mapping[str, TableSource], contents: Mapping[str, _Content], codecs: Mapping[str, Codec]
) -> dict[str, dict[str, int]]:
    """Limits per table. Tables of the same rows share one pass over the one that is cheapest to read in order."""
    limits: dict[str, dict[str, int]] = {}
    cost = {Layout.BY_REQUEST: 0, Layout.SORTED_LARGE_PAGES: 1, Layout.SORTED: 2, Layout.ARRIVAL: 3, Layout.SHUFFLED: 4}
    for name, source in sources.items():
        if name in limits:
            continue
        same = [
            other for other in sources if contents[other] == contents[name] and sources[other].schema == source.schema
        ]
        reference = sources[min(same, key=lambda other: cost[sources[other].layout])]
        tried = {codecs[other]: {codecs[other], _fastest(codecs[other])} for other in same}
        measured = store_once_bytes(
            _ordered(reference), reference.schema, sorted(set().union(*tried.values()), key=str)
        )
        limits |= {
            other: {
                column: min(measured[codec][column] for codec in tried[codecs[other]])
                for column in reference.schema.names
            }
            for other in same
        }
    return limits


def _fastest(codec: Codec) -> Codec:
    """zstd's lowest level, which beats the table's on short histories; another codec as it is."""
    return Codec(codec.name, FAST_LEVELS[0]) if codec.name == "zstd" and (codec.level or 0) > FAST_LEVELS[0] else codec


def _ordered(source: TableSource) -> Iterator[pa.RecordBatch]:
    """The source's rows in (user_id, request_id, item_id) order; through a spill where the table is not in it."""
    if source.layout.is_bucketed:
        yield from source.batches()
        return
    num_buckets = 16
    with Spill(source.schema, lambda users, request_ts: buckets_of(users, num_buckets)) as spill:
        for batch in source.batches():
            spill.add(batch)
        spill.finish()
        for bucket in spill.partitions():
            yield from in_request_order(spill, bucket, max_rows=16_384, max_column_bytes=128 * 2**20)
            spill.release()
