"""docs/sequences.md is executed from top to bottom, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from reqdedup import cli
from reqdedup.logs.ids import hash_string

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "sequences.md").read_text()


def test_what_is_said_to_be_left_by_a_call_that_fails_is_tested():
    table = GUIDE.partition("## If a call fails")[2].partition("## What is left out")[0]
    named = set(re.findall(r"`(test_\w+)`", table))
    files = (path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert named <= {name for text in files for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    assert len(named) > 12


@pytest.mark.slow
def test_the_guide_to_your_events_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    printed = ""
    blocks = re.findall(r"^```(python|sh)(?: file=(\S+))?\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    kinds = ["python", "python", "python", "sh", "sh", "python", "python", "python", "python", "python", "sh"]
    assert [kind for kind, _, _ in blocks] == kinds
    for kind, file, text in blocks:
        if file:
            Path(file).write_text(text)
        elif kind == "python":
            exec(compile(text, "docs/sequences.md", "exec"), space)
        else:
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert (program, cli.main(arguments)) == ("reqdedup", 0)
            printed += capsys.readouterr().out
    assert "6,480 delivered kept" in printed
    assert "0 events waiting" in printed
    assert re.search(r"user 7, engaged: \d+ events", printed)
    assert "event log: type buy: new\nevent log: column price: new, float64\n" in printed
    assert "day-3.jsonl: 1 event, 0 rejected\n" in printed
    assert printed.splitlines()[-1].split() == ["3", "3", "3", "9.5", "1"]  # item, type, category, price, band
    fetched = space["found"]
    assert 0 < len(fetched["item_id"]) <= 100
    assert (fetched["item_id"] % 9 == fetched["category"]).all()
    assert cli.main(["sequences", "fetch", "u-7", "engaged", "--namespace", "shop"]) == 0  # an id of text, hashed
    assert f"user {hash_string('u-7')}, engaged: 0 events" in capsys.readouterr().out
    made = space["lake"].table("shop.engagements_by_request").to_polars()
    assert made.height == 4_000
    assert made["history_item_id"].list.len().max() > 20
    users = [7, "--namespace", "shop", "--online", "online"]
    assert cli.main(["delete-user", *map(str, users)]) == 0
    would = re.search(r"sequences online: (\d+) records would go", capsys.readouterr().out)
    assert would is not None
    assert int(would[1]) > 0
    assert cli.main(["delete-user", *map(str, users), "--apply", "--erase", "--drop-refs"]) == 0
    assert f"sequences online: {would[1]} records gone" in capsys.readouterr().out
    store = space["lake"].sequences("shop").online("online")
    assert len(store.fetch(7, "engaged")["item_id"]) == 0
    assert len(store.fetch(8, "engaged")["item_id"]) > 0
    assert cli.main(["delete-user", "8", "--namespace", "shop", "--online", "online", "--apply"]) == 0
    assert "stay, a server has them open" in capsys.readouterr().out
    store.close()
