"""Arrow IPC streams for machines: candidates as record batches, the rest as JSON in the schema's metadata.

    request   schema metadata `reqdedup.request`: the JSON object of /v1/rank without its candidates
              columns item_id and the item-level columns, a row per candidate
    answer    schema metadata `reqdedup.answer`: everything but the logits;  a float32 column of logits per label

Pays from some hundred candidates. Compressed bodies are refused, since a few bytes can ask for gigabytes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa

from reqdedup.serving.limits import Limits
from reqdedup.serving.names import ANSWER_KEY, REQUEST_KEY
from reqdedup.serving.requests import Ranked, RequestError
from reqdedup.serving.wire.answers import encode, ranked_head
from reqdedup.serving.wire.arrow_layouts import END, columns_of, field, stream_of
from reqdedup.serving.wire.bodies import Asked, Inputs, parse_object, rank_request

_PLAIN = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_timestamp)


def rank_request_of(body: bytes, inputs: Inputs, limits: Limits) -> Asked:
    """Raises RequestError for a body that is cut, compressed, or not what the signature says."""
    if not body.endswith(END):  # allowed to be left out, but then a stream that was cut between batches looks whole
        raise RequestError(
            "body", "an Arrow IPC stream with its end-of-stream mark", f"{len(body)} bytes without it", status=400
        )
    wanted = {"item_id", *inputs.item, *(["item_key"] if inputs.item_keys else [])}
    said, columns = columns_of(body, REQUEST_KEY) or _by_pyarrow(body, wanted, limits)
    candidates = {name: values if name in wanted else None for name, values in columns.items()}
    return rank_request(parse_object(said), inputs, limits, candidates)


def _by_pyarrow(body: bytes, wanted: set[str], limits: Limits) -> tuple[bytes, dict[str, Any]]:
    """The request's JSON, and the columns by name; None of those that are not wanted."""
    try:
        schema, batches = _read(body)
        names, metadata = schema.names, schema.metadata or {}
        if len(set(names)) < len(names):
            raise RequestError("candidates", "columns of different names", ", ".join(names))
        for batch in batches:
            batch.validate(full=True)
        columns = batches[0] if len(batches) == 1 else pa.Table.from_batches(batches, schema).combine_chunks()
    except RequestError:
        raise
    except (pa.ArrowException, ValueError, OSError, struct.error) as error:
        raise RequestError("body", "an Arrow IPC stream", f"another or a part of one: {error}", status=400) from None
    if REQUEST_KEY not in metadata:
        raise RequestError("body", f"schema metadata {REQUEST_KEY.decode()} with the request as JSON", "none")
    if columns.num_rows > limits.max_candidates:
        raise RequestError(
            "candidates.item_id", f"at most {limits.max_candidates} entries", str(columns.num_rows), status=413
        )
    return metadata[REQUEST_KEY], {name: _values(columns, name) if name in wanted else None for name in names}


def _read(body: bytes) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Schema and batches of a stream, message by message: a reader of whole streams would read every head twice."""
    messages = list(pa.ipc.MessageReader.open_stream(body))
    for message in messages:
        if message.type == "record batch":
            _refuse_compressed(message.metadata.to_pybytes())
    if not messages or messages[0].type != "schema":  # of another type it was not verified: reading it can crash
        raise RequestError("body", "an Arrow IPC stream that begins with a schema", "another", status=400)
    if all(message.type == "record batch" for message in messages[1:]):
        schema = pa.ipc.read_schema(messages[0])
        return schema, [pa.ipc.read_record_batch(message, schema) for message in messages[1:]]
    with pa.ipc.open_stream(body) as reader:  # dictionaries, which need a memory
        return reader.schema, list(reader)


def _values(columns: pa.RecordBatch | pa.Table, name: str) -> np.ndarray | list[Any]:
    column = columns.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not any(is_plain(column.type) for is_plain in _PLAIN):
        raise RequestError(f"candidates.{name}", "plain integers, floats, booleans or text", str(column.type))
    if pa.types.is_timestamp(column.type):
        if column.type.unit != "us":
            raise RequestError(f"candidates.{name}", "timestamps in microseconds", str(column.type))
        column = column.cast(pa.int64())
    if column.null_count or pa.types.is_string(column.type):
        return column.to_pylist()
    return column.to_numpy(zero_copy_only=False)


def ranked_body(ranked: Ranked) -> bytes:
    logits = {name: np.ascontiguousarray(one, np.float32) for name, one in ranked.logits.items()}
    return stream_of(logits, ANSWER_KEY, encode(ranked_head(ranked)))


def _refuse_compressed(head: bytes) -> None:
    """Looks into the head of a record batch: pyarrow itself decompresses without asking.

    A head is a flatbuffer: Message (version, header_type, header, ...) -> RecordBatch (length, nodes, buffers,
    compression, ...), format/Message.fbs of Apache Arrow.
    """
    (root,) = struct.unpack_from("<I", head, 0)
    header = field(head, root, 2)
    if header is None:
        raise RequestError("body", "record batches", "one without a head", status=400)
    batch = header + struct.unpack_from("<I", head, header)[0]
    if field(head, batch, 3) is not None:
        raise RequestError("body", "an uncompressed Arrow IPC stream", "a compressed one", status=415)
