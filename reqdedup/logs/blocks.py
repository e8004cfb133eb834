"""A block: some rows of a file with the mapped columns under internal names, the same from every kind of file.

Columns: `line` and `raw` (the text of the row, null for Parquet); one per name of `LogMapping.sources()`, a list of
texts if the name is one of `LogMapping.list_separators`; and `unfit NAME` for a column with values of a kind that has
no meaning there (a list as a user, bytes that are not UTF-8): what they are, beside a null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from reqdedup.arrays.ranges import offsets_of
from reqdedup.logs.checks import UnreadableFile
from reqdedup.logs.mapping import LogMapping

ID_NAMES = ("user", "item", "request", "candidates", "history")
"""Internal names of ids and of lists of ids."""


@dataclass(frozen=True)
class Block:
    """Some rows of one file.

    num_bytes: size of what they were read from, uncompressed.
    """

    frame: pl.DataFrame
    num_bytes: int


def with_unfit(frame: pl.DataFrame, unfit: Mapping[str, pl.Series]) -> pl.DataFrame:
    """The frame with a column `unfit NAME` for each name under which something does not fit."""
    found = {name: series for name, series in unfit.items() if series.null_count() < len(series)}
    return frame.with_columns(series.alias(f"unfit {name}") for name, series in found.items())


def lists_of_texts(texts: pl.Series, unfit: pl.Series, length_R: np.ndarray) -> tuple[pl.Series, pl.Series]:
    """R lists of the elements in order, and what does not fit of each, the first of it."""
    offsets = pa.array(offsets_of(length_R.astype(np.int64)))
    lists = pl.Series(pa.LargeListArray.from_arrays(offsets, texts.to_arrow().cast(pa.large_string())))
    rows = pl.DataFrame([pl.Series("row", np.repeat(np.arange(len(length_R)), length_R)), unfit.alias("unfit")])
    bad = rows.drop_nulls().unique("row", keep="first")
    return lists, nothing_unfit(len(length_R)).scatter(bad["row"], bad["unfit"])


def unknown_labels(name: str, lists: pl.Series, present: pl.Series) -> pl.Series:
    """The lists of a column; of one that says which candidates have a label, null where it does not say so."""
    if not name.startswith("label "):
        return lists
    return pl.select(pl.when(present).then(lists)).to_series()


def nothing_unfit(num_rows: int) -> pl.Series:
    """Nulls: every value fits."""
    return pl.Series([None], dtype=pl.String).new_from_index(0, num_rows)


def resolve_columns(mapping: LogMapping, available: Sequence[str]) -> dict[str, str]:
    """Internal name -> column of this file. Raises UnreadableFile naming what is missing or there twice."""
    found, missing = {}, []
    for name, candidates in mapping.sources().items():
        column = next((column for column in candidates if column in available), None)
        if column is None:
            missing.append(" or ".join(candidates))
        else:
            found[name] = column
    if missing:
        raise UnreadableFile(
            "missing_columns",
            f"columns {', '.join(missing)} required, found {', '.join(available) or 'none'}; "
            "change the mapping, or name the fields with `columns` if the file has no header",
            1,
        )
    twice = sorted({column for column in found.values() if available.count(column) > 1})
    if twice:
        raise UnreadableFile(
            "missing_columns",
            f"each column once required, found {', '.join(twice)} more than once; rename one of them",
            1,
        )
    return found
