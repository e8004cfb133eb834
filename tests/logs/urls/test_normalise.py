"""URLs of one page become one text, and nothing that a log may hold is an exception."""

from __future__ import annotations

import time
from urllib.parse import quote_plus, unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reqdedup.logs.urls import Normaliser, Rules, load_rules
from reqdedup.logs.urls.parsing import canonical, pattern_of, split_url, write_url

RULES = Rules(
    hosts={
        "shop.example": {
            ("id", "utm_source"): frozenset({"id"}),
            ("a", "b", "sku_no"): frozenset({"b"}),
            ("id", "session", "variant"): frozenset({"id"}),
            ("session",): frozenset(),
        },
        "m.myshopify.com": {("ref", "variant"): frozenset()},
        "m.myshopify.com:8080": {("ref", "variant"): frozenset()},
        "xn--bcher-kva.example": {("id", "ref"): frozenset({"id"})},
    },
    keep=("^sku_", "(?i)^VARIANT$"),
)
PARTS = st.sampled_from(
    [
        *("http", "https", "HTTPS", "ftp", "mailto", "javascript", ":", "//", "/", "\\", "@", "?", "&", "=", "#", "#!"),
        *("shop.example", "Shop.EXAMPLE", "bücher.example", "xn--bcher-kva.example", "[::1]", "0x7f.1", ":443", ":80"),
        *("id", "utm_source", "a", "b", "session", "%", "%7e", "%7E", "%zz", "%25", "%2525", "+", "%20", " ", "\t"),
        *("%ff", "%FE", "..", ".", ";", "\x00", "\ud800", "é", "🙂", "'", '"', "<", "|", "~", "*", "%E0%A4%A"),
    ]
)
URLS = st.one_of(
    st.text(),
    st.lists(PARTS, max_size=14).map("".join),
    st.lists(PARTS, max_size=12).map(lambda parts: "https://shop.example/" + "".join(parts)),
    st.lists(PARTS, max_size=12).map(lambda parts: "https://shop.example/p?" + "".join(parts)),
    st.text().map(lambda text: "http://shop.example/?id=1&utm_source=" + text),
)


@given(URLS)
@example("http://shop.example/?%")
@example("https://xn--/?a")
def test_normalising_twice_changes_nothing_and_nothing_raises(text):
    normaliser = Normaliser(RULES)
    once = normaliser(text)
    assert normaliser(once) == once
    assert (normaliser.counts.not_urls == 0) == (split_url(text) is not None)
    if split_url(text) is None:
        assert once == text


@given(URLS)
def test_the_normal_form_is_the_url_by_names_without_what_is_not_kept_also_when_it_is_remembered(text):
    normaliser, split = Normaliser(RULES), split_url(text)
    pattern = () if split is None else pattern_of(split)
    dropped = frozenset(pattern) - (normaliser.kept(split.host, pattern) if split else frozenset())
    wanted = text if split is None else write_url(split, without=dropped)
    assert [normaliser(text), normaliser(text)] == [wanted, wanted]


NAMES = st.frozensets(st.sampled_from("abcde"))


