"""`reqdedup sequences` from a file of events to a user's sequence."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from reqdedup import cli
from reqdedup.storage import open_catalog

DEFINITIONS = """
from reqdedup.sequences.definition import Enrichment, EventLog, EventType, SequenceDefinition
from reqdedup.sequences.predicate import col

log = EventLog(types=["view", "click", "save"], columns={"duration_s": "float64"})
engaged = SequenceDefinition(
    name="engaged", version=VERSION, last_n=LAST, owner="ads", stage="production",
    events=[EventType("click"), EventType("view", where=col("duration_s") >= 10)],
    enrichments=[Enrichment("item", "lake.items", "item_id", ["category"])],
    columns=["item_id", "event_type", "event_ts", "category"],
)
"""
EVENTS = [
    {"event_id": "a", "user_id": 7, "item_id": 1, "event_type": "click", "event_ts": "2026-01-01T10:00:00Z"},
    {"event_id": "b", "user_id": 7, "item_id": 2, "event_type": "view", "event_ts": "2026-01-01T10:01:00Z"},
    {
        "event_id": "c",
        "user_id": 7,
        "item_id": 9,
        "event_type": "view",
        "event_ts": "2026-01-01T10:02:00Z",
        "duration_s": 12,
    },
    {"event_id": "a", "user_id": 7, "item_id": 1, "event_type": "click", "event_ts": "2026-01-01T10:00:00Z"},
    {"event_id": "d", "user_id": 7, "item_id": 1, "event_type": "hide", "event_ts": "2026-01-01T10:00:00Z"},
]


@pytest.fixture
def run(tmp_path: Path, capsys):
    """The command line on a catalog with the table lake.items, with its output."""
    uri = f"sqlite:///{tmp_path}/catalog.db"
    catalog = open_catalog(properties={"uri": uri, "warehouse": f"file://{tmp_path}/tables"})
    catalog.create_namespace("lake")
    items = pa.table({"item_id": [1, 2], "category": pa.array([10, 20], pa.int32())})
    catalog.create_table("lake.items", items.schema).append(items)

    def run(*arguments, code=0):
        assert cli.main(["sequences", *map(str, arguments), "--namespace", "lake", "--catalog-uri", uri]) == code
        printed = capsys.readouterr()
        return printed.out or printed.err

    return run


@pytest.mark.slow
def test_from_a_file_of_events_to_a_sequence(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, events = tmp_path / "sequences.py", tmp_path / "events.jsonl"
    path.write_text(DEFINITIONS.replace("VERSION", "1").replace("LAST", "50"))
    for event in EVENTS:
        event["arrival_ts"] = event["event_ts"]
    events.write_text("".join(json.dumps(event) + "\n" for event in EVENTS) + "no event\n")
    assert run("check", path) == "engaged: new, version 1\n"
    run("check", path, "--publish")
    assert run("check", path) == "engaged: as published\n"
    said = run("advance", "--events", events, "--definitions", path)
    assert "4 events, 2 rejected\n  lake.rejected_events: " in said
    assert "2 events of 4 delivered kept, 1 delivered again (0 with other content), 0 late" in said
    assert "1 event without a row of the enrichment item" in said
    monkeypatch.chdir(tmp_path)
    assert "1 of 1 source delivered before" in run("advance", "--events", events.name, "--definitions", path)
    found = json.loads(run("fetch", 7, "engaged", "--json"))
    assert [(row["item_id"], row["event_type"], row["category"]) for row in found] == [(1, 1, 10), (9, 0, None)]
    assert len(json.loads(run("fetch", 7, "engaged", "--at", "2026-01-01T10:02:00+00:00", "--json"))) == 1
    assert "1 event\n" in run("fetch", 7, "engaged", "--at", "2026-01-01T10:02:00+00:00", "--columns", "item_id")
    status = json.loads(run("status", "--json"))
    assert (status["delivered"], status["waiting"], status["events"], status["version"]) == (6, 0, 2, 1)
    path.write_text(DEFINITIONS.replace("VERSION", "1").replace("LAST", "1"))
    refused = run("check", path, code=1)
    assert "engaged: last_n: 50 -> 1" in refused
    assert "refused: definition engaged: version 2 required" in refused
    path.write_text(DEFINITIONS.replace("VERSION", "2").replace("LAST", "1"))
    run("check", path, "--publish")
    assert "stage a new version with `reqdedup sequences backfill`" in run("advance", code=2)
    assert "version 2 is published" in run("backfill", "--publish")
    assert len(json.loads(run("fetch", 7, "engaged", "--json"))) == 1
    assert len(json.loads(run("fetch", 7, "engaged", "--version", 1, "--json"))) == 2
    assert "version 2 of [1, 2], 2 events in 1 file" in run("status")
    assert "0 events with other values of item; 0 files" in run("backfill", "--enrichment", "item", "--publish")
    assert "version 3 is published" in run("backfill", "--since", "2026-01-01", "--publish")
    assert "all events are kept: a definition has no retention" in run("retain", "--apply")
    assert "--until with --since alone" in run("backfill", "--until", "2026-01-01", code=2)


def test_definitions_are_checked_before_there_is_a_catalog(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sequences.py").write_text(DEFINITIONS.replace("VERSION", "1").replace("LAST", "50"))
    assert cli.main(["sequences", "check", "sequences.py", "--namespace", "lake"]) == 0
    said = capsys.readouterr()
    assert said.out == "engaged: new, version 1\n"
    assert "no catalog at" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["sequences.py"], "checking makes nothing"
    Path("sequences.py").write_text(DEFINITIONS.replace("VERSION", "1").replace("LAST", "0"))
    assert cli.main(["sequences", "check", "sequences.py", "--namespace", "lake"]) == 2
    assert "last_n and version of at least 1 required" in capsys.readouterr().err


def test_what_does_not_belong_together_is_refused(run, tmp_path: Path):
    (tmp_path / "e.jsonl").write_text("{}\n")
    assert "--definitions belong together" in run("advance", "--events", tmp_path / "e.jsonl", code=2)
    (tmp_path / "e.jsonl.gz").touch()
    (tmp_path / "s.py").write_text(DEFINITIONS.replace("VERSION", "1").replace("LAST", "50"))
    said = run("advance", "--events", tmp_path, "--definitions", tmp_path / "s.py", code=2)
    assert "e.jsonl.gz: event files that are not packed required, found 1; unpack them" in said
    assert "with its zone" in run("fetch", 7, "engaged", "--at", "yesterday", code=2)
