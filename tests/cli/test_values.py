"""Text becomes a value strictly, or is refused in one sentence: another spelling of a number is never somebody's id."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqdedup import cli
from reqdedup.cli import values
from reqdedup.logs.ids import parse_id
from reqdedup.storage import Layout, delete_user

MIN, MAX = -(2**63), 2**63 - 1


@given(st.integers(MIN, MAX))
def test_every_id_is_read_back(value):
    assert parse_id(str(value)) == value


@pytest.mark.slow
@given(st.text(max_size=24) | st.from_regex(r"\A[ +_0-9٠-٩０-９-]{1,24}\Z"))
def test_an_id_has_one_spelling(text):
    try:
        value = parse_id(text)
    except ValueError as error:
        assert "whole number" in str(error)  # noqa: PT017 (most texts are refused)
    else:
        assert str(value) == text


@pytest.mark.parametrize(
    "text", ["1_0", "１０", "٣", "010", "+1", "-0", " 1", "1\n", "1.0", "", str(MAX + 1), "9" * 30]
)
def test_another_spelling_of_an_id_is_refused_before_anything_is_read(text, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["delete-user", "--namespace", "lake", "--apply", "--", text])
    assert caught.value.code == 2
    assert "whole number" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["", " ", "\t"])
def test_an_empty_key_is_refused(key, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["delete-user", "--namespace", "lake", "--key", key, "--apply"])
    assert caught.value.code == 2
    assert "an id of at least one character required" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least one character"):
        delete_user([], [1], keys=["a", key])


LOG = ["ingest", "x.csv", "--preset", "movielens", "--table", "a.b"]
CONVERT = ["convert", "x.parquet", "--table", "a.b"]


@pytest.mark.parametrize("value", ["9" * 20, "1e400", "nan", "inf", "-1", "1_0", "１０", "", "0x10", "9" * 5000])
@pytest.mark.parametrize(
    "option",
    [
        [*LOG, "--buckets"],
        [*LOG, "--max-history"],
        [*LOG, "--session-gap"],
        [*CONVERT, "--buckets"],
        ["audit", "x", "--request-key", "r", "--sample"],
        ["audit", "x", "--request-key", "r", "--read-at-most"],
        ["compact", "--table", "a.b", "--bucket"],
        ["rebucket", "--table", "a.b", "--buckets"],
        ["expire", "--table", "a.b", "--keep-last"],
        ["expire", "--table", "a.b", "--older-than"],
        ["sweep", "--table", "a.b", "--older-than"],
        ["sample", "--table", "a.b", "--seed"],
        ["sample", "--table", "a.b", "--activity"],
        ["sample", "--table", "a.b", "--quantiles"],
        ["sample", "--table", "a.b", "--max-requests-per-user"],
    ],
)
def test_a_number_out_of_bounds_is_one_sentence_and_exit_code_2(option, value, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*option[:-1], f"{option[-1]}={value}"])
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{option[-1]}: a" in said
    assert "required, found" in said
    assert len(said) < 250


@pytest.mark.parametrize("value", ["9" * 20, "a=1_0", "nan", "a="])
@pytest.mark.parametrize("option", ["--rate", "--target", "--cap"])
def test_a_number_of_a_stratum_has_bounds_too(option, value):
    from reqdedup.cli.commands.sampling import _setting

    with pytest.raises(ValueError, match=f"{option}: NUMBER or STRATUM=NUMBER required"):
        _setting([value], values.number if option == "--rate" else values.whole, option[2:])


@pytest.mark.parametrize("texts", [["1", "0"], ["a=1", "a=0"], ["a=1", " a=1"], ["=1"]])
def test_a_number_of_a_stratum_is_given_once_and_by_name(texts):
    from reqdedup.cli.commands.sampling import _setting

    with pytest.raises(ValueError, match="--rate: NUMBER or STRATUM=NUMBER required"):
        _setting(texts, values.number, "rate")
    assert _setting(["a=1", "*=0.5"], values.number, "rate") == {"a": 1, "*": 0.5}


def test_numbers_and_ages_in_bounds_are_read():
    assert values.whole("0", least=0) == 0
    assert values.whole(str(values.MOST)) == values.MOST
    assert [values.number(text) for text in ("0", "1.5", ".5", "2.", "1e3")] == [0, 1.5, 0.5, 2, 1000]
    assert values.age("36h") == timedelta(hours=36)
    assert values.age("0") == timedelta(0)
    assert values.age("1.5w") == timedelta(days=10.5)
    assert values.age("36500d") == timedelta(days=36500)
    assert values.pair("a=b=c") == ("a=b", "c")


@pytest.mark.parametrize("text", ["9" * 20, str(2**63), str(-(2**63) - 1), "9" * 5000])
def test_an_id_that_is_too_large_is_told_its_bound(text):
    with pytest.raises(ValueError, match=r"a whole number from -2\^63 and below 2\^63 required"):
        values.user_id(text)


@pytest.mark.parametrize(("stored", "said"), [(50, "2.0 times smaller"), (125, "1.2 times as large")])
def test_what_became_larger_is_not_called_smaller(stored, said):
    from reqdedup.cli.commands.conversion import format_conversion
    from reqdedup.convert import ConvertReport

    given = {field.name: 0 for field in fields(ConvertReport)}
    given |= {
        "table": "a.b",
        "layout": Layout.SORTED,
        "columns": {},
        "notes": (),
        "changes": (),
        "seconds": 1.0,
        "checksum": "c",
    }
    assert said in format_conversion(ConvertReport(**given | {"source_bytes": 100, "bytes": stored}))


def test_a_share_is_a_fraction_or_a_percentage():
    assert (values.share("0.25"), values.share("25%"), values.share("0"), values.share("100%")) == (0.25, 0.25, 0, 1)
    for text in ("1.1", "101%", "-1%", "half", "%", "1_0%", "nan"):
        with pytest.raises(ValueError, match=r"a share from 0 to 1, or 0% to 100%, required, found"):
            values.share(text)
