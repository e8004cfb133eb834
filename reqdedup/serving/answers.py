"""Answers in JSON, and what becomes of an error: a status that says whose fault it was, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from reqdedup.sequences.store import StoreUnavailableError
from reqdedup.serving.limits import BadRequestError
from reqdedup.serving.requests import RequestError
from reqdedup.serving.scheduler import DeadlineError, OverloadedError

logger = logging.getLogger(__name__)
JSON = "application/json"


def encode(values: Any) -> bytes:
    """As JSON; arrays as lists, a float32 with the digits that bring its bits back."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)


def json_response(values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(values), status, media_type=JSON, headers=headers)


def error_response(error: Exception) -> Response:
    """What became of a request, said so that its sender can do something about it."""
    if isinstance(error, BadRequestError):
        said = {"column": error.column, "required": error.required, "found": error.found}
        headers = {"connection": "close"} if error.status in (408, 413) else None
        return json_response({"error": {"message": str(error), **said}}, error.status, headers)
    if isinstance(error, RequestError):
        return json_response({"error": {"message": str(error)}}, 422)
    if isinstance(error, (OverloadedError, StoreUnavailableError)):
        wait = error.retry_after_s if isinstance(error, OverloadedError) else 1
        return json_response({"error": {"message": str(error)}}, 503, {"retry-after": str(wait)})
    if isinstance(error, DeadlineError):
        return json_response({"error": {"message": str(error)}}, 504)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        logger.error("out of memory: %s", error)
        return json_response(
            {"error": {"message": "memory for the request required, found none left"}}, 503, {"retry-after": "1"}
        )
    logger.error("a defect", exc_info=error)
    return json_response({"error": {"message": f"a defect of the server: {type(error).__name__}"}}, 500)
