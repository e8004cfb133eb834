"""What a spill remembers of requests: found exactly when key and values are the same, and each request spilled once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqdedup.storage import Layout, TableSource, create_table
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.write import spill as spill_module
from reqdedup.storage.write.seen import SeenRequests
from reqdedup.storage.write.spill import Spill
from reqdedup.storage.write.writer import write_rows
from tests.storage.small_log import log_schema, make_log, to_batch
from tests.storage.tables import rows_of

IDS = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)])


@pytest.mark.slow
@given(st.lists(st.lists(st.tuples(IDS, IDS, st.integers(0, 2)), max_size=20), max_size=12), st.integers(1, 40))
def test_requests_are_found_as_in_a_dictionary(rounds, limit):
    seen, known, part = SeenRequests(limit), {}, 0
    for one in rounds:
        keys = list(dict.fromkeys(one))
        user, request = (np.array([key[i] for key in keys], np.int64) for i in (0, 1))
        content = np.array([key[2] for key in keys], np.uint64)
        found = seen.find(user, request, content)
        assert found.tolist() == [known.get(key, -1) for key in keys]
        new = found < 0
        parts = np.arange(part, part + int(new.sum()))
        seen.add(user[new], request[new], content[new], parts)
        for key, number in zip([key for key, is_new in zip(keys, new) if is_new], parts.tolist()):
            if len(known) < limit:
                known[key] = number
        part += len(parts)


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_a_shuffled_log_is_spilled_once_per_request(catalog, layout, monkeypatch):
    monkeypatch.setattr(spill_module, "SMALL_ROWS", 1)  # every batch for itself
    log = make_log(num_users=15, seed=3)
    whole = to_batch(log)
    pieces = [
        to_batch(log, rows=rows) for rows in np.array_split(np.random.default_rng(0).permutation(whole.num_rows), 20)
    ]
    with Spill(log_schema(), lambda users, ts: buckets_of(users, 4), remember=10**6) as spill:
        for piece in pieces:
            spill.add(piece)
        spill.finish()
        assert spill.num_parts == len(log)
        remembered = spill.num_bytes
    with Spill(log_schema(), lambda users, ts: buckets_of(users, 4)) as spill:
        for piece in pieces:
            spill.add(piece)
        spill.finish()
        assert spill.num_parts > 4 * len(log)
        assert spill.num_bytes > 3 * remembered
    table = create_table(catalog, "test.t", log_schema(), layout, num_buckets=4)
    with StagedFiles(table) as files:
        written = write_rows(files, iter(pieces), log_schema(), remember=10**6)
        files.verify(num_rows=written.rows, num_requests=written.requests if layout.is_bucketed else None)
        files.commit(replace=True)
    assert (written.rows, written.requests) == (whole.num_rows, len(log))
    assert rows_of(TableSource(table).batches()) == rows_of([whole])


def test_a_request_that_comes_with_other_values_is_still_refused(catalog):
    log = make_log(num_users=3, seed=1)
    changed = [dict(log[0], device=log[0]["device"] + 1)]
    table = create_table(catalog, "test.t", log_schema(), Layout.BY_REQUEST)
    with (
        pytest.raises(ValueError, match="one value per request required, found two in request"),
        StagedFiles(table) as files,
    ):
        write_rows(files, [to_batch(log), to_batch(changed)], log_schema(), remember=10)
