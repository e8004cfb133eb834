"""What an audit found, as data: every field is a key of the JSON that `to_json` gives, and
docs/audit.md explains it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from reqdedup.audit.estimate import Estimate
from reqdedup.display import format_bytes, html_table

if TYPE_CHECKING:
    import polars as pl

FORMAT = 1
"""Of the JSON; a key is never renamed or removed without raising it."""

SHUFFLED, SORTED, SORTED_LARGE_PAGES, BY_REQUEST = "SHUFFLED", "SORTED", "SORTED_LARGE_PAGES", "BY_REQUEST"
STORE_ONCE = "STORE_ONCE"
LAYOUTS = (SHUFFLED, SORTED, SORTED_LARGE_PAGES, BY_REQUEST, STORE_ONCE)

CHECK_TOLERANCE = 0.1
"""Of `model_check` from 1; beyond it today's form was not imitated, and the check says nothing."""


@dataclass(frozen=True, kw_only=True)
class TableAudit:
    """The table as it is. Bytes of columns are those of their column chunks, file_bytes those of whole files."""

    name: str
    kind: str
    rows: int
    rows_without_key: int
    files: int
    row_groups: int
    file_bytes: int
    compressed_bytes: int
    uncompressed_bytes: int
    median_row_group_rows: int
    median_row_group_bytes: int
    written_by: list[str]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of a count over requests."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, kw_only=True)
class RequestAudit:
    """The table's requests. `is_exact` is False if requests and users are estimated from a part of the users.

    order: grouped (every request is one run of rows), partly (a few runs), scattered.  user_runs: mean stretches of
    neighbouring rows per user.  shared_ids: request keys that more than one user has; they count once per user.
    """

    request_key: list[str]
    user_key: list[str]
    requests: int
    users: int | None
    is_exact: bool
    requests_per_user: float | None
    single_row_requests: float
    rows_per_request: Spread
    runs_per_request: Spread
    row_groups_per_request: Spread
    files_per_request: Spread
    user_runs: float | None
    order: str
    shared_ids: int


@dataclass(frozen=True, kw_only=True)
class SampleAudit:
    """What the estimates were made from. fat_bytes: Arrow bytes of the whole users' rows."""

    users: int
    requests: int
    rows: int
    single_rows: int
    fat_bytes: int
    is_whole_table: bool


@dataclass(frozen=True, kw_only=True)
class ColumnAudit:
    """One leaf column. level: key, request, nearly_request, item or unknown (every request has one row).

    repeat_ratio: part of the rows after a request's first that have the first's value.  broken_requests: of
    checked_requests (those with two rows or more), how many have more than one value; example: one of them.
    user_overlap: part of its elements that repeat an earlier request of the user.
    page_bytes: median of uncompressed data pages; rows_per_page: copies of a request's value that one page can hold.
    dictionary_share: part of the values written as dictionary codes.
    estimates: layout -> bytes with the 95% interval; empty for nested columns, which are taken to stay as they are.
    """

    name: str
    type: str
    level: str
    is_constant: bool
    repeat_ratio: float | None
    checked_requests: int
    broken_requests: int
    example: str | None
    user_overlap: float | None
    compressed_bytes: int
    uncompressed_bytes: int
    codec: str
    encodings: list[str]
    page_bytes: int | None
    rows_per_page: float | None
    dictionary_share: float | None
    estimates: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class LayoutAudit:
    """The whole table in one layout. ratio: today's bytes over these, with the ends of its 95% interval."""

    layout: str
    bytes: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why the table is larger than plain lists need be. kind: order, codec, page_size, dictionary or row_groups.

    bytes: what would be paid if everything but this were put right.  columns: whose bytes these are, largest first.
    """

    kind: str
    bytes: float
    columns: list[str]
    text: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """The least change that brings plain columns close to the limit. is_worth_it: False if little is to be gained.

    bytes: with a dictionary for the columns that gain by one only.  one_limit_bytes: where a writer knows just one
    dictionary limit for all columns (pyiceberg, Iceberg for Java), dictionary_limit_bytes.
    """

    changes: list[str]
    bytes: float
    low: float
    high: float
    one_limit_bytes: float
    dictionary_limit_bytes: int
    is_worth_it: bool


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The result of `audit_table`. `verdict` is the three lines at its head; `settings` what to set, by writer."""

    verdict: list[str]
    table: TableAudit
    requests: RequestAudit
    sample: SampleAudit
    layouts: list[LayoutAudit]
    user_overlap: float | None
    columns: list[ColumnAudit]
    causes: list[Cause]
    step: Step
    model_check: float | None
    settings: dict[str, list[str]]
    notes: list[str]
    seconds: float

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as JSON; keys as in the dataclasses, `format` says which version of them."""
        return json.dumps({"format": FORMAT, **_rounded(asdict(self))}, indent=indent)

    def to_arrow(self) -> pa.Table:
        """The columns of the audit, one row each, with the bytes of every estimated layout."""
        rows = []
        for column in self.columns:
            row = {key: value for key, value in asdict(column).items() if key not in ("estimates", "encodings")}
            rows.append(row | {f"{layout}_bytes": one.bytes for layout, one in column.estimates.items()})
        names = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: [row.get(name) for row in rows] for name in names})

    def to_polars(self) -> pl.DataFrame:
        """The same as a Polars frame."""
        import polars as pl

        return pl.DataFrame(pl.from_arrow(self.to_arrow()))

    def _repr_html_(self) -> str:
        layouts = [
            (one.layout, format_bytes(one.bytes), f"{one.ratio:.2g}x ({one.ratio_low:.2g} to {one.ratio_high:.2g})")
            for one in self.layouts
        ]
        columns = [
            (
                one.name,
                one.type,
                one.level,
                format_bytes(one.compressed_bytes),
                "-" if one.repeat_ratio is None else f"{one.repeat_ratio:.0%}",
            )
            for one in sorted(self.columns, key=lambda one: -one.compressed_bytes)
        ]
        parts = [
            "".join(f"<p>{escape(line)}</p>" for line in self.verdict),
            html_table(("layout", "bytes", "smaller"), layouts),
            html_table(("column", "type", "level", "stored", "repeats in a request"), columns),
            "".join(f"<li>{escape(cause.text)}</li>" for cause in self.causes),
            "".join(f"<p>note: {escape(note)}</p>" for note in self.notes),
        ]
        return "".join(parts)

    def layout(self, name: str) -> LayoutAudit:
        """One of `layouts` by name. Raises KeyError for another name."""
        for layout in self.layouts:
            if layout.layout == name:
                return layout
        raise KeyError(name)


def _rounded(value: Any) -> Any:
    """Six significant digits, and bytes as whole numbers: more would be noise."""
    if isinstance(value, dict):
        return {
            key: round(item) if key in ("bytes", "low", "high") and item is not None else _rounded(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value