@given(
    st.dictionaries(NAMES.map(lambda names: tuple(sorted(names))), NAMES, max_size=12),
    st.lists(st.sampled_from("abcde"), max_size=5),
    st.sampled_from([(), ("^a",)]),
    st.sampled_from([(), ("b", "c")]),
)
@example({("a", "b"): frozenset("a"), ("a",): frozenset()}, ["a", "b"], (), ())
def test_normalising_twice_changes_nothing_whatever_the_rules_are(patterns, names, keep, allowed):
    normaliser = Normaliser(Rules(hosts={"x.example": patterns}, keep=keep, allowlists={"*": allowed}))
    once = normaliser("https://x.example/x?" + "&".join(f"{name}=1" for name in names))
    assert normaliser(once) == once
    pattern, left = tuple(sorted(set(names))), set(pattern_of(split_url(once)))
    assert left >= {name for name in pattern if name in patterns.get(pattern, pattern)}  # more is kept, never less


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from("%+ 0127aefAEF~-/=&é")))
@example("%2%41+%zz%7e%7E% ")
@example("/[é]" * 20)
def test_names_and_values_are_decoded_to_bytes_and_encoded_again(text):
    once = canonical(text)
    assert once == quote_plus(unquote_to_bytes(text.replace("+", " "))) == canonical(once)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("HTTPS://Shop.Example:443/a/../b?utm_source=x&id=7#top", "https://shop.example/b?id=7"),
        ("https://shop.example/b?id=7&utm_source=", "https://shop.example/b?id=7"),
        ("https://shop.example/b?utm_source&id=%37", "https://shop.example/b?id=7"),
        ("https://shop.example/b?%75tm_source=x&id=7", "https://shop.example/b?id=7"),
        ("https://shop.example:8443/b?id=7&utm_source=x", "https://shop.example:8443/b?id=7&utm_source=x"),
        ("https://shop.example/b?id=7&unknown=1&a=2", "https://shop.example/b?a=2&id=7&unknown=1"),
        ("https://shop.example/b?session=1", "https://shop.example/b"),
        ("https://shop.example/b?session=1#!/cart", "https://shop.example/b#!/cart"),
        ("https://shop.example/b?a=1&b=2&sku_no=3", "https://shop.example/b?b=2&sku_no=3"),
        ("https://shop.example/b?session=1&variant=2&id=3", "https://shop.example/b?id=3&variant=2"),
        ("https://m.myshopify.com/b?ref=1&variant=2", "https://m.myshopify.com/b?variant=2"),
        ("https://m.myshopify.com:8080/b?ref=1&variant=2", "https://m.myshopify.com:8080/b?variant=2"),
        ("https://BÜCHER.example/?ref=1&id=é", "https://xn--bcher-kva.example/?id=%C3%A9"),
        ("https://shop.example/b?id=2&id=1&id=2", "https://shop.example/b?id=2&id=1&id=2"),
        ("https://shop.example/b?&&id=a+b%20c&&", "https://shop.example/b?id=a+b+c"),
        ("https://shop.example/b?id=100%&utm_source=%zz", "https://shop.example/b?id=100%25"),
        ("https://shop.example/b?id=%2525", "https://shop.example/b?id=%2525"),
        ("  https://shop.example/b\n", "https://shop.example/b"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("N55689", "N55689"),
        ("", ""),
        ("mailto:a@b.example", "mailto:a@b.example"),
        ("https://", "https://"),
        ("http://a b/", "http://a b/"),
    ],
)
def test_a_url_is_written_as_the_standard_says(text, wanted):
    assert Normaliser(RULES)(text) == wanted


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("%ff", "%fe"),  # both would be U+FFFD, were they decoded to text
        ("%25", "%2525"),
        ("a%26id=2", "a&id=2"),
        ("A", "a"),
        ("%2B", "+"),
    ],
)
def test_values_that_differ_stay_apart(one, other):
    normaliser = Normaliser(RULES)
    assert normaliser("http://shop.example/?id=" + one) != normaliser("http://shop.example/?id=" + other)


