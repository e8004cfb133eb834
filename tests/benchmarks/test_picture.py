"""The README's chart is the one that the results give."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import picture
from benchmarks.record import RESULTS


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.slow
def test_the_chart_in_the_repository_is_drawn_from_the_results():
    """Its texts, and with them every figure; lines and places may differ with matplotlib's version."""
    committed = texts(picture.PICTURE.read_text())
    assert committed == texts(picture.storage().svg())
    rows = map(json.loads, (RESULTS / "storage_layouts.jsonl").read_text().splitlines())
    (ours,) = [row for row in rows if (row["claim"], row["variant"]) == (picture.CLAIM, "by_request")]
    assert any(f"{ours['value']:.3g}x smaller" in text for text in committed)
