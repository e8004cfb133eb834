"""What the calls answer, as JSON schemas for the OpenAPI description."""

from __future__ import annotations

from typing import Any, get_args

from reqdedup.serving.requests import ContextOrigin, StepName
from reqdedup.serving.server.swap import Part

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_COUNTS: Schema = {"type": "array", "items": _COUNT}
_NUMBER: Schema = {"type": "number"}
_NUMBERS: Schema = {"type": "array", "items": _NUMBER}
_IDS: Schema = {"type": "array", "items": {"type": "integer"}}
_FLAG: Schema = {"type": "boolean"}


def _object(optional: Schema | None = None, /, **required: Schema) -> Schema:
    """Of these and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _by_name(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


_WINDOW: Schema = {
    "start": _COUNT,
    "end": _COUNT,
    "version": _COUNT,
    "context": {"enum": list(get_args(ContextOrigin))},
    "marks": _TEXTS,
}
ERROR = _object(error=_object({"column": _TEXT, "required": _TEXT, "found": _TEXT}, message=_TEXT))
LIVE = _object(live=_FLAG)
READY = _object({"workers": _COUNT, "reason": _TEXT}, ready=_FLAG)
PROTOCOL = _object(name=_TEXT, version=_TEXT, extensions=_TEXTS)
_TENSOR = _object(name=_TEXT, datatype=_TEXT, shape={"type": "array", "items": {"type": "integer", "minimum": -1}})
METADATA = _object(
    name=_TEXT,
    versions=_TEXTS,
    platform=_TEXT,
    inputs={"type": "array", "items": _TENSOR},
    outputs={"type": "array", "items": _TENSOR},
)
APPENDED = _object(user_id={"type": "integer"}, history_end=_COUNT, timeline_version=_COUNT)
_MODEL = _object(
    {"items": _COUNT, "device": _TEXT, "deterministic": _FLAG, "index": _TEXT},
    name=_TEXT,
    version=_TEXT,
    state={"enum": ["current", "previous", "shadow"]},
    bundle=_TEXT,
    labels=_TEXTS,
    inputs=_TEXTS,
)
_REPORT = _object(requests=_COUNT, equal=_COUNT, failed=_COUNT, max_difference=_NUMBER, last_error=_TEXT)
MODELS = _object(
    {"disagreeing": {"type": "array", "items": _COUNT, "description": "workers with other models than most"}},
    models={"type": "array", "items": _MODEL},
    loading={"type": ["string", "null"]},
    last_error={"type": ["string", "null"]},
    swaps=_COUNT,
    shadow={"anyOf": [_REPORT, {"type": "null"}]},
)


def ranked(part: Part) -> Schema:
    """Logits in the order of the candidates."""
    return _object(model=_TEXT, **_WINDOW, logits=_object(**dict.fromkeys(part.labels, _NUMBERS)))


def inferred(part: Part) -> Schema:
    """Of the Open Inference Protocol: a tensor for each label."""
    more = {"data": _NUMBERS, "parameters": _object(binary_data_size=_COUNT)}
    output = _object(more, name={"enum": list(part.labels)}, shape=_COUNTS, datatype={"const": "FP32"})
    outputs = {"type": "array", "items": output}
    said = _object(**_WINDOW | {"marks": _TEXT})
    return _object({"id": _TEXT}, model_name=_TEXT, model_version=_TEXT, outputs=outputs, parameters=said)


def retrieved(part: Part) -> Schema:
    """Best first."""
    keys = {"item_key": _TEXTS} if part.inputs.item_keys else {}
    return _object(keys, model=_TEXT, **_WINDOW, index=_TEXT, item_id=_IDS, score=_NUMBERS)


def recommended() -> Schema:
    """Best first; steps and contributions if they were asked for."""
    more = {"item_key": _TEXT, "contributions": _by_name(_NUMBER)}
    item = _object(more, item_id={"type": "integer"}, score=_NUMBER, logits=_by_name(_NUMBER))
    step = _object(name={"enum": list(get_args(StepName))}, received=_COUNT, passed=_COUNT, seconds=_NUMBER)
    return _object(
        {"request_id": _TEXT, "steps": {"type": "array", "items": step}},
        items={"type": "array", "items": item},
        models=_object({"light_ranking": _TEXT}, retrieval=_TEXT, ranking=_TEXT, funnel=_TEXT),
        **_WINDOW,
    )
