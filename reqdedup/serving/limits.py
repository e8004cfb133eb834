"""What a server takes, and the errors that say so: status, column, what was required and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reqdedup.serving.requests import RequestError

MAX_AHEAD_US, MAX_LATE_US = 60_000_000, 3_600_000_000
"""How far a sender's clock may be ahead, and how late an event may come, for its time to be believed."""


def is_believable(said_us: int, now_us: int) -> bool:
    """Whether a moment that a sender says [microseconds since 1970] may be the one of what is sent now."""
    return -MAX_AHEAD_US <= now_us - said_us <= MAX_LATE_US


@dataclass(frozen=True, kw_only=True)
class Limits:
    """max_body_bytes: of a request.  max_candidates, max_history, max_events, max_filter_ids: entries of one request.
    max_header_bytes: of a request's head.  header_s, body_s: seconds in which head and body must have come.
    max_deadline_ms: the longest time that a request may wait for its turn, and what it waits unless it says less.
    """

    max_body_bytes: int = 8 << 20
    max_candidates: int = 4096
    max_history: int = 16_384
    max_events: int = 10_000
    max_filter_ids: int = 100_000
    max_header_bytes: int = 16 << 10
    header_s: float = 10.0
    body_s: float = 10.0
    max_deadline_ms: float = 10_000.0

    def check_said(self, content_length: str) -> None:
        """Raises BadRequestError (413) if a head announces a body that is too large."""
        if content_length.isdigit() and int(content_length) > self.max_body_bytes:
            raise BadRequestError("body", f"at most {self.max_body_bytes} bytes", content_length, status=413)


class BadRequestError(RequestError):
    """A request that its sender must change. status: 4xx."""

    def __init__(self, column: str, required: str, found: str, *, status: int = 422) -> None:
        super().__init__(column, required, found)
        self.status = status


def shown(value: Any, *, most: int = 60) -> str:
    """A value of the sender's in an error: its kind and its beginning."""
    text = repr(value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value)
    return text if len(text) <= most else text[:most] + f"... ({len(text)} characters)"
