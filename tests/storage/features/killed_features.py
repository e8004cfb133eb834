"""The feature operations that are killed at each of their steps."""

from __future__ import annotations

from pyiceberg.catalog import Catalog

from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    create_feature_table,
    create_table,
    promote,
    stage_request_feature,
    table_schema,
    write,
)
from reqdedup.storage.measure import checks
from tests.storage.feature_tables import COUNT, RATE, VECTOR, constant, of_request, values
from tests.storage.small_log import log_schema, make_log, to_batches

REQUESTS = make_log(num_users=6, seed=3, max_history=4, mean_fan_out=2)
IDS = {request["request_id"] for request in REQUESTS}


class Backfill:
    """A second version replaces the first."""

    by_position = False

    def prepare(self, catalog: Catalog) -> None:
        main = create_table(catalog, "lake.main", log_schema(), Layout.BY_REQUEST, num_buckets=2)
        write(main, to_batches(REQUESTS))
        side = create_feature_table(catalog, "lake.f", main, [COUNT], by_position=self.by_position)
        add_request_feature(main, side, constant(1))

    def run(self, catalog: Catalog) -> None:
        add_request_feature(catalog.load_table("lake.main"), catalog.load_table("lake.f"), constant(2))

    def check(self, catalog: Catalog, *, done: bool) -> None:
        found = values(catalog.load_table("lake.main"), catalog.load_table("lake.f"), "count")
        assert found in ([] if done else [dict.fromkeys(IDS, 1)]) + [dict.fromkeys(IDS, 2)]


class BackfillByPosition(Backfill):
    by_position = True


class StageAndPublish(Backfill):
    """A column is added and another one replaced, on a branch."""

    def run(self, catalog: Catalog) -> None:
        main, side = catalog.load_table("lake.main"), catalog.load_table("lake.f")
        both = lambda r: {"count": [2] * r.num_rows, "rate": [0.5] * r.num_rows}  # noqa: E731
        staged = stage_request_feature(main, side, both, name="next", columns=[COUNT, RATE])
        assert all(result.ok for result in staged.check(ranges={"rate": (0, 1)}).values())
        staged.publish()

    def check(self, catalog: Catalog, *, done: bool) -> None:
        main, side = catalog.load_table("lake.main"), catalog.load_table("lake.f")
        super().check(catalog, done=done)
        if "rate" in side.schema().column_names:
            assert values(main, side, "rate") == dict.fromkeys(IDS, 0.5)
            assert values(main, side, "count") == dict.fromkeys(IDS, 2)
        else:
            assert not done


class Promote(Backfill):
    """Two feature tables become columns."""

    def prepare(self, catalog: Catalog) -> None:
        super().prepare(catalog)
        main = catalog.load_table("lake.main")
        side = create_feature_table(catalog, "lake.g", main, [RATE, VECTOR], by_position=True)
        add_request_feature(main, side, lambda r: {"rate": [0.5] * r.num_rows, "vector": [[1.0, 2.0]] * r.num_rows})
        add_request_feature(main, catalog.load_table("lake.f"), of_request)

    def run(self, catalog: Catalog) -> None:
        main, *sides = (catalog.load_table(f"lake.{name}") for name in ("main", "f", "g"))
        promote(main, sides)

    def check(self, catalog: Catalog, *, done: bool) -> None:
        main = catalog.load_table("lake.main")
        source = TableSource(main)
        rows = [row for batch in source.batches() for row in batch.to_pylist()]
        assert sorted((r["request_id"], r["item_id"]) for r in rows) == sorted(
            (r["request_id"], int(item)) for r in REQUESTS for item in r["items"]
        )
        assert checks.requests_whole(main).ok
        if "rate" in table_schema(main):
            assert all(row["count"] == row["request_id"] and row["rate"] == 0.5 for row in rows)
        else:
            assert not done
            assert source.schema == log_schema()
            assert "rate" not in main.schema().column_names
