"""Staging, publishing, tags and promotion of features behave the same on every catalog."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    promote,
    rollback_to,
    stage_request_feature,
    table_schema,
    tag,
    write,
)
from reqdedup.storage.measure import checks
from reqdedup.storage.tasks import groups

COUNT = Column(name="visits", dtype="int32", level=Level.REQUEST, nullable=True)
RATE = Column(name="rate", dtype="float64", level=Level.REQUEST)
VECTOR = Column(name="vector", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=2)


@pytest.fixture
def main(catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]) -> Table:
    table = create_table(catalog, f"{namespace}.main", schema, Layout.BY_REQUEST, num_buckets=3)
    write(table, batches)
    return table


def found(main: Table, side: Table, name: str) -> set[Any]:
    return {value for batch in bucket_join(main, side).batches([name]) for value in batch[name].to_pylist()}


@pytest.mark.slow
@pytest.mark.parametrize("by_position", [False, True], ids=["keys", "by_position"])
def test_a_feature_is_staged_checked_published_and_rolled_back(
    catalog: Catalog, namespace: str, main: Table, by_position: bool
) -> None:
    name = f"{namespace}.f"
    side = create_feature_table(catalog, name, main, [COUNT], by_position=by_position)
    stage_request_feature(main, side, lambda r: [1] * r.num_rows, name="first").publish(tag="v1")
    both = lambda r: {"visits": [2] * r.num_rows, "vector": [[1.0, 2.0]] * r.num_rows}  # noqa: E731
    staged = stage_request_feature(main, side, both, name="next", columns=[COUNT, VECTOR])
    late = stage_request_feature(main, catalog.load_table(name), lambda r: [3] * r.num_rows, name="late")
    seen = catalog.load_table(name)
    assert "vector" not in seen.schema().column_names
    assert found(main, seen, "visits") == {1}
    assert all(result.ok for result in staged.check(ranges={"vector": (0, 2)}).values())
    staged.publish()
    seen = catalog.load_table(name)
    assert found(main, seen, "visits") == {2}
    assert len(found(main, seen, "vector")) == 1
    with pytest.raises(RuntimeError, match="another writer was faster"):
        late.publish()
    late.drop()
    rollback_to(seen, "v1")
    seen = catalog.load_table(name)
    assert found(main, seen, "visits") == {1}
    assert "vector" not in seen.schema().column_names
    assert set(seen.metadata.refs) == {"main", "v1"}


@pytest.mark.slow
def test_features_become_columns_in_one_switch_and_a_killed_run_is_resumed(
    catalog: Catalog, namespace: str, main: Table, schema: EngagementSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "BUCKETS_TOGETHER", 1)
    one = create_feature_table(catalog, f"{namespace}.one", main, [COUNT, VECTOR])
    add_request_feature(main, one, lambda r: {"visits": range(r.num_rows), "vector": [[0.5, 1.0]] * r.num_rows})
    two = create_feature_table(catalog, f"{namespace}.two", main, [RATE], by_position=True)
    add_request_feature(main, two, lambda r: [0.25] * r.num_rows)
    wanted = checks.content_checksum(bucket_join(bucket_join(main, one), two))
    before = checks.content_checksum(TableSource(main))
    old = tag(main, "before")

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        promote(main, [one, two], progress=stop)
    assert table_schema(catalog.load_table(main.name())) == schema
    report = promote(main, [one, two])
    assert (report.buckets, report.resumed) == (1, 2), "the third was written, and not committed"
    seen = catalog.load_table(main.name())
    assert checks.content_checksum(TableSource(seen)) == wanted
    assert checks.content_checksum(TableSource(seen, snapshot_id=old)) == before == report.checksum
    assert seen.scan().to_arrow()["rate"].unique().to_pylist() == [0.25]
    rollback_to(seen, "before")
    assert checks.content_checksum(TableSource(catalog.load_table(main.name()))) == before
