"""Names that server, router and client say to each other: content types, headers, keys of Arrow's metadata."""

from __future__ import annotations

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
BINARY = "application/octet-stream"
REQUEST_KEY, ANSWER_KEY = b"reqdedup.request", b"reqdedup.answer"
"""In the schema's metadata of an Arrow body: what is beside its columns, as JSON."""

OF_USER = "x-user-id"
"""Header: whose request it is, so that the router need not read the body."""

TRIMMED_FOR = "x-trimmed-for"
"""Header: the versions of the models that the body was trimmed for."""

HEADER_LENGTH = "inference-header-content-length"
"""Header of the Open Inference Protocol: bytes of JSON before binary tensors."""

QUEUE_FULL = "x-queue-full"
"""Header of a 503: the worker's queue is, not its store or its memory."""


def is_queued(path: str) -> bool:
    """Whether a call waits in a worker's queue."""
    return path in ("/v1/rank", "/v1/retrieve", "/v1/recommend") or (
        path.startswith("/v2/models/ranking/") and path.endswith("/infer")
    )
