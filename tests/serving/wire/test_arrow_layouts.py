"""Columns of a stream whose heads are known are those that pyarrow reads, and answers are pyarrow's bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.serving.limits import Limits
from reqdedup.serving.requests import RequestError
from reqdedup.serving.wire.arrow import rank_request_of
from reqdedup.serving.wire.arrow_layouts import columns_of, field, stream_of
from reqdedup.serving.wire.bodies import Inputs

KEY = b"reqdedup.request"
TYPES = (np.int64, np.int32, np.uint8, np.int16, np.float32, np.float64, np.float16)


def written(columns, metadata, *, batches=1, **options):
    batch = pa.record_batch(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for _ in range(batches):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def random_columns(rng, count):
    kinds = rng.choice(len(TYPES), rng.integers(1, 6))
    return {
        f"{'x' * rng.integers(1, 9)}{place}": rng.integers(0, 100, count).astype(TYPES[kind])
        for place, kind in enumerate(kinds)
    }


def equal(found, columns):
    assert list(found) == list(columns)
    for name, wanted in columns.items():
        assert found[name].dtype == wanted.dtype
        assert found[name].tobytes() == wanted.tobytes(), name


def test_columns_are_those_that_were_written_whatever_the_sizes_and_the_metadata():
    rng = np.random.default_rng(0)
    for _ in range(150):
        value = b"{" * int(rng.integers(0, 300))
        for _ in range(2):  # of heads that are known, too
            columns = random_columns(rng, int(rng.integers(1, 120)))
            said, found = columns_of(written(columns, {KEY: value}), KEY)
            assert said == value
            equal(found, columns)


@pytest.mark.parametrize(
    ("columns", "metadata", "options"),
    [
        ({"x": pa.array([1, None])}, {KEY: b"{}"}, {}),
        ({"x": pa.array(["a", "b"])}, {KEY: b"{}"}, {}),
        ({"x": pa.array([True, False])}, {KEY: b"{}"}, {}),
        ({"x": pa.array([], pa.int64())}, {KEY: b"{}"}, {}),
        ({"x": pa.array(["a", "b"]).dictionary_encode()}, {KEY: b"{}"}, {}),
        ({"x": pa.array([1, 2])}, {KEY: b"{}"}, {"batches": 2}),
        ({"x": pa.array([1, 2])}, {KEY: b"{}"}, {"batches": 0}),
        ({"x": pa.array([1, 2] * 500)}, {KEY: b"{}"}, {"compression": "zstd"}),
        ({"x": pa.array([1, 2])}, {KEY: b"{}", b"pandas": b"{}"}, {}),
        ({"x": pa.array([1, 2])}, {b"another": b"{}"}, {}),
        ({"x": pa.array([1, 2])}, {}, {}),
    ],
    ids=["null", "text", "bool", "empty", "dictionary", "two", "none", "zstd", "more", "another", "no metadata"],
)
def test_other_streams_are_left_to_pyarrow(columns, metadata, options):
    assert columns_of(written(columns, metadata, **options), KEY) is None


def test_a_stream_that_was_cut_or_changed_is_never_read_beyond_its_end():
    rng, columns = np.random.default_rng(1), {"item_id": np.arange(40), "price": np.ones(40, np.float32)}
    body = written(columns, {KEY: b'{"user_id": 1}'})
    equal(columns_of(body, KEY)[1], columns)
    for end in range(len(body)):
        assert columns_of(body[:end], KEY) is None or end >= len(body) - 8
    for _ in range(3000):
        changed = bytearray(body)
        for place in rng.integers(0, len(body), 2):
            changed[place] = rng.integers(0, 256)
        found = columns_of(bytes(changed), KEY)
        assert found is None or all(len(one) <= len(body) for one in found[1].values())


def test_a_stream_whose_first_message_is_no_schema_is_refused_before_it_is_read_as_one():
    """pyarrow verifies a message as what it says it is, and would read what it did not verify: that ends the process"""
    body = bytearray(written({"item_id": pa.array([1, 2])}, {KEY: b'{"user_id": 1}'}))
    type_place = field(body, 8 + int.from_bytes(body[8:12], "little"), 1)
    for other in (0, 2, 3, 33):  # none, dictionary, record batch, unknown
        body[type_place] = other
        with pytest.raises(RequestError, match=r"begins with a schema|another or a part"):
            rank_request_of(bytes(body), Inputs(), Limits())
    body[type_place] = 1
    assert rank_request_of(bytes(body), Inputs(), Limits()).request.candidates["item_id"].tolist() == [1, 2]


def test_answers_are_the_bytes_that_pyarrow_writes():
    rng = np.random.default_rng(2)
    for count in (0, 1, 2, 7, 100, 1001):
        for labels in (("click",), ("click", "save", "hide")):
            for length in (0, 5, 200, 201):
                columns = {name: rng.standard_normal(count).astype(np.float32) for name in labels}
                found = stream_of(columns, b"reqdedup.answer", value := b"7" * length)
                assert found == written(columns, {b"reqdedup.answer": value})
