"""URLs and hashes of pages from files: Parquet, CSV/TSV and JSON Lines by a column, else a text with one URL a line.

What is no text stays apart from all else, and is no URL: bytes of a list that are no UTF-8, half a surrogate pair of
JSON. They are printed as \\xNN and \\uNNNN.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import json
import warnings
import zlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import polars as pl

from reqdedup.display import counted
from reqdedup.logs.urls.fingerprints import ContentTable
from reqdedup.logs.urls.miqps import Fingerprint

MAX_REJECTS = 0.1
SHOWN_REJECTS = 3


def read_urls(
    path: str | Path, column: str = "url", *, empty: bool = False, max_rejects: float = MAX_REJECTS
) -> list[str]:
    """The URLs of a file in their order; a text may end in .gz.

    empty: whether empty lines and nulls are there, as "", so that places are those of the file.
    max_rejects: share of lines of JSON that may be broken: they count as nulls, and are warned of.
    Raises ValueError for a file or a column that is not there, and for more broken lines.
    """
    if Path(path).suffix in (".parquet", ".csv", ".tsv", ".jsonl"):
        urls = _columns(path, column, max_rejects=max_rejects)[column]
        return [url or "" for url in urls] if empty else [url for url in urls if url is not None]
    is_packed = Path(path).suffix == ".gz"
    if is_packed and Path(path).with_suffix("").suffix in (".parquet", ".csv", ".tsv", ".jsonl"):
        raise ValueError(f"{path}: a table that is not packed, or a text with one URL a line required; unpack it")
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if is_packed else content).decode("utf-8-sig", errors="surrogateescape")
    except (OSError, EOFError, zlib.error) as error:
        found = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: a readable file required, found: {found}") from None
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    return [line if line.strip() else "" for line in lines if empty or line.strip()]


def written(text: str) -> str:
    """What `read_urls` has read, as a text that can be printed."""
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()


def read_contents(
    path: str | Path, url: str = "url", content: str = "content_hash", *, max_rejects: float = MAX_REJECTS
) -> ContentTable:
    """Fingerprints from a file with a URL and a hash of its page in every row. Raises ValueError as `read_urls`."""
    columns = _columns(path, url, content, max_rejects=max_rejects)
    return ContentTable((one or "", hashed) for one, hashed in zip(columns[url], columns[content]))


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


def _columns(path: str | Path, url: str, *others: str, max_rejects: float) -> dict[str, list[Any]]:
    """These columns of a file, the URLs as text or None."""
    if Path(path).suffix == ".jsonl":
        return _columns_of_json(path, url, *others, max_rejects=max_rejects)
    readers = {
        ".parquet": pl.scan_parquet,
        ".csv": lambda file: pl.scan_csv(file, infer_schema=False),
        ".tsv": lambda file: pl.scan_csv(file, separator="\t", infer_schema=False),
    }
    reader = readers.get(Path(path).suffix)
    if reader is None:
        raise ValueError(f"{path}: a file .parquet, .csv, .tsv or .jsonl required")
    try:
        frame = reader(Path(path))
        _check_columns(path, frame.collect_schema().names(), url, *others)
        return frame.select(pl.col(url).cast(pl.String), *others).collect().to_dict(as_series=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        advice = "; UTF-8 is read: convert it with iconv" if "utf-8" in str(error).lower() else ""
        raise ValueError(f"{path}: a readable file required, found: {error}{advice}") from None


def _columns_of_json(path: str | Path, url: str, *others: str, max_rejects: float) -> dict[str, list[Any]]:
    """The same of JSON Lines, of which Polars makes one character of all halves of surrogate pairs.

    Lines that are no objects with a text as URL have no values; their numbers are warned of.
    """
    columns: dict[str, list[Any]] = {name: [] for name in (url, *others)}
    found: dict[str, None] = {}
    bad: list[str] = []
    try:
        lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise ValueError(f"{path}: a readable file required, found: {error.strerror or error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            row = error
        if not isinstance(row, dict) or isinstance(row.get(url), dict | list):
            bad.append(f"line {number}: {row!s:.200}")
            row = {}
        found.update(dict.fromkeys(row))
        for name, values in columns.items():
            values.append(row.get(name))
    if bad:
        _reject(path, f"an object with a text as {url} required", bad, len(columns[url]), max_rejects)
    _check_columns(path, list(found), *columns)
    texts = (value if value is None or isinstance(value, str) else json.dumps(value) for value in columns[url])
    return {**columns, url: list(texts)}


def _reject(path: str | Path, wanted: str, bad: list[str], num_lines: int, max_rejects: float) -> None:
    """Warn of lines that are left out, or raise ValueError if they are too many."""
    shown = f"{wanted}, found on {'; '.join(bad[:SHOWN_REJECTS])}{' ...' * (len(bad) > SHOWN_REJECTS)}"
    if len(bad) > max_rejects * num_lines:
        raise ValueError(
            f"{path}: at most {100 * max_rejects:.4g}% rejected lines required, found {len(bad):,} of {num_lines:,}; "
            f"mend the file, or allow more (--max-rejects): {shown}"
        )
    warnings.warn(f"{path}: {counted(len(bad), 'line')} left out: {shown}", stacklevel=2)


def _check_columns(path: str | Path, found: list[str], *wanted: str) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{path}: a column {missing[0]} required, found {', '.join(found)}")
