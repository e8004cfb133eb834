"""Open Inference Protocol (KServe v2) for the ranking call, JSON with the binary tensor extension.

    input                                shape               is
    user_id                              [1]                 the user
    item_id, item-level columns          [M]                 the candidates
    request-level columns                [1], vectors [W]    optional if the store has them
    history_* columns                    [L]                 the user's window, all or none of them
    history_end, timeline_version        [1]                 of that window; without one, which the store is asked for
    user_key, item_key, history_item_key BYTES               in the place of ids, if the log's are texts

Outputs are logits, FP32 [M], one for each label, or those that were asked for, in that order; what `/v1/rank` says
beside them stands in `parameters`.
Source: https://github.com/kserve/open-inference-protocol, specification/protocol and extensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reqdedup.schema import HISTORY_END, ITEM_ID, TIMELINE_VERSION, USER_ID, Column, Level
from reqdedup.serving.limits import Limits
from reqdedup.serving.names import HEADER_LENGTH
from reqdedup.serving.requests import Ranked, RequestError
from reqdedup.serving.wire.answers import encode, ranked_head
from reqdedup.serving.wire.bodies import Asked, Inputs, parse_object, rank_request
from reqdedup.serving.wire.values import array, integer
from reqdedup.values import INT64, shown, type_of

_DTYPES = {"BOOL": "bool", "INT32": "int32", "INT64": "int64", "FP32": "float32", "FP64": "float64"}
DATATYPES = (*_DTYPES, "BYTES")
_NAMES = {dtype: name for name, dtype in _DTYPES.items()} | {"timestamp": "INT64"}


@dataclass(frozen=True)
class Outputs:
    """Which tensors an answer is to have. named: whether each is to be binary, in the order asked; empty: all labels.
    binary: of those about which nothing is said."""

    named: Mapping[str, bool]
    binary: bool

    @classmethod
    def read(cls, given: Any, *, binary: bool) -> Outputs:
        if not isinstance(given, list):
            raise RequestError("outputs", "a list of tensors", shown(given))
        named: dict[str, bool] = {}
        for one in given:
            name = one.get("name") if isinstance(one, dict) else None
            if not isinstance(name, str) or name in named:
                raise RequestError("outputs", "tensors of different names", shown(name))
            named[name] = _parameters(one).get("binary_data", binary) is True
        return cls(named, binary)

    def of(self, labels: Sequence[str]) -> dict[str, bool]:
        """Of a model with these labels. Raises RequestError for a name that is none of them."""
        if unknown := [name for name in self.named if name not in labels]:
            raise RequestError("outputs", f"names of {', '.join(labels)}", shown(unknown[0]))
        return dict(self.named) or dict.fromkeys(labels, self.binary)


def rank_request_of(
    body: bytes, header_length: int | None, inputs: Inputs, limits: Limits
) -> tuple[Asked, str | None, Outputs]:
    """The request, its id, and which tensors the answer is to have."""
    if header_length is not None and not 0 < header_length <= len(body):
        raise RequestError(
            HEADER_LENGTH, f"a length of at most the body's, {len(body)}", str(header_length), status=400
        )
    head = parse_object(body[:header_length])
    tensors = _tensors(head.get("inputs"), body[header_length:] if header_length is not None else b"")
    of_history = {column.name: name for name, column in inputs.history.items()}
    of_history |= {} if inputs.times is None else {inputs.times.name: "ts"}
    of_history |= {"history_item_key": "item_key"}
    values: dict[str, Any] = {name: _one(tensors, name) for name in (USER_ID, "user_key") if name in tensors}
    options = _parameters(head)
    if "deadline_ms" in options:
        values["deadline_ms"] = options["deadline_ms"]
    events = {of_history[name]: tensor for name, tensor in tensors.items() if name in of_history}
    end, version = _count(tensors, HISTORY_END), _count(tensors, TIMELINE_VERSION)
    if events:
        length = max(len(tensor) for tensor in events.values())
        values["history"] = {"columns": events} | ({} if end is None else {"end": end, "start": end - length})
        values["history"] |= {} if version is None else {"version": version}
    else:
        values["at"], values["version"] = end, version
    values["request"] = {
        name: tensors[name] if column.width else _one(tensors, name)
        for name, column in inputs.request.items()
        if name in tensors
    }
    known = {USER_ID, "user_key", HISTORY_END, TIMELINE_VERSION, *of_history, *inputs.request}
    candidates = {name: tensor for name, tensor in tensors.items() if name not in known}
    asked = rank_request(values, inputs, limits, candidates)
    given, request_id = head.get("outputs"), head.get("id")
    outputs = Outputs.read([] if given is None else given, binary=options.get("binary_data_output") is True)
    if request_id is not None and not isinstance(request_id, str):
        raise RequestError("id", "a text", shown(request_id))
    return asked, request_id, outputs


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    found = given.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise RequestError("parameters", "an object", shown(found))
    return found or {}


def _tensors(given: Any, binary: bytes) -> dict[str, Any]:
    """Arrays by name; of texts, lists."""
    if not isinstance(given, list):
        raise RequestError("inputs", "a list of tensors", "none" if given is None else shown(given))
    found: dict[str, Any] = {}
    place = 0
    for tensor in given:
        name = tensor.get("name") if isinstance(tensor, dict) else None
        if not isinstance(name, str) or name in found:
            raise RequestError("inputs", "tensors of different names", shown(name))
        shape, datatype = tensor.get("shape"), tensor.get("datatype")
        if datatype != "BYTES" and (not isinstance(datatype, str) or datatype not in _DTYPES):
            raise RequestError(name, f"a datatype of {', '.join(_DTYPES)}, BYTES", shown(datatype))
        is_shape = isinstance(shape, list) and 0 < len(shape) <= 2
        if not is_shape or not all(type(one) is int and 0 <= one < 2**31 for one in shape):
            raise RequestError(name, "a shape of one or two whole numbers", shown(shape))
        count = int(np.prod(shape))
        if len(shape) == 2 and 1 not in shape:
            raise RequestError(name, "a shape of one axis, beside one of length 1", shown(shape))
        size = _parameters(tensor).get("binary_data_size")
        if datatype == "BYTES":
            data = tensor.get("data")
            if size is not None:
                data, place = _texts(name, binary, place, size)
            if not isinstance(data, list) or len(data) != count or not all(isinstance(one, str) for one in data):
                raise RequestError(name, f"{count} texts", shown(data))
            found[name] = data
            continue
        column = Column(name=name, dtype=_DTYPES[datatype], level=Level.ITEM)
        if size is None:
            found[name] = _from_list(tensor.get("data"), column, count)
            continue
        dtype = type_of(column).newbyteorder("<")
        width = dtype.itemsize
        if size != count * width or place + size > len(binary):
            raise RequestError(name, f"{count * width} bytes of {datatype}", f"{shown(size)} of {len(binary) - place}")
        found[name] = np.frombuffer(binary, dtype, count, place)
        place += size
    if place != len(binary):
        raise RequestError("body", f"{place} bytes of binary tensors", str(len(binary)), status=400)
    return found


def _texts(name: str, binary: bytes, place: int, size: Any) -> tuple[list[str], int]:
    """Texts, each behind its length in four bytes, and where they end."""
    texts: list[str] = []
    end = place + size if type(size) is int and 0 <= size <= len(binary) - place else -1
    while place < end:
        begin = place + 4
        place = begin + int.from_bytes(binary[place:begin], "little")
        if place > end:
            break
        try:
            texts.append(binary[begin:place].decode())
        except UnicodeDecodeError:
            raise RequestError(name, "texts in UTF-8", "other bytes") from None
    if place != end:
        raise RequestError(name, "binary_data_size bytes of texts, each behind its length", shown(size))
    return texts, end


def _from_list(data: Any, column: Column, count: int) -> np.ndarray:
    """The values, flat, of a list or of lists of lists whose second axis has length 1, or whose first."""
    while isinstance(data, list) and len(data) == 1 and isinstance(data[0], list):
        data = data[0]
    if isinstance(data, list) and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    if not isinstance(data, list) or len(data) != count:
        found = f"{len(data)}" if isinstance(data, list) else shown(data)
        raise RequestError(column.name, f"{count} values of {column.dtype}", found)
    return array(data, column, column.name)


def _one(tensors: Mapping[str, Any], name: str) -> Any:
    values = tensors.get(name)
    if values is None:
        return None
    if len(values) != 1:
        raise RequestError(name, "one value", f"{len(values)}")
    return values[0]


def _count(tensors: Mapping[str, Any], name: str) -> int | None:
    value = _one(tensors, name)
    return None if value is None else integer(value, name, 0, INT64[1])


def ranked_body(
    ranked: Ranked, model: str, request_id: str | None, wanted: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """The answer, and the length of its JSON if tensors follow it. wanted: labels, and whether each is to be binary."""
    outputs: list[dict[str, Any]] = []
    tail = b""
    for name, is_binary in wanted.items():
        values = np.ascontiguousarray(ranked.logits[name], "<f4")
        output: dict[str, Any] = {"name": name, "shape": [len(values)], "datatype": "FP32"}
        if is_binary:
            output["parameters"] = {"binary_data_size": values.nbytes}
            tail += values.tobytes()
        else:
            output["data"] = values
        outputs.append(output)
    said = {
        key: ", ".join(one) if key == "marks" else one for key, one in ranked_head(ranked).items() if key != "model"
    }
    answer = {"model_name": model, "model_version": ranked.model, "outputs": outputs, "parameters": said}
    if request_id is not None:
        answer["id"] = request_id
    head = encode(answer)
    return (head + tail, len(head)) if any(wanted.values()) else (head, None)


def datatype_of(column: Column) -> str:
    return _NAMES[column.dtype]


def metadata(model: str, versions: list[str], inputs: Inputs, labels: list[str]) -> dict[str, Any]:
    """The model's signature in the protocol's words; -1 is any length."""

    def tensor(column: Column, length: int) -> dict[str, Any]:
        return {"name": column.name, "datatype": datatype_of(column), "shape": [column.width or length]}

    whole = [{"name": name, "datatype": "INT64", "shape": [1]} for name in (USER_ID, HISTORY_END, TIMELINE_VERSION)]
    return {
        "name": model,
        "versions": versions,
        "platform": "reqdedup",
        "inputs": [
            *whole,
            {"name": ITEM_ID, "datatype": "INT64", "shape": [-1]},
            *(tensor(column, -1) for column in inputs.item.values()),
            *(tensor(column, 1) for column in inputs.request.values()),
            *(tensor(column, -1) for column in inputs.history.values()),
            *([] if inputs.times is None else [tensor(inputs.times, -1)]),
        ],
        "outputs": [{"name": label, "datatype": "FP32", "shape": [-1]} for label in labels],
    }
