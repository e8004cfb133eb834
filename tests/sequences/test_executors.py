"""Columns that a function of the user's makes; that all runtimes agree on them, the property tests of `definitions` say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from pyiceberg.catalog import load_catalog

from reqdedup.sequences.batch import advance
from reqdedup.sequences.definition import Computed, EventLog, EventType, SequenceDefinition, check_together
from reqdedup.sequences.executors import executor, load_executor, with_computed
from reqdedup.sequences.intake import append_events, number_events
from reqdedup.sequences.online import open_online
from reqdedup.sequences.published import read_definitions
from reqdedup.sequences.tables import Delivered
from reqdedup.sequences.timeline_builder import TimelineBuilder

NOW_US = 1_750_000_000_000_000
LOG = EventLog(types=["buy"], columns={"price": "float64"})
BAND = Computed("band", executor=f"{__name__}:band", on=["price"], columns={"price_band": "int32"})
BOUGHT = SequenceDefinition(
    name="bought", owner="tests", events=[EventType("buy")], columns=["price_band"], computed=[BAND], last_n=5
)


@executor
def band(events: pl.DataFrame) -> pl.DataFrame:
    return events.select(price_band=pl.col("price").log10().floor())


@executor
def text(events: pl.DataFrame) -> pl.DataFrame:
    return events.select(price_band=pl.format("{} EUR", "price"))


@executor
def total(events: pl.DataFrame) -> pl.DataFrame:
    return events.select(price_band=pl.col("price").sum())


def unmarked(events: pl.DataFrame) -> pl.DataFrame:
    return events


def test_a_definition_with_computed_columns_is_read_back_and_its_fingerprint_covers_them():
    assert SequenceDefinition.from_json(BOUGHT.to_json()) == BOUGHT
    for other in (replace(BAND, executor=f"{__name__}:text"), replace(BAND, columns={"price_band": "int64"})):
        assert replace(BOUGHT, computed=[other]).fingerprint != BOUGHT.fingerprint


def test_values_have_the_dtype_that_the_definition_says():
    found = with_computed(pl.DataFrame({"price": [5.0, 20.0, None]}), BAND, load_executor(BAND))
    assert found["price_band"].to_list() == [0, 1, None]
    assert found.schema["price_band"] == pl.Int32
    assert TimelineBuilder(LOG, [BOUGHT], {}).schema.field("price_band").type == "int32"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{__name__}:unmarked", "found function; mark the function with @executor"),
        (f"{__name__}:nothing", "found NoneType"),
        ("no_such_module:band", "found none .*put it on PYTHONPATH"),
        (f"{__name__}:text", r"values of {'price_band': 'int32'} required"),
        (f"{__name__}:total", "of 2 events required, found price_band of 1"),
    ],
)
def test_an_executor_that_does_not_fit_is_named(name: str, said: str):
    one = replace(BAND, executor=name)
    with pytest.raises(ValueError, match=f"computed band: .*{said}"):
        with_computed(pl.DataFrame({"price": [5.0, 20.0]}), one, load_executor(one))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"executor": "band"}, "module:name of an executor required"),
        ({"on": ["cost"]}, "columns of the events .* required, found 'cost'"),
        ({"columns": {"price": "int32"}}, "found price again"),
        ({"columns": {"price_band": "date"}}, "a dtype of .* required for price_band"),
        ({"columns": {}}, "columns to read and to make required"),
    ],
)
def test_what_does_not_fit_the_log_is_refused(change: dict, said: str):
    with pytest.raises(ValueError, match=said):
        check_together(LOG, [replace(BOUGHT, computed=[replace(BAND, **change)])])


@pytest.mark.slow
def test_events_that_an_executor_refuses_do_not_keep_an_online_store_from_opening(tmp_path: Path):
    catalog = load_catalog("t", type="sql", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/lake")

    def bought(event_id: int, price: float) -> pl.DataFrame:
        return pl.DataFrame(
            {"event_id": [event_id], "user_id": [7], "event_type": ["buy"], "price": [price]}
        ).with_columns(pl.lit(NOW_US + event_id).alias(name) for name in ("event_ts", "arrival_ts"))

    def numbered(event_id: int, price: float) -> pl.DataFrame:
        return number_events(LOG, bought(event_id, price), Delivered(next_position=event_id), 2 * NOW_US).events

    append_events(catalog, "lake", LOG, [bought(0, 5.0).to_arrow()], source="a", now_us=2 * NOW_US)
    advance(catalog, "lake", [BOUGHT], num_buckets=1)
    store = open_online(tmp_path / "online", catalog, "lake")
    store.put(numbered(1, 20.0))
    with pytest.raises(ValueError, match=r"values of {'price_band': 'int32'} required"):
        store.put(numbered(2, 0.0))  # of which the logarithm is no number
    store.put(numbered(2, 300.0))
    store.close()
    again = open_online(tmp_path / "online", catalog, "lake")
    assert again.fetch(7, "bought")["price_band"].tolist() == [0, 1, 2]
    again.close()


def test_a_module_beside_the_definitions_is_found(tmp_path: Path):
    (tmp_path / "bands_of_a_shop.py").write_text(
        "import polars as pl\n"
        "from reqdedup.sequences.executors import executor\n"
        "@executor\n"
        "def band(events):\n"
        "    return events.select(price_band=pl.col('price') // 10)\n"
    )
    (tmp_path / "sequences.py").write_text(
        "from reqdedup.sequences.definition import Computed, EventLog, EventType, SequenceDefinition\n"
        "log = EventLog(types=['buy'], columns={'price': 'float64'})\n"
        "band = Computed('band', 'bands_of_a_shop:band', ['price'], {'price_band': 'int32'})\n"
        "bought = SequenceDefinition(name='bought', last_n=5, owner='me', events=[EventType('buy')],\n"
        "                            columns=['price_band'], computed=[band])\n"
    )
    found = read_definitions(tmp_path / "sequences.py")
    TimelineBuilder(found.log, found.definitions, {})  # imports it again by its name
