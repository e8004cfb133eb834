"""A slate's configuration comes from TOML whole, or is refused by the name of what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from reqdedup.rerank import SlateConfig, load_slate_config
from reqdedup.rerank.config import HardSpacing, PrefixOverlap, Quota, Volume

WHOLE = """
format = 1
length = 25
window = 8
standardise = true
[[terms]]
kind = "volume"
weight = 1.5
[[terms]]
kind = "prefix_overlap"
columns = ["top", "leaf"]
weight = 0.3
[[rules]]
kind = "quota"
column = "top"
at_most = 4
[[rules]]
kind = "hard_spacing"
column = "author"
gap = 3
"""


def test_a_toml_file_is_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "slate.toml").write_text(WHOLE)
    config = load_slate_config(tmp_path / "slate.toml")
    assert config == SlateConfig(
        length=25,
        window=8,
        standardise=True,
        terms=(Volume(weight=1.5), PrefixOverlap(columns=("top", "leaf"), weight=0.3)),
        rules=(Quota(column="top", at_most=4), HardSpacing(column="author", gap=3)),
    )
    assert config.columns == ("top", "leaf", "author")
    assert config.needs_vectors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("length = 3", "format = 1 required, found None"),
        ("format = 2\nlength = 3", "format = 1 required, found 2"),
        ("format = 1", "length, the picks of a request, required"),
        ("format = 1\nlength = 0", "length of at least 1, a whole number, required, found 0"),
        ("format = 1\nlength = 3\nwindwo = 2", "found windwo"),
        ("format = 1\nlength = 3\n[[terms]]\nkind = 'ssd'\nweight = 1", "volume.* required, found 'ssd'"),
        ("format = 1\nlength = 3\n[[terms]]\nkind = 'volume'\nweight = -1", "weight of at least 0 required, found -1"),
        (
            "format = 1\nlength = 3\n[[terms]]\nkind = 'volume'\nweight = nan",
            "weight of at least 0 required, found nan",
        ),
        ("format = 1\nlength = 3\n[[terms]]\nkind = 'volume'", "weight"),
        ("format = 1\nlength = 3\n[[terms]]\nkind = 'mmr'\nweight = 1\ncolumn = 'a'", "mmr takes weight, found column"),
        ("format = 1\nlength = 3\n[[rules]]\nkind = 'quota'\ncolumn = 'a'", "either at_most or at_least required"),
        ("format = 1\nlength = 3\n[[rules]]\nkind = 'quota'\ncolumn = 'a'\nat_least = 1", "needs the value"),
        ("format = 1\nlength = 3\n[[rules]]\nkind = 'hard_spacing'\ncolumn = 'a'\ngap = 0", "gap of at least 1"),
        ("format = 1\nlength = 2.5", "length of at least 1, a whole number, required, found 2.5"),
        ("format = 1\nlength = 'a'", "length of at least 1, a whole number, required, found 'a'"),
        ("format = 1\nlength = 3\nwindow = true", "window of at least 1, a whole number, required, found True"),
        ("format = 1\nlength = 3\nstandardise = 'no'", "standardise, true or false, required, found 'no'"),
        ("format = 1\nlength = 3\n[terms]\nkind = 'mmr'", r"a list of tables, \[\[terms\]\], required"),
        ("format = 1\nlength = 3\nrules = 4", r"a list of tables, \[\[rules\]\], required, found 4"),
        (
            "format = 1\nlength = 3\n[[terms]]\nkind = 'prefix_overlap'\ncolumns = 'abc'\nweight = 1",
            "a list of columns, at least one, required, found 'abc'",
        ),
        ("format = 1\nlength = 3\n[[rules]]\nkind = 'quota'\ncolumn = 'a'\nat_most = 1.5", "count of at least 0"),
        ("format = ", "slate.toml: "),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "slate.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        load_slate_config(path)
    assert "slate.toml" in str(refused.value)
