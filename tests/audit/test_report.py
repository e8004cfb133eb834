"""The JSON of an audit, to the letter: who reads it with a program must be able to rely on it."""

from __future__ import annotations

import json
from pathlib import Path

from reqdedup.audit.report import FORMAT
from tests.audit.small_report import REPORT

GOLDEN = Path(__file__).parent / "audit_report.json"


def test_a_report_has_these_keys_and_values_to_the_letter():
    assert REPORT.to_json() + "\n" == GOLDEN.read_text()


def test_its_form_has_a_number():
    """Whoever changes a key raises FORMAT, here and in docs/audit.md."""
    assert json.loads(GOLDEN.read_text())["format"] == FORMAT == 1
    assert f"| `format` | version of these keys, {FORMAT} |" in (GOLDEN.parents[2] / "docs/audit.md").read_text()
