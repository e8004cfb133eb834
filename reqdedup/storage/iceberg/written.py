"""What one task of a write has written: small, picklable, and enough to commit it elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyiceberg.manifest import DataFile

from reqdedup.dedup.checksum import ContentChecksum


@dataclass(frozen=True, kw_only=True)
class Written:
    """Finished data files that nobody has committed; whoever holds this owns them.

    write_id: of the write that they belong to; their names begin with it.  spec_id: partition spec that they lie in.
    files: each with its partition, None in a table without partitions.
    requests: in the files.  checksum: of the rows in them; those of several tasks add up to that of all rows.
    choices: how each column is encoded in the files, for the table to keep; see `encodings`.
    note: what else the task has to say to whoever commits.
    """

    write_id: str
    spec_id: int
    files: tuple[tuple[DataFile, int | None], ...]
    requests: int
    checksum: ContentChecksum
    choices: dict[str, str] = field(default_factory=dict)
    note: Any = None

    @property
    def rows(self) -> int:
        return sum(data_file.record_count for data_file, _ in self.files)

    @property
    def num_bytes(self) -> int:
        return sum(data_file.file_size_in_bytes for data_file, _ in self.files)
