"""Parts of a main table, written with features as columns of their own: the tasks of a promotion.

A part is a bucket, or a few. Its old columns are read back and must be what they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyiceberg.table.update import TableUpdate

from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.join.bucket_join import BucketJoin
from reqdedup.storage.measure.checks import content_checksum
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.write.writer import write_rows


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """A part to write. paths: of its files of now.  num_rows, num_bytes: in them."""

    unit: int
    paths: tuple[str, ...]
    num_rows: int
    num_bytes: int = 0
    write_id: str = ""

    @property
    def name(self) -> str:
        return f"part {self.unit}"


@dataclass(frozen=True, kw_only=True)
class Promoting:
    """What the tasks of a promotion share. join: the main table with its features.

    schema: of the files; old_schema: of those that they replace.  updates, renew: see `run_alike`.
    """

    table: PortableTable
    join: BucketJoin
    schema: EngagementSchema
    old_schema: EngagementSchema
    updates: tuple[TableUpdate, ...]
    spill_dir: str | Path | None = None
    renew: bool = False

    def run(self, task: UnitTask) -> Written:
        """Write the part; its checksum is that of the old columns."""
        table, name = self.table.table, ".".join(self.table.table.name())
        with StagedFiles(table, self.schema, self.updates, write_id=task.write_id) as files:
            batches = self.join.stream(task.unit, self.join.num_buckets, self.schema.names)
            written = write_rows(files, batches, self.schema, spill_dir=self.spill_dir)
            if written.rows != task.num_rows:
                raise ValueError(
                    f"{name}: features for every request required, found {task.num_rows - written.rows:,} of "
                    f"{task.num_rows:,} rows of part {task.unit} without; compute them for all users first, or pass "
                    "missing='null'"
                )
            new = [data_file.file_path for data_file in files.data_files]
            before, after = (
                content_checksum(table_files(table, paths, self.old_schema)) for paths in (task.paths, new)
            )
            if before != after:
                raise IntegrityError(
                    f"{name}: the old columns of part {task.unit} unchanged required ({before}), found {after}; "
                    "nothing was published. This is a defect of the join or the writer: report it"
                )
            return files.hand_over(after, num_requests=written.requests)
