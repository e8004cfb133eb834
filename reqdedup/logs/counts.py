"""What reading a log has found, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LogCounts:
    """What one reading has found so far; complete when the reading is.

    files: number of files that the log has.
    bytes_read: size of the rows read, uncompressed.
    rows_read: number of rows that could be split into fields.
    rows, requests, users: number of accepted ones.
    rows_merged: number of rows with another URL of a page that their request has already; they are no rejects.
    rejected: number of rejected rows by reason.
    unread_ratio: share of the log's bytes in files that could not be read, or not to their end.
    leaking: number of requests whose history would hold a row that had not arrived yet, were it in the order of time;
        None if the log does not say when rows arrived.
    """

    files: int = 0
    bytes_read: int = 0
    rows_read: int = 0
    rows: int = 0
    requests: int = 0
    users: int = 0
    rows_merged: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    unread_ratio: float = 0.0
    leaking: int | None = None

    @property
    def rejected_ratio(self) -> float:
        """Rejected rows per row, or the share of the bytes in unread files if that is more."""
        return max(sum(self.rejected.values()) / max(1, self.rows_told), self.unread_ratio)

    @property
    def rows_told(self) -> int:
        """Rows of which it is known what became of them: accepted, merged into another, or rejected."""
        return self.rows + self.rows_merged + sum(self.rejected.values())

    @property
    def fan_out(self) -> float:
        """Accepted rows per request; 0 before the first."""
        return self.rows / self.requests if self.requests else 0.0

    def take(self, other: LogCounts) -> None:
        """Add what was found in another part of the log."""
        for name in ("bytes_read", "rows_read", "rows", "requests", "users", "rows_merged"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.leaking is not None:
            self.leaking = (self.leaking or 0) + other.leaking
