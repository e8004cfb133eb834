"""URLs and hashes of pages from files: Parquet, CSV/TSV and JSON Lines by a column, else a text with one URL a line."""

from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import Hashable
from pathlib import Path

import polars as pl

from reqdedup.logs.urls.fingerprints import ContentTable
from reqdedup.logs.urls.miqps import Fingerprint


def read_urls(path: str | Path, column: str = "url", *, empty: bool = False) -> list[str]:
    """The URLs of a file in their order; of a text, .gz too, bytes that are no UTF-8 are written as \\xNN.

    empty: whether empty lines and nulls are there, as "", so that places are those of the file.
    Raises ValueError for a file or a column that is not there.
    """
    if Path(path).suffix in (".parquet", ".csv", ".tsv", ".jsonl"):
        urls = _columns(path, column)[column]
        return (urls.fill_null("") if empty else urls.drop_nulls()).to_list()
    is_packed = Path(path).suffix == ".gz"
    if is_packed and Path(path).with_suffix("").suffix in (".parquet", ".csv", ".tsv", ".jsonl"):
        raise ValueError(f"{path}: a table that is not packed, or a text with one URL a line required; unpack it")
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if is_packed else content).decode("utf-8-sig", errors="backslashreplace")
    except (OSError, EOFError, zlib.error) as error:
        found = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: a readable file required, found: {found}") from None
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    return [line if line.strip() else "" for line in lines if empty or line.strip()]


def read_contents(path: str | Path, url: str = "url", content: str = "content_hash") -> ContentTable:
    """Fingerprints from a file with a URL and a hash of its page in every row. Raises ValueError as `read_urls`."""
    frame = _columns(path, url, content)
    return ContentTable(zip(frame[url].fill_null("").to_list(), frame[content].to_list()))


def named_fingerprint(name: str) -> Fingerprint:
    """The function `module:function` of the caller's own. Raises ValueError if there is none, or for what it raises."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"urls: a function as module:function required, found {name!r}: {error}") from None
    if not callable(found):
        raise ValueError(f"urls: a function as module:function required, found {name!r}: {type(found).__name__}")

    def fingerprint(url: str) -> Hashable | None:
        try:
            return found(url)
        except Exception as error:  # its own, whatever it is
            raise ValueError(
                f"urls: {name} must answer for every URL, None if the page is unknown; of {url!r:.200} it raised "
                f"{type(error).__name__}: {error}"
            ) from error

    return fingerprint


def _columns(path: str | Path, url: str, *others: str) -> pl.DataFrame:
    """These columns of a file, the URLs as text."""
    readers = {
        ".parquet": pl.scan_parquet,
        ".csv": lambda file: pl.scan_csv(file, infer_schema=False),
        ".tsv": lambda file: pl.scan_csv(file, separator="\t", infer_schema=False),
        ".jsonl": pl.scan_ndjson,
    }
    reader = readers.get(Path(path).suffix)
    if reader is None:
        raise ValueError(f"{path}: a file .parquet, .csv, .tsv or .jsonl required")
    try:
        frame = reader(Path(path))
        found = frame.collect_schema().names()
        missing = [name for name in (url, *others) if name not in found]
        if missing:
            raise ValueError(f"{path}: a column {missing[0]} required, found {', '.join(found)}")
        return frame.select(pl.col(url).cast(pl.String), *others).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path}: a readable file required, found: {error}") from None