@pytest.mark.parametrize("num_parameters", [50_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_a_million_parameters_take_seconds_at_most(num_parameters):
    started = time.process_time()
    names = num_parameters // 2
    text = "http://shop.example/?" + "&".join(f"p{number % names}={number}" for number in range(num_parameters))
    once = Normaliser(RULES)(text)
    assert once.count("&") == num_parameters - 1
    assert time.process_time() - started < 20


def test_without_rules_everything_is_kept_and_what_is_no_url_is_counted():
    normaliser = Normaliser.load({"format": 1, "allowlists": {}, "keep": [], "hosts": {}})
    assert normaliser.all(["https://x.example/?b=1&a=2", "no url", "data:,x"]) == [
        *("https://x.example/?a=2&b=1", "no url", "data:,x")
    ]
    assert (normaliser.counts.urls, normaliser.counts.not_urls) == (3, 2)


@pytest.mark.parametrize(
    "url", ["http://bücher.example/?size[]=1&utm=2", "http://a.BÜCHER.example/?size%5b%5d=1&utm=2"]
)
@pytest.mark.parametrize("own", [{"allowlists": {"Bücher.example": ("size[]",)}}, {"keep": (r"^size\[",)}])
def test_layers_name_hosts_and_parameters_as_one_writes_them(url, own):
    hosts = {f"{host}xn--bcher-kva.example": {("size%5B%5D", "utm"): frozenset()} for host in ("", "a.")}
    rules = Rules(hosts=hosts, **own)
    assert Normaliser(rules)(url).endswith("xn--bcher-kva.example/?size%5B%5D=1")


def test_rules_come_back_from_their_file_and_their_fingerprint_is_of_what_they_say(tmp_path):
    RULES.save(tmp_path / "miqps.json")
    again = load_rules(tmp_path / "miqps.json")
    assert again.hosts == RULES.hosts
    assert set(again.keep) == set(RULES.keep)
    assert again.fingerprint == RULES.fingerprint != Rules().fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["miqps.json"]
    text = (tmp_path / "miqps.json").read_text()
    (tmp_path / "miqps.json").write_text(text.replace('"^sku_"', '"^skus_"'))
    with pytest.raises(ValueError, match="were changed after they were written"):
        load_rules(tmp_path / "miqps.json")


def test_hosts_and_names_of_a_file_may_be_written_as_one_writes_them():
    hosts = {"Bücher.example": [{"parameters": ["utm", "size[]"], "keep": ["size[]"]}]}
    normaliser = Normaliser.load({"format": 1, "allowlists": {}, "keep": [], "hosts": hosts})
    assert normaliser("http://bücher.example/?size[]=1&utm=2").endswith("/?size%5B%5D=1")


def test_a_file_of_an_editor_that_marks_its_encoding_is_read(tmp_path):
    RULES.save(tmp_path / "miqps.json")
    (tmp_path / "miqps.json").write_text((tmp_path / "miqps.json").read_text(), encoding="utf-8-sig")
    assert load_rules(tmp_path / "miqps.json").fingerprint == RULES.fingerprint


def test_a_pattern_that_is_there_twice_keeps_what_either_does():
    one, other = ({"parameters": names, "keep": names[:1]} for names in (["a", "b"], ["b", "a"]))
    for hosts in ({"s.example": [one, other]}, {"s.example": [one], "S.Example": [other]}):
        rules = load_rules({"format": 1, "allowlists": {}, "keep": [], "hosts": hosts})
        assert rules.hosts == {"s.example": {("a", "b"): frozenset({"a", "b"})}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSON required"),
        ("[" * 100_000, "JSON required"),
        ("[]", "format 1 required"),
        ('{"format": 1, "allowlists": {"a.b": ["v"], "a.b": ["w"]}, "keep": [], "hosts": {}}', "the key 'a.b' twice"),
        ('{"format": 2}', "format 1 required, found 2"),
        ('{"format": 1}', '"hosts"'),
        (
            '{"format": 1, "allowlists": {}, "keep": ["("], "hosts": {}}',
            r"miqps.json: keep: a regular expression required",
        ),
        ('{"format": 1, "allowlists": {}, "keep": ["a{9999999999}"], "hosts": {}}', r"miqps.json: keep: a regular exp"),
        ('{"format": 1, "allowlists": {}, "keep": "id", "hosts": {}}', "a list of texts"),
        ('{"format": 1, "allowlists": {}, "keep": [], "hosts": {"a": [1]}}', "found another form"),
        ('{"format": 1, "allowlists": {}, "keep": [], "hosts": {}, "host": {}}', "unknown key 'host'"),
        (
            '{"format": 1, "allowlists": {}, "keep": [], "hosts": {"https://a.b": []}}',
            "a host as .*found 'https://a.b'",
        ),
        (
            '{"format": 1, "allowlists": {"*.a.b": ["v"]}, "keep": [], "hosts": {}}',
            r"or \* alone required, found '\*.a",
        ),
        ('{"format": 1, "allowlists": {"a.b/c": ["v"]}, "keep": [], "hosts": {}}', "a host as .*found 'a.b/c'"),
        (
            '{"format": 1, "allowlists": {}, "keep": [], "hosts": {"a": [{"parameters": ["id"], "keep": ["idd"]}]}}',
            "a: of its parameters id those to keep required, found idd",
        ),
    ],
)
def test_what_is_no_rules_file_is_refused(tmp_path, content, message):
    (tmp_path / "miqps.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_rules(tmp_path / "miqps.json")
    with pytest.raises(ValueError, match="a readable file required"):
        load_rules(tmp_path / "none.json")
