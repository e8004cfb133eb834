"""`rd.serving`: the block of docs/library.md, over trained models; nothing is loaded before it is used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import reqdedup as rd
from reqdedup.sequences.filling import event_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.storage import TableSource

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "library.md").read_text()


@pytest.mark.slow
def test_the_block_of_the_guide_recommends_in_this_process(trained_bundles, tmp_path, monkeypatch):
    path = tmp_path / "store.sqlite"
    filled = SqliteStore(path, event_columns(TableSource(trained_bundles.main).schema))
    fill_store(filled, trained_bundles.main, [trained_bundles.features])
    filled.close()
    monkeypatch.chdir(trained_bundles.ranking.parent.parent)
    (block,) = re.findall(r"^```python\n(# serve\n.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    user = TableSource(trained_bundles.main).to_arrow(["user_id"])["user_id"][0].as_py()
    space = {"rd": rd, "store": rd.serving.open_store(str(path))}
    exec(compile(block.replace("user_id=7", f"user_id={user}"), "docs/library.md", "exec"), space)
    assert len(space["slate"].item_id) == 5
    assert space["ranked"].end == space["slate"].end > 0


@pytest.mark.slow
def test_naming_serving_loads_no_torch():
    code = "import sys, reqdedup as rd; rd.serving, dir(rd.serving), rd.open; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(AttributeError, match="there are Bundle, Client"):
        rd.serving.Renker  # noqa: B018
