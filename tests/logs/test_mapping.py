import re
import tomllib
from pathlib import Path

import pytest

from reqdedup.logs import PRESETS, load_mapping, mapping_toml
from reqdedup.logs.presets import load_preset

MINIMAL = {"user_id": "u", "item_id": "i", "time": {"column": "t"}, "labels": {"click": "c"}}


def toml_blocks(text):
    return re.findall(r"```toml\n(.*?)```", text, flags=re.S)


def test_the_documented_examples_are_mappings():
    documentation = Path(__file__).parents[2] / "docs" / "mapping.md"
    examples = toml_blocks(documentation.read_text())
    assert len(examples) >= 2
    for example in examples:
        load_mapping(tomllib.loads(example))


def test_the_example_of_the_module_names_every_key():
    inside = "\n".join(line[4:] for line in mapping_toml.__doc__.splitlines() if line.startswith("    "))
    tables = tomllib.loads(inside)
    rows = {key: value for key, value in tables.items() if key != "candidates"}
    mapping = load_mapping(rows)
    assert mapping.session_gap_s == 1_800
    requests = {key: value for key, value in tables.items() if key != "item_id"}
    assert load_mapping(requests).candidates.label == "click"
    documentation = (Path(__file__).parents[2] / "docs" / "mapping.md").read_text()
    for key in [*tables, *tables["time"], *tables["history"], *tables["candidates"]]:
        assert f"`{key}`" in documentation, key


def test_a_mapping_is_read_from_a_file(tmp_path):
    path = tmp_path / "mapping.toml"
    path.write_text(
        'user_id = ["u", "uid"]\nitem_id = "i"\n[time]\ncolumn = "t"\nearliest = 2020-01-01\n[labels]\nclick = "c"\n'
    )
    mapping = load_mapping(path)
    assert mapping.user_id.columns == ("u", "uid")
    assert mapping.time.earliest.year == 2020
    assert load_mapping(mapping) is mapping


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": "x"}, "unknown key 'user'; did you mean user_id"),
        ({"time": {"column": "t", "units": "s"}}, "unknown key 'units'; did you mean unit"),
        ({"time": {"column": "t", "unit": "h"}}, "unit s, ms, us or ns required, found 'h'"),
        ({"time": None}, r"\[time\] with `column`, or `order`.*, required, found neither"),
        ({"user_id": 5}, "user_id: a name or a list of names required, found 5"),
        ({"item_id": {"column": "i", "type": "uuid"}}, "auto, int, string, url or hash required, found 'uuid'"),
        ({"labels": {}}, "from 1 to 31 labels required, found 0"),
        ({"labels": {"raw": "c"}}, "'raw' is taken; rename it"),
        ({"labels": {"c": "c"}, "item_columns": {"User_ID": "int32"}}, "'User_ID' is taken; rename it"),
        ({"labels": {"Row x": "c"}}, "'Row x' is taken"),
        ({"labels": {"c": "c"}, "item_columns": {"c": "int32"}}, "'c' is taken"),
        ({"item_columns": {"price": "money"}}, "price: dtype one of .* required, found 'money'"),
        ({"candidates": {"column": "x"}}, "item_id .* or \\[candidates\\] .* required"),
        ({"header": False}, "needs `columns`"),
        ({"format": "xlsx"}, "csv, tsv, jsonl or parquet required, found 'xlsx'"),
        ({"request_scope": "day"}, "log, file or user required, found 'day'"),
        ({"session_gap_s": 0.5}, r"at least 1 s, or 0 .*, required, found 0\.5"),
        ({"order": "n"}, r"\[time\] .* required, found both"),
        ({"time": {"column": "t", "unit": "order"}, "session_gap_s": 60}, "an order has no pauses"),
        ({"user_id": {"all_of": ["a"]}}, "two columns or more"),
        ({"user_id": {"all_of": ["a", "b"], "type": "int"}}, "is a string, found .* 'int'"),
        ({"labels": {"c": {"listed_in": "c"}}}, r"listed_in needs \[candidates\]"),
        ({"labels": {"c": {"column": "c", "one_of": ["x"], "at_least": 1}}}, "one of at_least, .*, found several"),
        ({"quotes": "no"}, "quotes: true or false required"),
        ({"history": {"events": "some"}}, '"engaged" or "all" required'),
        ({"history": {"column": "h", "separator": ""}}, "separator of at least one character required"),
        ({"history": {"action": 2**40}}, "action of 32 bits required"),
        ({"time": {"column": "t", "unit": ["s"]}}, "unit: text required, found \\['s'\\]"),
        ({"time": {"column": "t", "earliest": "then"}}, "earliest: a date required, found 'then'"),
        ({"labels": 5}, "labels: a table required, found 5"),
        ({"labels": {"c": {"column": "c", "range": 5}}}, "range: a list of two numbers required, found 5"),
        ({"labels": {"c": {"column": "c", "range": [5, 1]}}}, "from low to high required, found 5 to 1"),
        ({"labels": {"c": {"column": "c", "at_least": "4"}}}, "at_least: a number required, found '4'"),
        ({"labels": {"c": {"value": 2**31}}}, "value of 32 bits required"),
        ({"labels": {"c": {"value": True}}}, "value: a whole number required, found True"),
        ({"session_gap_s": "30"}, "session_gap_s: a number required, found '30'"),
        ({"separator": ""}, "separator without quotes and line ends required, found ''"),
        ({"separator": '"'}, "separator without quotes and line ends required"),
        ({"labels": {"unfit x": "c"}}, "'unfit x' is taken"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused_by_key(changes, message):
    tables = {key: value for key, value in {**MINIMAL, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_mapping(tables)


def test_a_mapping_file_that_is_missing_or_no_toml_is_named(tmp_path):
    with pytest.raises(ValueError, match="a readable TOML file required, found: No such file"):
        load_mapping(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("user_id = = 3")
    with pytest.raises(ValueError, match=r"bad\.toml: TOML required"):
        load_mapping(tmp_path / "bad.toml")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_mappings(name):
    mapping = load_preset(name)
    assert mapping.files
    assert mapping.label_names[0] == "click"
