"""Folders as table formats leave them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = pa.table({"u": [1, 1, 2], "r": [1, 1, 2], "i": [1, 2, 3], "t": pa.array([0, 0, 9], pa.timestamp("us"))})

MARKERS = {
    "Delta": "_delta_log/00000000000000000000.json",
    "Hudi": ".hoodie/hoodie.properties",
    "Iceberg": "metadata/v1.metadata.json",
}


def table_folder(tmp_path, marker: str):
    folder = tmp_path / "lake" / "clicks"
    (folder / "data" / "day=1").mkdir(parents=True)
    (folder / marker).parent.mkdir(parents=True)
    (folder / marker).write_text("{}")
    pq.write_table(ROWS, folder / "data" / "day=1" / "f.parquet")
    return folder
