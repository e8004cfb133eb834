"""One predicate, three engines: Polars, DuckDB and a Python function agree in every row, nulls and NaN included."""

from __future__ import annotations

import math

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.sequences.predicate import And, Compare, In, IsNull, Not, Or, Predicate, col, predicate_from_json

DTYPES = {"small": "int32", "big": "int64", "single": "float32", "double": "float64", "text": "string", "flag": "bool"}
POLARS = {
    "small": pl.Int32,
    "big": pl.Int64,
    "single": pl.Float32,
    "double": pl.Float64,
    "text": pl.String,
    "flag": pl.Boolean,
}
SINGLES = [0.0, -0.0, 0.1, 10.0, math.inf, -math.inf, math.nan, 16_777_217.0]
VALUES = {
    "small": st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31), 10]),
    "big": st.sampled_from([0, 1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 10]),
    "single": st.sampled_from(SINGLES),
    "double": st.sampled_from([*SINGLES, 0.1 + 0.2, 5e-324]),
    "text": st.sampled_from(["", "a", "A", "b", "'", '"', "é", "💥", "\n", "%"]),
    "flag": st.booleans(),
}
CONNECTION = duckdb.connect(config={"threads": 1})
OPERATORS = ["==", "!=", "<", "<=", ">", ">="]


def literals(name: str) -> st.SearchStrategy:
    values = VALUES[name].filter(lambda value: not (isinstance(value, float) and math.isnan(value)))
    if name in ("small", "big"):
        return values | VALUES["big"]
    return values | st.sampled_from([0, 10, 2**24]) if name in ("single", "double") else values


@st.composite
def leaves(draw: st.DrawFn) -> Predicate:
    name = draw(st.sampled_from(sorted(DTYPES)))
    kind = draw(st.sampled_from(["compare", "in", "null"]))
    if kind == "null":
        return IsNull(name)
    if kind == "in":
        return In(name, tuple(draw(st.lists(literals(name), max_size=3))))
    return Compare(name, draw(st.sampled_from(OPERATORS[:2] if name == "flag" else OPERATORS)), draw(literals(name)))


PREDICATES = st.recursive(
    leaves(),
    lambda parts: (
        st.lists(parts, max_size=3).map(lambda found: And(tuple(found)))
        | st.lists(parts, max_size=3).map(lambda found: Or(tuple(found)))
        | parts.map(Not)
    ),
    max_leaves=5,
)
ROWS = st.lists(st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()}), max_size=8)


@pytest.mark.slow
@settings(max_examples=60)
@given(predicate=PREDICATES, rows=ROWS)
def test_polars_duckdb_and_python_agree(predicate: Predicate, rows: list[dict]):
    frame = pl.DataFrame(rows, schema=POLARS)
    predicate.check(DTYPES)
    holds = predicate.to_row()
    python = [holds(row) for row in frame.to_dicts()]
    polars = frame.select(pl.repeat(True, pl.len()) & predicate.to_polars(DTYPES))
    assert polars.to_series().to_list() == python
    CONNECTION.register("events", frame.to_arrow())
    found = CONNECTION.execute(f"SELECT {predicate.to_duckdb(DTYPES)} FROM events").fetchall()
    assert [row[0] for row in found] == python
    assert predicate_from_json(predicate.to_json()) == predicate


def test_a_comparison_with_null_or_nan_is_false_and_its_negation_true():
    rows = [{"double": value} for value in (None, math.nan, 9.0, 10.0, 11.0)]
    for predicate, required in (
        (col("double") >= 10, [False, False, False, True, True]),
        (col("double") != 10, [False, False, True, False, True]),
        (~(col("double") >= 10), [True, True, True, False, False]),
        (col("double").is_null(), [True, True, False, False, False]),
    ):
        assert [predicate.to_row()(row) for row in rows] == required


@pytest.mark.parametrize(
    ("predicate", "said"),
    [
        (col("nothing") == 1, "a column of the events"),
        (col("big") == 1.5, "a value of int64 required for column big, found 1.5"),
        (col("double") == 2**53 + 1, "a value of float64"),
        (col("text") == 1, "a value of string"),
        (col("flag") < True, "== or != required"),
        (col("flag") == 1, "a value of bool"),
    ],
)
def test_what_engines_would_compare_differently_is_refused(predicate: Predicate, said: str):
    with pytest.raises(ValueError, match=said):
        predicate.check(DTYPES)


def test_python_s_own_and_is_refused():
    with pytest.raises(ValueError, match="~ required"):
        _ = (col("big") > 1) and (col("big") < 3)
    with pytest.raises(ValueError, match="found nan"):
        col("double") == math.nan  # noqa: B015
    with pytest.raises(ValueError, match="64 bits"):
        col("big") == 2**63  # noqa: B015
