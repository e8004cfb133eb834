"""Paths of files as a table's manifests spell them, which are no URLs: `%2F` in a partition folder
is three characters."""

from __future__ import annotations

from urllib.parse import urlparse


def local_path(path: str) -> str | None:
    """The path of a file on this machine, nothing decoded, as pyiceberg opens it; None if it lies
    in another storage."""
    parsed = urlparse(path)
    if parsed.scheme == "file":
        return parsed.path
    return path if parsed.scheme == "" else None
