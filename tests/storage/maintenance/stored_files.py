"""The files of a table: what lies on disk, and what its metadata needs."""

from __future__ import annotations

from pathlib import Path


def on_disk(table) -> set[str]:
    root = Path(table.location().removeprefix("file://"))
    return {str(path) for path in root.rglob("*") if path.is_file()}


def needed_by(table) -> set[str]:
    """By the plainest walk: what `inspect` lists of every snapshot, and the metadata files."""
    paths = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
    for snapshot in table.metadata.snapshots:
        paths.add(snapshot.manifest_list)
        paths |= {manifest.manifest_path for manifest in snapshot.manifests(table.io)}
        paths |= {task.file.file_path for task in table.scan(snapshot_id=snapshot.snapshot_id).plan_files()}
    return {path.removeprefix("file://") for path in paths}
