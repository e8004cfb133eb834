"""One run at a time has a namespace, in every catalog: the claim is a commit, which only one of two can make."""

from __future__ import annotations

import threading

import pytest

from reqdedup.environment import LakePlace
from warehouse import GraphRun, NamespaceTakenError, claim, release
from warehouse.catalogs import open_catalog


@pytest.mark.slow
def test_of_runs_that_start_at_once_exactly_one_goes_on_in_every_catalog(
    catalog_config: LakePlace, namespace: str
) -> None:
    catalogs = [open_catalog(catalog_config) for _ in range(3)]
    barrier, won, refused = threading.Barrier(len(catalogs)), list[str](), list[str]()

    def start(number: int) -> None:
        barrier.wait()
        try:
            claim(catalogs[number], namespace, GraphRun.begin(f"run-{number}", "/logs/a.csv"))
            won.append(f"run-{number}")
        except NamespaceTakenError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(len(catalogs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, len(catalogs) - 1)
    assert all(won[0] in message or "other runs were faster" in message for message in refused)
    with pytest.raises(NamespaceTakenError, match=won[0]):
        claim(catalogs[0], namespace, GraphRun.begin("later", "/logs/b.csv"))
    release(catalogs[1], namespace, won[0])
    claim(catalogs[2], namespace, GraphRun.begin("later", "/logs/b.csv"))
