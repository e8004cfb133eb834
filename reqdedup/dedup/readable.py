"""What a source of deduplicated batches is in a console or a notebook: one line, an Arrow table, a Polars frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from reqdedup.dedup.encoding import list_schema, lists_from_blobs

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


class Readable:
    """A base of sources (`reqdedup.dedup.source.BatchSource`) that says how they are looked at."""

    def item_keys(self, item_id: np.ndarray) -> np.ndarray | None:
        """The log's own ids of items, [N] texts, "" for an id that has none.

        None if no vocabulary is known: ids are the log's own, or hashes of a column `item_key`.
        """
        return None

    def to_arrow(self, columns: Sequence[str] | None = None, users: np.ndarray | pa.Array | None = None) -> pa.Table:
        """All rows, or those of some users, as a table: every sequence a list of its own on each row.

        That is what deduplication avoids: take some columns, or some users, of a large source.
        """
        source: Any = self
        fields = list_schema(source.schema)
        names = [name for name in fields.names if columns is None or name in columns]
        batches = []
        for batch in source.batches(columns, users=users):
            arrays = [_plain(batch.column(name), source.schema[name]) for name in names]
            batches.append(pa.RecordBatch.from_arrays(arrays, schema=pa.schema([fields.field(name) for name in names])))
        return pa.Table.from_batches(batches, pa.schema([fields.field(name) for name in names]))

    def to_polars(
        self, columns: Sequence[str] | None = None, users: np.ndarray | pa.Array | None = None
    ) -> pl.DataFrame:
        """The same as a Polars frame."""
        import polars as pl

        return pl.DataFrame(pl.from_arrow(self.to_arrow(columns, users)))

    def __repr__(self) -> str:
        source: Any = self
        names = list(source.schema.names)
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        rows = f"{source.num_rows:,} rows, " if hasattr(source, "num_rows") else ""
        return f"<{type(self).__name__} {rows}{len(names)} columns: {shown}>"


def _plain(array: Any, column: Any) -> Any:
    return lists_from_blobs(array.dictionary, column).take(array.indices) if column.is_blob else array
