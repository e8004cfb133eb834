"""How the files of a table are written: `WriteSettings`, kept in its properties, so that all who write do alike.

Where Iceberg has a name for a setting, it is that one, so that another engine that writes comes close. What is chosen
by trying rows, column by column, is kept beside it (`reqdedup.storage.iceberg.encodings`). docs/decisions/0020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from reqdedup.schema import Column
    from reqdedup.storage.iceberg.layout import Layout

PORTABLE, COMPACT = "portable", "compact"

ENCODINGS_PROPERTY = "reqdedup.encodings"

ZSTD_LEVEL = 6

LARGE_PAGE_BYTES = 128 * 2**20

ROW_GROUP_BYTES = 16 * 2**20
"""Of the distinct values of one blob column, and of all scalars, in a row group: what a reader holds of each."""

ROW_GROUP_ROWS, MIN_ROW_GROUP_ROWS = 2**20, 16_384
"""At most, and of a wide table of blobs at least: its row groups would be of a few requests."""

SCALAR_ROW_GROUP_ROWS = 65_536
"""Of a table without blobs, whose row groups have nothing to share."""

ROWS_BEFORE = {"write.parquet.row-group-limit": "16384", "write.parquet.row-group-size-bytes": str(128 * 2**20)}
"""Properties of a table of blobs of which nobody chose the row groups, before they went by bytes."""

LARGE_PAGES_ROW_GROUP_BYTES = 512 * 2**20

DEFAULT_FILE_BYTES = 512 * 2**20
"""Iceberg's default target."""

_PROPERTIES = {
    "row_group_rows": "write.parquet.row-group-limit",
    "row_group_bytes": "write.parquet.row-group-size-bytes",
    "file_bytes": "write.target-file-size-bytes",
    "page_bytes": "write.parquet.page-size-bytes",
    "codec": "write.parquet.compression-codec",
    "level": "write.parquet.compression-level",
    "encodings": ENCODINGS_PROPERTY,
}

_WIDTH_BYTES = {"bool": 1, "int32": 4, "float32": 4, "string": 32}

CODECS = ("zstd", "gzip", "brotli", "lz4", "snappy", "uncompressed")


class Columns(Protocol):
    """What the settings need of a schema, of engagements or of features."""

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def blobs(self) -> tuple[Column, ...]: ...


@dataclass(frozen=True, kw_only=True)
class WriteSettings:
    """How the files of a table are written.

    row_group_rows: most rows of a row group, if no request has more.
    row_group_bytes: most bytes of one column's distinct values in a row group of blobs; of plain
        lists, of all its rows.
    file_bytes: size at which a file ends, of plain lists in the writer's defaults uncompressed, else compressed.
    page_bytes: size at which a page ends.
    codec: one of zstd, gzip, brotli, lz4, snappy, uncompressed.  level: of zstd, gzip or brotli.
    encodings: "portable", which every reader knows, or "compact" (docs/decisions/0012).
    """

    row_group_rows: int = ROW_GROUP_ROWS
    row_group_bytes: int = ROW_GROUP_BYTES
    file_bytes: int = DEFAULT_FILE_BYTES
    page_bytes: int = 2**20
    codec: str = "zstd"
    level: int = ZSTD_LEVEL
    encodings: str = PORTABLE

    def __post_init__(self) -> None:
        for name in ("row_group_rows", "row_group_bytes", "file_bytes", "page_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"write settings: a positive {name} required, found {getattr(self, name)}")
        if self.codec not in CODECS:
            raise ValueError(
                f"table property {_PROPERTIES['codec']}: one of {', '.join(CODECS)} required, found {self.codec!r}"
            )
        if self.encodings not in (PORTABLE, COMPACT):
            raise ValueError(
                f"table property {ENCODINGS_PROPERTY}: {PORTABLE!r} or {COMPACT!r} required, found {self.encodings!r}"
            )

    @property
    def parquet_codec(self) -> str:
        """The codec as pyarrow calls it."""
        return "none" if self.codec == "uncompressed" else self.codec

    def level_of(self, level: int | None = None) -> int | None:
        """`level`, or the table's; None for a codec without levels."""
        return (level or self.level) if self.codec in ("zstd", "gzip", "brotli") else None

    def properties(self) -> dict[str, str]:
        """Table properties that say it."""
        return {name: str(getattr(self, field)) for field, name in _PROPERTIES.items()}

    @classmethod
    def of(cls, properties: Mapping[str, str], layout: Layout, schema: Columns) -> WriteSettings:
        """The settings of a table with these properties; defaults of its layout for those that it does not have."""
        default = default_settings(layout, schema)
        values = {field.name: getattr(default, field.name) for field in fields(cls)}
        for field, name in _PROPERTIES.items():
            if name in properties:
                text, kind = properties[name], type(values[field])
                try:
                    values[field] = kind(text)
                except ValueError:
                    raise ValueError(f"table property {name}: a whole number required, found {text!r}") from None
        return cls(**values)


def default_settings(layout: Layout, schema: Columns) -> WriteSettings:
    """What a table of this layout and these columns is written with unless somebody chooses otherwise.

    A row group of blobs ends by bytes: of the distinct values of a column, and of the scalars of its rows. So short
    histories, whose popular items repeat across users, share long dictionaries, and long ones come in few requests at
    a time (docs/decisions/0050). Without blobs a row group is 65,536 rows: a page of scalars is short, and opening it
    costs as much as it holds. Row groups of plain lists end by their bytes. Level 6 takes a tenth fewer bytes than 3
    at 16K tokens for some tenths of a CPU second (docs/decisions/0008).
    """
    if layout.has_writer_defaults:  # pyiceberg's own; a file is one row group
        return WriteSettings(row_group_rows=2**20, row_group_bytes=512 * 2**20, level=1)
    if layout.has_blobs:
        rows = max(ROW_GROUP_BYTES // _scalar_bytes(schema.columns), MIN_ROW_GROUP_ROWS)
        rows = min(rows if schema.blobs else SCALAR_ROW_GROUP_ROWS, ROW_GROUP_ROWS)
        return WriteSettings(row_group_rows=rows, row_group_bytes=ROW_GROUP_BYTES)
    return WriteSettings(row_group_rows=2**20, row_group_bytes=LARGE_PAGES_ROW_GROUP_BYTES, page_bytes=LARGE_PAGE_BYTES)


def renewed(properties: Mapping[str, str], layout: Layout, schema: Columns) -> dict[str, str]:
    """What a rewrite sets of a table whose row groups are the defaults of before; nothing if somebody chose them."""
    if not (layout.has_blobs and schema.blobs) or any(properties.get(name) != old for name, old in ROWS_BEFORE.items()):
        return {}
    now = default_settings(layout, schema).properties()
    return {name: now[name] for name in ROWS_BEFORE}


def _scalar_bytes(columns: Sequence[Column]) -> int:
    """Of a row in memory; a text is taken as 32 bytes, a blob is an index."""
    return sum(4 if column.is_blob else _WIDTH_BYTES.get(column.dtype, 8) for column in columns)
