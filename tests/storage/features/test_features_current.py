"""Features belong to the requests of one moment of the main table, and say so."""

from __future__ import annotations

from datetime import timedelta

import pytest

from reqdedup.storage import (
    add_request_feature,
    compact,
    create_feature_table,
    delete_user,
    expire_snapshots,
    rebucket,
    write,
)
from reqdedup.storage.features import features_current
from tests.storage.feature_tables import COUNT, USERS, main_table, of_request
from tests.storage.small_log import make_log, to_batches


@pytest.mark.slow
def test_features_are_stale_once_the_main_table_has_other_requests(catalog):
    """Maintenance brings none; an append does, whoever made it."""
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.side", main, [COUNT])
    assert not features_current(main, side).ok
    add_request_feature(main, side, of_request)
    assert features_current(main, side).ok
    delete_user([main, side], USERS[0])
    compact(main, force=True)
    rebucket(main, 8)
    assert features_current(main.refresh(), side.refresh()).ok
    write(main, to_batches(make_log(num_users=2, seed=9)), mode="append")
    found = features_current(main.refresh(), side)
    assert not found.ok
    assert "lake.side is stale: made from snapshot" in found.detail


@pytest.mark.slow
def test_features_stay_current_once_the_snapshots_between_have_expired(catalog, monkeypatch):
    """Compactions are snapshots too; of tables that do not say whose requests they keep it cannot
    be told."""
    main = main_table(catalog)
    compact(main, force=True)
    side = create_feature_table(catalog, "lake.side", main, [COUNT])
    add_request_feature(main, side, of_request)
    for _ in range(2):
        compact(main, force=True)
        expire_snapshots(main, older_than=timedelta(0))
        assert features_current(main.refresh(), side.refresh()).ok
    delete_user([main, side], USERS[0])
    assert features_current(main.refresh(), side.refresh()).ok
    monkeypatch.setattr(
        "reqdedup.storage.iceberg.manifest_groups.brings_no_requests", lambda _: False
    )  # as version 0.1.0
    compact(main, force=True)
    expire_snapshots(main, older_than=timedelta(0))
    found = features_current(main.refresh(), side.refresh())
    assert not found.ok
    assert "cannot be told" in found.detail
    write(main, to_batches(make_log(num_users=2, seed=9)), mode="append")
    assert "is stale" in features_current(main.refresh(), side).detail
