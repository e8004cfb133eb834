"""docs/library.md is executed from top to bottom, in a folder with the files that it names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.environment import find_lake

GUIDE = (Path(__file__).resolve().parents[1] / "docs" / "library.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def impressions(first: int) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"member": 4700 + r % 20, "session": r, "shown": item, "at": 1_700_000_000 + r, "clicked": item % 2}
            for r in range(first, first + 100)
            for item in range(4)
        ]
    )


@pytest.mark.slow
def test_the_guide_to_the_library_runs_as_it_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, first in (("impressions", 0), ("impressions-of-today", 100)):
        (tmp_path / name).mkdir()
        pq.write_table(impressions(first), tmp_path / name / "part.parquet")
    rows = "".join(f"{user},{item},3.0,{1_000_000_000 + item}\n" for user in range(4) for item in range(5))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    space: dict = {}
    found = blocks("python")
    assert len(found) == 9
    for block in found:
        if block.startswith("# serve"):  # tests/serving/test_facade.py runs it, over trained models
            continue
        if block.startswith("# train"):
            try:
                import torch  # noqa: F401
            except ModuleNotFoundError:
                continue
        exec(compile(block, "docs/library.md", "exec"), space)
    assert space["report"].rejected == {}
    assert space["table"].source.num_rows == 800
    assert space["picture"].startswith("<svg")
    assert space["joined"].to_arrow(["visits"])["visits"].to_pylist() == [1] * 800
    assert {row["table"] for row in space["lake"].tables().to_arrow().to_pylist()} == {
        "ads.engagements",
        "ads.features",
        "movies.engagements",
        "movies.rejected_engagements",
    }
    assert 4711 in space["table"].to_polars(["user_id"])["user_id"]
    assert space["batch"].num_rows > 0


def test_the_file_of_the_guide_is_one_that_is_read(tmp_path):
    (text,) = blocks("toml")
    assert set(tomllib.loads(text)) == {"data_dir", "catalog"}
    (tmp_path / "reqdedup.toml").write_text(text)
    assert find_lake(environment={}, folder=tmp_path).properties["s3.endpoint"] == "http://127.0.0.1:8333"
