"""Answers in JSON; of an error, a status that says whose fault it was, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from reqdedup.sequences.store import StoreUnavailableError
from reqdedup.serving.names import JSON, QUEUE_FULL
from reqdedup.serving.requests import Ranked, Recommended, RequestError, Retrieved
from reqdedup.serving.scheduler import DeadlineError, OverloadedError, QueueFullError

logger = logging.getLogger(__name__)


def encode(values: Any) -> bytes:
    """As JSON; arrays as lists, a float32 with the digits that bring its bits back."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)


def ranked_head(ranked: Ranked | Retrieved) -> dict[str, Any]:
    """What an answer says of itself: all fields but its arrays."""
    return {
        "model": ranked.model,
        "start": ranked.start,
        "end": ranked.end,
        "version": ranked.version,
        "context": ranked.context,
        "marks": ranked.marks,
    }


def ranked_answer(ranked: Ranked) -> dict[str, Any]:
    return {**ranked_head(ranked), "logits": {name: np.ascontiguousarray(one) for name, one in ranked.logits.items()}}


def retrieved_answer(retrieved: Retrieved) -> dict[str, Any]:
    return {
        **ranked_head(retrieved),
        "index": retrieved.index,
        "item_id": retrieved.item_id,
        "score": retrieved.score,
    }


def recommended_answer(found: Recommended) -> dict[str, Any]:
    """`items` best first, each with its id, key, score and logits; then what the funnel did."""
    ids, keys, scores = found.item_id.tolist(), found.item_key, found.score.tolist()
    logits = {label: np.ascontiguousarray(one) for label, one in found.logits.items()}
    shares = {name: np.ascontiguousarray(one) for name, one in found.contributions.items()}
    items = [
        {"item_id": ids[i]}
        | ({} if keys is None else {"item_key": keys[i]})
        | {"score": scores[i], "logits": {label: one[i] for label, one in logits.items()}}
        | ({"contributions": {name: float(one[i]) for name, one in shares.items()}} if shares else {})
        for i in range(len(ids))
    ]
    models = {"retrieval": found.retrieval_model, "ranking": found.ranking_model, "funnel": found.funnel}
    if found.light_model is not None:
        models["light_ranking"] = found.light_model
    window = {"start": found.start, "end": found.end, "version": found.version}
    said = {"models": models, **window, "context": found.context, "marks": found.marks}
    steps = [{**vars(step)} for step in found.steps]
    # As text: JavaScript's numbers have 53 bits.
    logged = {} if found.request_id is None else {"request_id": str(found.request_id)}
    return {**logged, "items": items, **said} | ({"steps": steps} if steps else {})


def json_response(values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(values), status, media_type=JSON, headers=headers)


def error_response(error: Exception) -> Response:
    """What became of a request, said so that its sender can do something about it."""
    if isinstance(error, RequestError):
        said = {"column": error.column, "required": error.required, "found": error.found}
        status = error.status
        headers = {"connection": "close"} if status in (408, 413) else None
        return json_response({"error": {"message": str(error), **said}}, status, headers)
    if isinstance(error, OverloadedError):
        head = {"retry-after": str(error.retry_after_s)} | (
            {QUEUE_FULL: "1"} if isinstance(error, QueueFullError) else {}
        )
        return json_response({"error": {"message": str(error)}}, 503, head)
    if isinstance(error, StoreUnavailableError):
        return json_response({"error": {"message": f"store: {error.reason}"}}, 503, {"retry-after": "1"})
    if isinstance(error, DeadlineError):
        return json_response({"error": {"message": str(error)}}, 504)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        logger.error("out of memory: %s", error)
        return json_response(
            {"error": {"message": "memory for the request required, found none left"}}, 503, {"retry-after": "1"}
        )
    logger.error("a defect", exc_info=error)
    return json_response({"error": {"message": f"a defect of the server: {type(error).__name__}"}}, 500)
