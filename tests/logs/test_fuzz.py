"""Damaged files in every format: never a library's traceback, and every row is accepted or rejected exactly once."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reqdedup.logs import LogError, read_log
from tests.logs import mutations

pytestmark = pytest.mark.filterwarnings("ignore:.*missing on every row")
WHOLE_FILE = {"unreadable", "missing_columns", "empty_file"}
HEADERLESS = {**mutations.MAPPING, "header": False, "columns": list(mutations.COLUMNS)}
CANDIDATES = {
    **{key: value for key, value in mutations.MAPPING.items() if key != "item_id"},
    "candidates": {"column": "item", "position": True},
}


def read(path, mapping, **options) -> tuple[int, dict[str, int]]:
    """Accepted rows, and rejected ones by reason; a log without any row is a clear error."""
    try:
        reader = read_log(path, mapping=mapping, max_rejects=1, **options)
    except LogError:  # every other error is a failure of the test
        return 0, {"unreadable": 1}
    rows = 0
    with contextlib.suppress(LogError):
        rows = sum(batch.num_rows for batch in reader)
    assert sum(reader.counts.rejected.values()) == reader.rejects.num_rows
    return rows, dict(reader.counts.rejected)


def fuzz_text(folder, rng: random.Random) -> None:
    kind, separator = rng.choice(list(mutations.SEPARATORS.items()))
    data = mutations.mutate(mutations.as_text(mutations.rows(rng, 15), separator), rng, rng.randrange(12))
    suffix = rng.choice(["", ".gz", ".bz2"])
    path = folder / f"log.{kind}{suffix}"
    path.write_bytes(mutations.compress(data, suffix))
    mapping = {**HEADERLESS, "separator": separator, "item_columns": {"price": "float32", "note": "string"}}
    rows, rejected = read(path, mapping, block_bytes=rng.choice([300, 10**6]))
    if not WHOLE_FILE & rejected.keys():
        assert rows + sum(rejected.values()) == mutations.count_records(data, separator), data


def fuzz_header(folder, rng: random.Random) -> None:
    kind, separator = rng.choice(list(mutations.SEPARATORS.items()))
    header = separator.join(mutations.COLUMNS).encode() + b"\n"
    data = mutations.mutate(header + mutations.as_text(mutations.rows(rng, 10), separator), rng, rng.randrange(8))
    path = folder / f"log.{kind}"
    path.write_bytes(data)
    read(path, rng.choice([mutations.MAPPING, CANDIDATES]), block_bytes=rng.choice([900, 10**6]))


def fuzz_json(folder, rng: random.Random) -> None:
    data = mutations.mutate(mutations.as_json(mutations.rows(rng, 10)), rng, rng.randrange(12))
    suffix = rng.choice(["", ".gz"])
    path = folder / f"log.jsonl{suffix}"
    path.write_bytes(mutations.compress(data, suffix))
    rows, rejected = read(path, mutations.MAPPING, block_bytes=rng.choice([900, 10**6]))
    if not WHOLE_FILE & rejected.keys():
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert rows + sum(rejected.values()) == sum(line.rstrip(b"\r") != b"" for line in lines), data
    if rng.random() < 0.3:
        read(path, CANDIDATES)


def fuzz_damaged_container(folder, rng: random.Random) -> None:
    log = mutations.rows(rng, 40)
    name, data = rng.choice(
        [
            ("log.parquet", mutations.as_parquet(log)),
            ("log.csv.gz", mutations.compress(mutations.as_text(log, ","), ".gz")),
            ("log.jsonl.bz2", mutations.compress(mutations.as_json(log), ".bz2")),
            ("log.csv", mutations.as_parquet(log)),
            ("log.parquet", mutations.as_text(log, ",")),
        ]
    )
    (folder / name).write_bytes(mutations.mutate(data, rng, rng.randrange(1, 4)))
    read(folder / name, HEADERLESS)


def fuzz_types(folder, rng: random.Random) -> None:
    """A Parquet file whose columns have any type: each of its rows is accepted or rejected once."""
    count = rng.randrange(1, 9)
    good = {name: pa.array([row[name] for row in mutations.rows(rng, count)]) for name in mutations.COLUMNS}
    for name in rng.sample(mutations.COLUMNS, rng.randrange(1, 4)):
        good[name] = mutations.strange_array(rng, count)
    path = folder / "log.parquet"
    try:
        pq.write_table(pa.table(good), path)
    except pa.ArrowNotImplementedError:
        return  # a type that Parquet cannot hold
    rows, rejected = read(path, mutations.MAPPING)
    if not WHOLE_FILE & rejected.keys():
        assert rows + sum(rejected.values()) == count, pa.table(good).schema
    read(path, CANDIDATES)


FUZZERS = [fuzz_text, fuzz_header, fuzz_json, fuzz_damaged_container, fuzz_types]


@pytest.mark.slow
@pytest.mark.parametrize("fuzzer", FUZZERS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_costs_its_bad_rows_and_no_traceback(fuzzer: Callable, seed: int, tmp_path_factory):
    fuzzer(tmp_path_factory.mktemp("log"), random.Random(seed))


@pytest.mark.soak
@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_a_damaged_file_costs_its_bad_rows_and_no_traceback_for_long(fuzzer: Callable, tmp_path):
    seed, end = random.SystemRandom().randrange(2**32), time.monotonic() + 36
    while time.monotonic() < end:
        seed += 1
        try:
            fuzzer(tmp_path, random.Random(seed))
        except BaseException as error:
            raise AssertionError(f"{fuzzer.__name__} fails with random.Random({seed})") from error
