"""Which versions `make check-next` tries, and what its table says of them."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import next_versions

RELEASES = [Version(one) for one in ("3.1.0", "3.0.2", "3.0.1", "2.1.5", "2.1.4", "2.0.9", "1.0.0")]


@pytest.mark.parametrize(
    ("requirement", "pin", "expected"),
    [
        ("x>=1", "2.1.4", [("3.1.0", True), ("3.0.2", True)]),
        ("x>=1,<3", "2.1.4", [("2.1.5", True), ("3.0.2", False)]),
        ("x==2.0.*", "2.0.9", [("2.1.5", False)]),
        ("x>=1", "3.1.0", []),
    ],
)
def test_the_newest_allowed_version_and_the_next_minor_are_tried(requirement, pin, expected):
    found = next_versions.candidates(Requirement(requirement), Version(pin), RELEASES)
    assert [(str(one.version), one.allowed) for one in found] == expected


def test_every_library_has_a_bound_and_a_pinned_version():
    bounds = next_versions.requirements()
    assert set(bounds) == set(next_versions.TESTS)
    for library, requirement in bounds.items():
        assert next_versions.pinned(library) in requirement.specifier, library
        assert all((next_versions.ROOT / path).is_dir() for path in next_versions.TESTS[library])


def test_a_failing_version_fails_the_run_only_where_it_is_allowed(monkeypatch, capsys):
    monkeypatch.setattr(next_versions, "released", lambda library: [Version("99.1"), Version("99.0")])
    monkeypatch.setattr(next_versions, "outcome", lambda candidate, tests: (False, "1 failed"))
    assert next_versions.main(["polars"]) == 1
    assert next_versions.main(["pyiceberg"]) == 0
    shown = capsys.readouterr().out
    assert "99.1 | FAILS: 1 failed" in shown
    assert "99.1 (not allowed) | FAILS: 1 failed" in shown or "99.0" in shown
