"""The OpenAPI description of what serves now, written from its signature, and a page that shows it.

The page loads nothing but `/openapi.json` from the same server: no script, font or style of another host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reqdedup.schema import ITEM_ID, REQUEST_TS, Column
from reqdedup.sequences.store import now_us
from reqdedup.serving.limits import EARLIEST_US, Limits, latest_us
from reqdedup.serving.names import ARROW, BINARY, JSON
from reqdedup.serving.server import openapi_answers as answers
from reqdedup.serving.server.swap import Part, Served
from reqdedup.serving.wire import oip
from reqdedup.serving.wire.bodies import MAX_KEY, Inputs
from reqdedup.values import INT64

Schema = dict[str, Any]
_ID: Schema = {"type": "integer", "format": "int64", "minimum": INT64[0], "maximum": INT64[1]}
_KEY: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "description": "the log's own id, a text"}
_COUNT: Schema = {"type": "integer", "format": "int64", "minimum": 0, "maximum": INT64[1]}
_TYPES: dict[str, Schema] = {
    "bool": {"type": "boolean"},
    "int32": {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    "int64": _ID,
    "timestamp": _ID | {"description": "microseconds, UTC"},
    "float32": {"type": "number", "format": "float"},
    "float64": {"type": "number", "format": "double"},
}


def openapi(served: Served, limits: Limits, event_columns: Mapping[str, Column] | None) -> Schema:
    """OpenAPI 3.1 of this server."""
    paths: Schema = {}
    for task, path, more, answer, summary in (
        ("ranking", "/v1/rank", _candidates, answers.ranked, "Score candidates for a user."),
        ("retrieval", "/v1/retrieve", _retrieve, answers.retrieved, "The items nearest to a user."),
    ):
        if (part := served.parts.get(task)) is not None:
            body = _body(part.inputs, limits, more(part.inputs, limits))
            paths[path] = {"post": _operation(summary, body, answer(part), arrow=task == "ranking")}
    if served.recommend is not None:
        retrieval, ranking = served.parts["retrieval"].inputs, served.parts["ranking"].inputs
        both = retrieval | ranking
        body = _body(both, limits, _recommend(both, limits, served.rows))
        paths["/v1/recommend"] = {"post": _operation("Retrieve, rank and re-rank.", body, answers.recommended())}
    if event_columns is not None:
        columns = {name: _list(column, limits.max_events) for name, column in event_columns.items()}
        user_keys = any(part.inputs.user_keys for part in served.parts.values())
        events = {
            "user_id": _ID,
            "events": _object(columns, list(columns)),
            "idempotency_key": {"type": "string", "minLength": 1, "maxLength": 200},
        }
        required = [one for one in events if one != "user_id" or not user_keys]
        name = {"type": "string", "minLength": 1, "maxLength": 200}
        of_impression = {
            "request_id": {"anyOf": [{"type": "string", "pattern": "^[0-9]{1,19}$"}, _COUNT, {"type": "null"}]},
            "labels": {"type": "array", "items": name, "minItems": 1, "maxItems": 16},
            "event_ts": _or_null(_COUNT | {"description": "microseconds, UTC"}),
        }
        paths["/v1/events"] = {
            "post": _operation(
                "Append events to a user's timeline; a key sent twice is one.",
                _object(events | of_impression | ({"user_key": _KEY} if user_keys else {}), required),
                answers.APPENDED,
            )
        }
    actions = {
        "action": {"enum": ["load", "rollback", "shadow", "promote", "stop_shadow"]},
        "bundle": {"type": "string", "description": "of a load or a shadow"},
        "to": _or_null({"type": "object", "additionalProperties": {"type": "string"}})
        | {"description": "of a rollback or a promotion: versions by task; it may then be repeated"},
    }
    paths["/v1/models"] = {
        "get": _get("The models that serve, served before, or run in the shadow.", answers.MODELS),
        "post": _operation("Change what serves.", _object(actions, ["action"]), answers.MODELS),
    }
    gets: list[tuple[str, str, Schema | None]] = [
        ("/healthz", "Whether the process lives.", answers.LIVE),
        ("/readyz", "Whether it answers.", answers.READY),
        ("/metrics", "Metrics for Prometheus.", None),
        ("/v2", "The Open Inference Protocol, here.", answers.PROTOCOL),
        ("/v2/health/live", "The same as /healthz.", answers.LIVE),
        ("/v2/health/ready", "The same as /readyz.", answers.READY),
    ]
    if (part := served.parts.get("ranking")) is not None:
        infer = _operation(
            "Score candidates for a user, by the Open Inference Protocol.", _infer(part), answers.inferred(part)
        )
        for kinds in (infer["requestBody"]["content"], infer["responses"]["200"]["content"]):
            kinds[BINARY] = {"schema": {"type": "string", "format": "binary"}}
        paths["/v2/models/ranking/infer"] = {"post": infer}
        model = "/v2/models/ranking"
        gets += [
            (model, "The tensors that it reads and answers.", answers.METADATA),
            (f"{model}/ready", "The same as /readyz.", answers.READY),
        ]
    paths |= {path: {"get": _get(summary, said)} for path, summary, said in gets}
    return {
        "openapi": "3.1.0",
        "info": {"title": "reqdedup", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(summary: str, body: Schema, answer: Schema, *, arrow: bool = False) -> Schema:
    stream = {ARROW: {"schema": {"type": "string", "format": "binary"}}} if arrow else {}
    kinds = {JSON: {"schema": body}} | stream
    statuses = {
        "400": "no such body",
        "401": "token",
        "404": "not here",
        "408": "too slow",
        "405": "another method",
        "409": "not changed",
        "412": "trimmed for another model",
        "413": "too large",
        "415": "content type",
        "421": "a host name that is not this machine's",
        "422": "a value that does not fit, with its column",
        "431": "a head too large",
        "503": "full; come back after Retry-After seconds",
        "504": "the deadline passed",
    }
    responses: Schema = {"200": {"description": "answered", "content": {JSON: {"schema": answer}} | stream}}
    for code, text in {"403": "not allowed", **statuses}.items():
        responses[code] = {"description": text, "content": {JSON: {"schema": answers.ERROR}}}
    wait = {"schema": {"type": "integer", "minimum": 1}, "required": True}
    responses["503"]["headers"] = {"Retry-After": wait}
    return {"summary": summary, "requestBody": {"required": True, "content": kinds}, "responses": responses}


def _get(summary: str, answer: Schema | None) -> Schema:
    """answer: of JSON; None: of text."""
    content = {"text/plain": {"schema": {"type": "string"}}} if answer is None else {JSON: {"schema": answer}}
    responses: Schema = {"200": {"description": "answered", "content": content}}
    responses["401"] = {"description": "token", "content": {JSON: {"schema": answers.ERROR}}}
    if answer is answers.READY:
        responses["503"] = {"description": "not ready", "content": content}
    return {"summary": summary, "responses": responses}


def _body(inputs: Inputs, limits: Limits, more: Schema) -> Schema:
    history = {name: _list(column, limits.max_history) for name, column in inputs.history.items()}
    required_events: Schema = {"required": list(history)}
    if inputs.item_keys:
        history["item_key"] = {"type": "array", "items": {"type": "string"}, "maxItems": limits.max_history}
        others = [name for name in required_events["required"] if name != ITEM_ID]
        required_events = {"required": others, "oneOf": [{"required": ["item_key"]}, {"required": [ITEM_ID]}]}
    if inputs.times is not None:
        times = "times of the events, for a feature that is computed of them and that the request does not bring"
        history["ts"] = _list(inputs.times, limits.max_history) | {"description": times}
    events: Schema = {"type": "object", "properties": history, **required_events}
    request = {name: _value(column) for name, column in inputs.request.items()}
    if REQUEST_TS in request:
        moment = "when it is asked as of; now if left out; microseconds since 1970, UTC, from 1971 to a day from now"
        bounds = {"minimum": EARLIEST_US, "maximum": latest_us(now_us())}
        request[REQUEST_TS] = _TYPES["timestamp"] | bounds | {"description": moment}
        if inputs.request[REQUEST_TS].nullable:
            request[REQUEST_TS] = _or_null(request[REQUEST_TS])
    window = {"columns": events, "start": _COUNT, "end": _COUNT, "version": _COUNT}
    properties = {
        "user_id": _ID,
        "request": {"type": "object", "properties": request},
        "history": _or_null(_object(window, ["columns"])),
        "at": _or_null(_COUNT),
        "version": _or_null(_COUNT),
        "deadline_ms": _or_null({"type": "number", "exclusiveMinimum": 0, "maximum": limits.max_deadline_ms}),
    }
    required = [name for name in more if name in ("candidates", "k")]
    if not inputs.user_keys:
        return _object({**properties, **more}, ["user_id", *required])
    keyed = _object({**properties, "user_key": _KEY, **more}, required)
    return keyed | {"oneOf": [{"required": ["user_key"]}, {"required": ["user_id"]}]}


def _candidates(inputs: Inputs, limits: Limits) -> Schema:
    columns = {name: _or_null(_list(column, limits.max_candidates)) for name, column in inputs.item.items()}
    ids = {"type": "array", "items": _ID, "maxItems": limits.max_candidates}
    candidates: Schema = {"type": "object", "properties": {"item_id": ids, **columns}, "required": ["item_id"]}
    if inputs.item_keys:
        candidates["properties"]["item_key"] = {
            "type": "array",
            "items": {"type": "string"},
            "maxItems": ids["maxItems"],
        }
        candidates["oneOf"] = [{"required": ["item_key"]}, {"required": [*candidates.pop("required")]}]
    return {"candidates": candidates}


def _retrieve(inputs: Inputs, limits: Limits) -> Schema:
    ids = {"type": "array", "items": _ID, "maxItems": limits.max_filter_ids}
    categories = {"type": "object", "additionalProperties": ids}
    named = ids | {"items": {"type": ["integer", "string"]}} if inputs.item_keys else ids
    lists = {"allow": _or_null(named), "deny": _or_null(named)}
    window = "leave out the items of the events that the model reads, its window; others that the user saw may come"
    unseen = {"type": "boolean", "description": window}
    filters = _object({**lists, "unseen": unseen, "categories": categories}, [])
    return {"k": {"type": "integer", "minimum": 1, "maximum": limits.max_candidates}, "filter": _or_null(filters)}


def _recommend(inputs: Inputs, limits: Limits, most: int) -> Schema:
    filters = _retrieve(inputs, limits)["filter"]
    length = _or_null({"type": "integer", "minimum": 1, "maximum": most})
    return {"length": length, "filter": filters, "explain": {"type": "boolean"}}


def _infer(part: Part) -> Schema:
    """Any tensors: which of them the model reads is said by its metadata. With an example of one candidate."""
    inputs, options = part.inputs, _or_null({"type": "object"})
    tensor = {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
        "datatype": {"enum": list(oip.DATATYPES)},
        "data": {"description": "a list of the values"},
        "parameters": options | {"description": "binary_data_size: bytes of the values, which follow the JSON then"},
    }
    tensors = {"type": "object", "properties": tensor, "required": ["name", "shape", "datatype"]}
    label = {"name": {"enum": list(part.labels)}, "parameters": options}
    labels = {"type": "object", "properties": label, "required": ["name"]}
    body = {
        "id": _or_null({"type": "string"}),
        "inputs": {"type": "array", "items": tensors, "description": "see GET /v2/models/ranking"},
        "outputs": _or_null({"type": "array", "items": labels}) | {"description": "some of the labels"},
        "parameters": options | {"description": "binary_data_output, deadline_ms"},
    }
    user = ("user_key", "BYTES", "key") if inputs.user_keys else ("user_id", "INT64", 1)
    columns = [(one.name, oip.datatype_of(one), one.dtype == "bool" or 1) for one in inputs.item.values()]
    example = [
        {"name": name, "shape": [1], "datatype": kind, "data": [value]}
        for name, kind, value in (user, (ITEM_ID, "INT64", 1), *columns)
    ]
    return {"type": "object", "properties": body, "required": ["inputs"], "examples": [{"inputs": example}]}


def _object(properties: Schema, required: list[str]) -> Schema:
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return found | ({"required": required} if required else {})


def _or_null(schema: Schema) -> Schema:
    """Of a property that may be left out: null is the same."""
    return {"anyOf": [schema, {"type": "null"}]}


def _value(column: Column) -> Schema:
    if column.width:
        numbers = {"type": "array", "items": _TYPES[column.dtype], "minItems": column.width, "maxItems": column.width}
        return _described(numbers, column)
    found = _TYPES[column.dtype]
    return _described(_or_null(found) if column.nullable else found, column)


def _list(column: Column, most: int) -> Schema:
    found = _TYPES[column.dtype]
    items = _or_null(found) if column.nullable else found
    return _described({"type": "array", "items": items, "maxItems": most}, column)


def _described(schema: Schema, column: Column) -> Schema:
    return schema | ({"description": column.doc} if column.doc else {})


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>reqdedup: API</title><link rel="icon" href="data:,">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre, textarea { font: 13px/1.4 ui-monospace, monospace; }
details { border: 1px solid #8884; border-radius: 6px; margin: .5rem 0; padding: .5rem 1rem; }
summary { cursor: pointer; } .method { display: inline-block; width: 4rem; font-weight: 600; }
textarea { width: 100%; height: 9rem; box-sizing: border-box; }
pre { overflow: auto; max-height: 24rem; background: #8881; padding: .5rem; }
</style>
<h1>reqdedup</h1>
<p>What this server takes, written from the signature of the models that serve now.
<a href="/openapi.json">openapi.json</a>, <a href="/v1/models">models</a>, <a href="/metrics">metrics</a></p>
<p><label>Token, if the server asks for one: <input id="token" type="password" autocomplete="off"></label></p>
<div id="paths">...</div>
<script>
const element = (name, text) => { const e = document.createElement(name)
  if (text !== undefined) e.textContent = text; return e }
const headers = more => { const t = document.getElementById("token").value
  return t ? {...more, authorization: "Bearer " + t} : more }
const example = s => !s ? null : s.examples ? s.examples[0]
  : s.anyOf ? example(s.anyOf[0]) : s.enum ? s.enum[0] : s.type === "object"
  ? Object.fromEntries(Object.entries(s.properties || {})
    .filter(([n]) => (s.required || []).includes(n) || ["request", "user_key", "item_key"].includes(n))
    .map(([n, v]) => [n, n !== "request" ? example(v)
      : Object.fromEntries(Object.entries(v.properties || {})
        .filter(([m]) => m !== "request_ts").map(([m, w]) => [m, example(w)]))]))
  : s.type === "array" ? Array(s.minItems || 1).fill(example(s.items)) : s.type === "string" ? "key"
  : s.type === "boolean" ? true : Math.max(s.minimum ?? 1, 1)
async function show() {
  const box = document.getElementById("paths"); box.textContent = ""
  const answer = await fetch("/openapi.json", {headers: headers({})})
  if (!answer.ok) { box.textContent = "openapi.json: " + answer.status; return }
  const api = await answer.json()
  for (const [path, methods] of Object.entries(api.paths)) for (const [method, operation] of Object.entries(methods)) {
    const details = element("details"), summary = element("summary"), kind = element("span", method.toUpperCase())
    kind.className = "method"; summary.append(kind, element("code", path), " " + operation.summary)
    details.append(summary)
    const schema = operation.requestBody?.content["application/json"].schema
    const out = element("pre"), send = element("button", "Send")
    let body
    if (schema) { body = element("textarea")
      body.value = JSON.stringify(example(schema), null, 1); details.append(body) }
    send.onclick = async () => {
      out.textContent = "..."
      const options = schema
        ? {method: "POST", body: body.value, headers: headers({"content-type": "application/json"})}
        : {headers: headers({})}
      try { const r = await fetch(path, options), text = await r.text()
        out.textContent = r.status + "\\n" + text }
      catch (error) { out.textContent = String(error) }
    }
    details.append(send, out)
    if (schema) { const more = element("details")
      more.append(element("summary", "schema"), element("pre", JSON.stringify(schema, null, 1))); details.append(more) }
    box.append(details)
  }
}
document.getElementById("token").onchange = show; show()
</script></html>
"""
