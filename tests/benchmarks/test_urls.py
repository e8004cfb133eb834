"""The benchmark of URLs: its sites are seeded, and its rows say what they should, on fewer URLs."""

from __future__ import annotations

import pytest

from benchmarks import urls


def test_sites_are_seeded_and_their_pages_are_what_the_urls_say():
    one = urls.make_site(3, 50)
    assert one == urls.make_site(3, 50) != urls.make_site(4, 50)
    assert one.page(f"https://{one.host}/shoes?{one.key}=1&x=2") == one.page(
        f"https://{one.host}/shoes?x=3&{one.key}=1"
    )
    assert one.page(f"https://{one.host}/compare?{one.both}=1") != one.page(f"https://{one.host}/compare?{one.both}=2")


@pytest.mark.slow
def test_every_row_is_measured():
    rows = {row["claim"]: row for row in urls.measure(1, 800, 1)}
    assert rows["items per page, stable fingerprints"]["value"] < rows["items per page, others"]["value"]
    assert rows["renders, stable fingerprints"]["value"] < 1
    assert rows["look-ups"]["value"] > 0
