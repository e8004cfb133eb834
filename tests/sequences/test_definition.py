"""A definition has one text, one fingerprint, and never changes silently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pyiceberg.catalog import Catalog

from reqdedup.sequences.definition import Enrichment, EventLog, EventType, SequenceDefinition, check_together
from reqdedup.sequences.predicate import col
from reqdedup.sequences.published import publish_definitions, published_definitions, read_definitions

LOG = EventLog(types=("view", "click", "save"), columns={"surface": "int32", "duration_s": "float64"})
ENGAGED = SequenceDefinition(
    name="engaged",
    last_n=500,
    window="90d",
    owner="ads",
    retention="400d",
    stage="production",
    events=[EventType("click"), EventType("view", where=(col("duration_s") >= 10) & ~col("surface").is_in([3, 4]))],
    enrichments=[Enrichment("item", table="lake.items", on="item_id", columns=["category"], as_of="valid_from")],
    columns=["item_id", "event_type", "event_ts", "category"],
)


def test_a_definition_that_is_read_back_is_the_same():
    again = SequenceDefinition.from_json(ENGAGED.to_json())
    assert again == ENGAGED
    assert again.to_json() == ENGAGED.to_json()
    assert again.fingerprint == ENGAGED.fingerprint == "da4e17b172b5a5e4bb31b618944b68b9"
    assert EventLog.from_json(LOG.to_json()) == LOG


def test_the_fingerprint_is_of_what_decides_the_values():
    assert replace(ENGAGED, owner="search", stage="retired", retention=None).fingerprint == ENGAGED.fingerprint
    for changed in (
        replace(ENGAGED, last_n=499),
        replace(ENGAGED, window=None),
        replace(ENGAGED, columns=ENGAGED.columns[:-1]),
        replace(ENGAGED, events=ENGAGED.events[:1]),
        replace(ENGAGED, enrichments=[replace(ENGAGED.enrichments[0], as_of=None)]),
        replace(ENGAGED, version=2),
    ):
        assert changed.fingerprint != ENGAGED.fingerprint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Engaged"}, "small letters"),
        ({"events": [EventType("hide")]}, "an event type of view, click, save required, found 'hide'"),
        ({"events": [EventType("click"), EventType("click")]}, "event types, each once"),
        ({"events": []}, "found none"),
        ({"events": [EventType("view", col("dwell") > 1)]}, "found 'dwell'"),
        ({"columns": ["item_id", "price"]}, "found 'price'"),
        ({"last_n": 0}, "last_n and version of at least 1"),
        ({"window": "90 days"}, "found '90 days'"),
        ({"window": "500d"}, "a retention of at least the window"),
        ({"owner": " "}, "an owner required"),
        ({"stage": "live"}, "a stage of draft"),
        ({"enrichments": [Enrichment("item", "lake.items", "item_id", ["surface"])]}, "found surface again"),
        ({"enrichments": [Enrichment("item", "lake.items", "shop", ["category"])]}, "found 'shop'"),
    ],
)
def test_what_does_not_fit_the_log_is_refused(change: dict, said: str):
    with pytest.raises(ValueError, match=said):
        check_together(LOG, [replace(ENGAGED, **change)])


def test_definitions_of_one_timeline_mean_the_same_by_one_name():
    other = replace(ENGAGED, name="other", enrichments=[replace(ENGAGED.enrichments[0], as_of=None)])
    with pytest.raises(ValueError, match="enrichment item: one meaning"):
        check_together(LOG, [ENGAGED, other])
    with pytest.raises(ValueError, match="each name once"):
        check_together(LOG, [ENGAGED, ENGAGED])


@pytest.mark.slow
def test_a_change_of_what_a_sequence_holds_is_refused_without_a_new_version(catalog: Catalog):
    assert [c.differences for c in publish_definitions(catalog, "lake", LOG, [ENGAGED])] == [
        ("engaged: new, version 1",)
    ]
    assert publish_definitions(catalog, "lake", LOG, [ENGAGED])[0].differences == ()
    silent = replace(ENGAGED, last_n=100)
    with pytest.raises(ValueError, match=r"version 2 required for a change .*last_n: 500 -> 100"):
        publish_definitions(catalog, "lake", LOG, [silent])
    assert published_definitions(catalog, "lake") == {"engaged": ENGAGED}
    publish_definitions(catalog, "lake", LOG, [replace(silent, version=2)])
    publish_definitions(catalog, "lake", LOG, [replace(silent, version=2, owner="search")])
    assert published_definitions(catalog, "lake") == {"engaged": replace(silent, version=2, owner="search")}
    with pytest.raises(ValueError, match="version 2 or later required, found 1"):
        publish_definitions(catalog, "lake", LOG, [ENGAGED])


def test_a_file_of_definitions_is_python(tmp_path: Path):
    path = tmp_path / "sequences.py"
    path.write_text(
        "from reqdedup.sequences.definition import EventLog, EventType, SequenceDefinition\n"
        "log = EventLog(types=['click'], columns={})\n"
        "clicked = SequenceDefinition(name='clicked', last_n=5, owner='me', events=[EventType('click')],\n"
        "                             columns=['item_id'])\n"
    )
    found = read_definitions(path)
    assert found.log.types == ("click",)
    assert [definition.name for definition in found.definitions] == ["clicked"]
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="one EventLog required, found 0"):
        read_definitions(path)


@pytest.mark.parametrize("text", ["1\tx\t5\n", "1 / 0\n", "import nowhere_at_all\n"])
def test_a_file_that_does_not_run_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "one.py").write_text(text)
    with pytest.raises(ValueError, match=r"one\.py: Python that runs required, found \w+Error: "):
        read_definitions(tmp_path / "one.py")
