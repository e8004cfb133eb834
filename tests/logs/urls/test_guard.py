"""The guard of publishing, and what other rules would make of URLs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reqdedup.logs.urls import Rules, RulesRefused, compare_rules, diff_urls, learn, load_rules, publish


def rules_of(*patterns, keep=("id",)):
    return Rules(hosts={"s.example": {pattern: frozenset(keep) & set(pattern) for pattern in patterns}})


PATTERNS = [("id", f"p{number:02}") for number in range(20)]


def test_rules_that_drop_parameters_of_many_patterns_are_not_published(tmp_path):
    path = tmp_path / "miqps.json"
    old = rules_of(*PATTERNS)
    assert publish(old, path) is None
    before = path.read_bytes()
    broken = Rules(hosts={"s.example": {**old.hosts["s.example"], **dict.fromkeys(PATTERNS[:2], frozenset())}})
    with pytest.raises(RulesRefused, match=r"at most 5.0% .* found 2 of 20 \(10.0%\).*p00\): id.*the old rules stay"):
        publish(broken, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["miqps.json"]
    one = Rules(hosts={"s.example": {**old.hosts["s.example"], PATTERNS[0]: frozenset()}})
    assert publish(one, path).flagged == (("s.example", PATTERNS[0], ("id",)),)
    assert load_rules(path) == replace(one, allowlists=load_rules(path).allowlists)
    assert publish(broken, path, max_flagged=0.1).flagged_ratio == 0.05


def test_added_parameters_and_vanished_patterns_do_not_flag(tmp_path):
    old = rules_of(*PATTERNS)
    more = Rules(hosts={"s.example": {pattern: frozenset(pattern) for pattern in PATTERNS[:3]}, "t.example": {}})
    change = compare_rules(old, more)
    assert (change.compared, change.flagged, change.vanished) == (3, (), 17)
    assert compare_rules(rules_of(), old).added == 20
    kept_otherwise = replace(rules_of(*PATTERNS, keep=()), keep=("^id$",))
    assert compare_rules(old, kept_otherwise).flagged == ()


def test_patterns_that_a_new_tracker_gives_another_name_are_compared(tmp_path):
    path, old = tmp_path / "rules.json", rules_of(*PATTERNS)
    renamed = [tuple(sorted((*pattern, "gclid"))) for pattern in PATTERNS]
    change = compare_rules(old, rules_of(*renamed))
    assert (change.compared, change.flagged, change.added, change.vanished) == (20, (), 20, 20)
    publish(old, path)
    with pytest.raises(RulesRefused, match=r"found 20 of 20 .*\(id, p00\): id"):
        publish(rules_of(*renamed, keep=()), path)
    assert load_rules(path).hosts == old.hosts
    assert len(compare_rules(old, rules_of(("id",), keep=())).flagged) == 20  # parameters less
    swapped = rules_of(("id", "gclid"), keep=())
    assert compare_rules(rules_of(("fbclid", "id")), swapped).flagged == (("s.example", ("fbclid", "id"), ("id",)),)
    assert compare_rules(old, rules_of(("a", "b"), keep=())).compared == 0


def test_hosts_that_were_not_learned_again_hide_nothing_of_what_the_others_lost(tmp_path):
    path = tmp_path / "rules.json"
    old = Rules(hosts={f"h{number}.example": {("id",): frozenset({"id"})} for number in range(100)})
    publish(old, path)
    urls = [f"http://h{number % 5}.example/{number}?id=1" for number in range(150)]
    learned = learn(urls, lambda url: url.partition("?")[0], layers=old)
    assert len(learned.absent) == 95
    with pytest.raises(RulesRefused, match=r"found 5 of 5 \(100.0%\)"):
        publish(learned.rules, path, absent=learned.absent)
    assert load_rules(path).hosts == old.hosts
    same = learn(urls, lambda url: url, layers=old)
    assert publish(same.rules, path, absent=same.absent).compared == 5


def test_rules_without_a_pattern_never_replace_rules_that_have_some(tmp_path):
    path = tmp_path / "rules.json"
    publish(rules_of(PATTERNS[0]), path)
    before = path.read_bytes()
    with pytest.raises(RulesRefused, match="rules with patterns required to replace 1, found none"):
        publish(rules_of(), path)
    assert path.read_bytes() == before


def test_a_diff_counts_what_is_merged_and_what_is_split():
    old, new = rules_of(("id", "ref"), ("a", "b"), keep=("id", "a", "b")), rules_of(("id", "ref"), keep=("ref",))
    urls = [f"http://s.example/?id={number}&ref={number // 3}" for number in range(9)]
    urls += ["http://s.example/?id=0&ref=2", "http://s.example/"]
    found = diff_urls(old, new, [*urls, *urls])
    assert (found.urls, found.changed, found.old_items, found.new_items) == (11, 10, 10, 4)
    assert (found.merged, found.split) == (3, 1)
    assert found.examples[0] == (urls[0], "http://s.example/?id=0", "http://s.example/?ref=0")
