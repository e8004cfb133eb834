"""Ranks share what is wanted of a source, once it is counted, equally, wherever in it that lies."""

from __future__ import annotations

import pytest

from reqdedup.training.loader import RequestLoader
from reqdedup.training.plan import Wanted
from reqdedup.training.split import Later, TimeSplit, UserSplit
from tests.training.logs import in_days, number_wanted, random_log

WANTED = [
    Wanted(users=Later(TimeSplit(), 3 * 86_400_000_000 - 1)),
    Wanted(users=Later(TimeSplit(), 3 * 86_400_000_000 - 1), positive_label="click", chunk_rows=2),
    Wanted(users=UserSplit(held_out=0.5, part="train"), positive_label="click"),
]


@pytest.mark.parametrize("wanted", WANTED, ids=["last day", "its chunks", "half the users"])
def test_ranks_get_equally_many_of_the_requests_that_were_counted(wanted):
    log = in_days(random_log(num_groups=4))
    for source in (log, log.cut_batches(11)):
        options = {"requests_per_batch": 3, "buffer_requests": 10, "prefetch_batches": 0, **vars(wanted)}
        whole = sorted(row for batch in RequestLoader(source, **options) for row in batch.item_id_B.tolist())
        for world_size in (1, 3):
            counts = number_wanted(source, wanted, world_size)
            assert counts == number_wanted(source, wanted)
            log.reads.clear()
            loaders = [
                RequestLoader(source, **options, rank=rank, world_size=world_size, num_wanted=counts)
                for rank in range(world_size)
            ]
            for _ in range(3):
                per_rank = [list(loader) for loader in loaders]
                assert sorted(row for batches in per_rank for b in batches for row in b.item_id_B.tolist()) == whole
                sizes = [sum(batch.num_requests for batch in batches) for batches in per_rank]
                assert sum(sizes) == sum(counts.values()) > 6
                assert max(sizes) - min(sizes) <= 1
            assert {number for number in range(4) if counts.get(number)} >= set(log.reads), "no other is read"


def test_what_was_counted_otherwise_is_refused():
    log = random_log(num_groups=2)
    counts = number_wanted(log, Wanted())
    assert counts == {0: 13, 1: 13}
    loader = RequestLoader(log, requests_per_batch=3, num_wanted={0: 13, 1: 12})
    with pytest.raises(ValueError, match=r"12 requests to learn from in row group or bucket 1 required, .* found 13"):
        list(loader)
