"""One task of a write, run in a process that has neither catalog nor credential."""

from __future__ import annotations

from typing import Any

from reqdedup.dedup.checksum import RunningChecksum
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.layout import table_schema
from reqdedup.storage.iceberg.reference import TableRef
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.write.writer import write_rows
from tests.storage.small_log import to_batches


def write_task(reference: TableRef, write_id: str, requests: list[dict[str, Any]]) -> Written:
    table, running = reference.open(), RunningChecksum()
    with StagedFiles(table, write_id=write_id) as files:
        write_rows(files, running.through(to_batches(requests)), table_schema(table))
        return files.hand_over(running.so_far)
