"""What a server takes and keeps: sizes, times, and which of a sender's times it believes."""

from __future__ import annotations

from dataclasses import dataclass

from reqdedup.serving.requests import RequestError

CACHE_BYTES = 256 << 20
"""Of the contexts that a process keeps, unless it is told otherwise."""

MAX_FEATURE_AGE_S = 2 * 86_400.0
"""Age of stored features beyond which an answer is marked `stale_features`: twice what a daily fill makes them."""

MAX_CANDIDATES = 4096
"""Of one request, unless a server is told otherwise."""

MAX_AHEAD_US, MAX_LATE_US = 60_000_000, 3_600_000_000
"""How far a sender's clock may be ahead, and how late an event may come, for its time to be believed."""


def is_believable(said_us: int, now_us: int) -> bool:
    """Whether a moment that a sender says [microseconds since 1970] may be the one of what is sent now."""
    return -MAX_AHEAD_US <= now_us - said_us <= MAX_LATE_US


EARLIEST_US = 365 * 86_400_000_000
"""Of a request, 1971: what is earlier was written in another unit than microseconds since 1970."""


def latest_us(now_us: int) -> int:
    """Of a request that comes now: a day ahead, for clocks and time zones."""
    return now_us + 86_400_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """max_body_bytes: of a request.  max_candidates, max_history, max_events, max_filter_ids: entries of one request.
    max_header_bytes: of a request's head.  header_s, body_s: seconds in which head and body must have come.
    max_deadline_ms: the longest time that a request may wait for its turn, and what it waits unless it says less.
    """

    max_body_bytes: int = 8 << 20
    max_candidates: int = MAX_CANDIDATES
    max_history: int = 16_384
    max_events: int = 10_000
    max_filter_ids: int = 100_000
    max_header_bytes: int = 16 << 10
    header_s: float = 10.0
    body_s: float = 10.0
    max_deadline_ms: float = 10_000.0

    def check_said(self, content_length: str) -> None:
        """Raises RequestError (413) if a head announces a body that is too large."""
        if content_length.isdigit() and int(content_length) > self.max_body_bytes:
            raise RequestError("body", f"at most {self.max_body_bytes} bytes", content_length, status=413)
