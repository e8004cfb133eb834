"""What is wrong with a log: rows that are rejected, with reason, file and line, and errors that end the reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from reqdedup.logs.counts import LogCounts
from reqdedup.masking import mask

MAX_KEPT_REJECTS = 1_000_000
"""Rejected rows that are kept with their text; more are only counted."""

RAW_CHARACTERS = 300
"""Characters that are kept of a rejected row, and of what is said about it."""

REJECT_SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("raw", pa.string(), nullable=False),
        pa.field("user_id", pa.int64()),
    ]
)

REASONS = {
    "unreadable": "the file, or the rest of it, cannot be read",
    "empty_file": "the file holds no rows",
    "missing_columns": "the file lacks columns that the mapping names",
    "encoding": "the row is not UTF-8",
    "truncated": "the last row ends in the middle",
    "fields": "the row has too many or too few fields, or unbalanced quotes",
    "json": "the line is not a JSON object",
    "null_id": "user, item or request is missing",
    "id": "an id is not an integer although the log's ids are, or is no id at all",
    "time": "the time cannot be read",
    "absurd_time": "the time is before `earliest` or after `latest`",
    "label": "a label is no number, out of its range, or not whole",
    "value": "another column does not have its type, or does not fit into it",
    "candidates": "the candidate list is empty or does not fit its labels",
    "history": "the history is malformed, or holds an event at or after the request",
    "two_users": "most rows of the request belong to another user",
    "duplicate": "the request already has this item",
    "request_value": "a request-level value differs from that of most rows of the request",
}
"""Every reason a row can be rejected for."""


class LogError(ValueError):
    """A log that cannot be read at all, or (strict) one with rejected rows: what was expected, found, and what to do.

    Its text names the place of the log, so that what may be a credential in there is masked.
    """

    def __init__(self, text: str):
        super().__init__(mask(text))


class UnreadableFile(Exception):  # noqa: N818 (a signal inside this package, turned into a reject or a LogError)
    """A file that cannot be read from `line` on."""

    def __init__(self, reason: str, detail: str, line: int = 0):
        super().__init__(detail)
        self.reason, self.detail, self.line = reason, detail, line


@dataclass(frozen=True)
class Check:
    """One way for a row to be bad: if `bad` is true, the row is rejected for `reason` with the text of `detail`."""

    reason: str
    bad: pl.Expr
    detail: pl.Expr


ENCODING = Check("encoding", ~pl.col("is_utf8"), pl.lit("UTF-8 required; convert the file with iconv"))


@dataclass
class Rejects:
    """Rejected rows of one reading, in the order found.

    files: names of the log's files, in the order of the frames' column `file`.
    by_reason: number of rejected rows, those included that are no longer kept with their text.
    """

    files: Sequence[str] = ()
    by_reason: Counter[str] = field(default_factory=Counter)
    _frames: list[pl.DataFrame] = field(default_factory=list)
    _kept: int = 0

    @property
    def count(self) -> int:
        return sum(self.by_reason.values())

    def add(self, reason: str, detail: str, file: int, line: int, raw: str = "") -> None:
        """One rejected row (or file, with line 0)."""
        row = {"reason": [reason], "detail": [detail], "file": [file], "line": [line], "raw": [raw]}
        self.add_rows(pl.DataFrame(row, schema_overrides={"file": pl.UInt32, "line": pl.Int64}))

    def add_rows(self, rows: pl.DataFrame) -> None:
        """Rows with columns reason, detail, file (index), line, raw, and user_id if it is known whose they are."""
        if rows.is_empty():
            return
        for reason, count in rows["reason"].value_counts().iter_rows():
            self.by_reason[reason] += count
        rows = rows.select(
            "reason",
            pl.col("detail").fill_null("").str.slice(0, RAW_CHARACTERS),
            "file",
            "line",
            pl.col("raw").fill_null("").str.slice(0, RAW_CHARACTERS),
            (pl.col("user_id") if "user_id" in rows.columns else pl.lit(None)).cast(pl.Int64).alias("user_id"),
        ).head(MAX_KEPT_REJECTS - self._kept)
        self._kept += rows.height
        self._frames.append(rows)

    def absorb(self, other: Rejects) -> None:
        """Take what another reading, of a later part of the same log, has rejected."""
        self.by_reason.update(other.by_reason)
        for rows in other._frames:
            self._frames.append(rows.head(MAX_KEPT_REJECTS - self._kept))
            self._kept += self._frames[-1].height

    def split(self, frame: pl.DataFrame, checks: Sequence[Check]) -> pl.DataFrame:
        """The rows that pass every check; the others are rejected for the first one they fail.

        The frame has columns file, line and raw, and maybe user_id. Conditions that are null count as passed.
        """
        if not checks or frame.is_empty():
            return frame
        marked = frame.with_columns(
            pl.coalesce(pl.when(check.bad).then(pl.lit(number, pl.Int16)) for number, check in enumerate(checks)).alias(
                "_failed"
            )
        )
        failed = marked.filter(pl.col("_failed").is_not_null())
        for (number,), rows in failed.group_by("_failed", maintain_order=True):
            check = checks[number]
            self.add_rows(rows.with_columns(reason=pl.lit(check.reason), detail=check.detail.cast(pl.String)))
        return marked.filter(pl.col("_failed").is_null()).drop("_failed")

    def table(self) -> pa.Table:
        """The rejected rows, columns as in REJECT_SCHEMA, at most MAX_KEPT_REJECTS."""
        if not self._frames:
            return REJECT_SCHEMA.empty_table()
        rows = pl.concat(self._frames)
        names = pl.Series(list(self.files), dtype=pl.String)
        rows = rows.with_columns(names.gather(rows["file"]).alias("file")).sort("file", "line", maintain_order=True)
        return rows.select(REJECT_SCHEMA.names).to_arrow().cast(REJECT_SCHEMA)

    def summary(self, limit: int = 3) -> str:
        """One line per reason: its count, its meaning and the first examples."""
        rows = pl.from_arrow(self.table())
        assert isinstance(rows, pl.DataFrame)
        lines = []
        for reason, count in self.by_reason.most_common():
            examples = [
                f"{name}:{line} {detail}".rstrip()
                for name, line, detail in rows.filter(pl.col("reason") == reason)
                .select("file", "line", "detail")
                .head(limit)
                .iter_rows()
            ]
            lines.append(f"  {reason} ({count:,}): {REASONS[reason]}; for example {'; '.join(examples)}")
        return "\n".join(lines)


def too_many(path: Path, rejects: Rejects, counts: LogCounts, max_rejects: float) -> LogError:
    """The error of a reading that rejected more than a share of `max_rejects`."""
    found = f"{rejects.count:,} of {counts.rows_told:,}, {rejects.count / counts.rows_told:.2%}"
    if counts.unread_ratio:
        found += f", and {counts.unread_ratio:.0%} of the log's bytes in files that cannot be read to their end"
    wanted, allow = f"at most {100 * max_rejects:.4g}% rejected rows required", "more with a larger max_rejects"
    if not max_rejects:
        wanted, allow = "strict reading requires that no row is rejected", "some without strict, by max_rejects"
    return LogError(
        f"{path}: {wanted}, found {found}; mend the log or the mapping, or allow {allow} (--max-rejects):\n"
        f"{rejects.summary()}"
    )


def nothing_left(path: Path, rejects: Rejects) -> LogError:
    """The error of a reading that has no row."""
    found = rejects.summary() or "  no row at all"
    return LogError(
        f"{path}: at least one row with user, item and time required, found none that can be used:\n{found}\n"
        "Check that the preset or mapping is the one of this log (docs/mapping.md)."
    )
