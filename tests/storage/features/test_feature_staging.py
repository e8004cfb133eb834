"""Write, audit, publish: what is staged nobody sees, what is published everybody sees whole, and who is late is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.storage import (
    ConflictError,
    add_request_feature,
    bucket_join,
    create_feature_table,
    promote,
    rollback_to,
    stage_request_feature,
    staged_feature,
    staged_features,
    table_schema,
    tag,
    tags,
    write,
)
from reqdedup.storage.features import drop_tag, feature_checks
from reqdedup.storage.read.feature_table import feature_schema
from tests.storage.feature_tables import (
    COUNT,
    LOG,
    RATE,
    SCORE,
    USERS,
    VECTOR,
    constant,
    file_of_bucket,
    main_table,
    of_request,
    requests_of,
    values,
)
from tests.storage.small_log import make_log, to_batches


@pytest.fixture
def main(catalog):
    return main_table(catalog)


@pytest.mark.slow
@pytest.mark.parametrize("by_position", [False, True], ids=["keys", "by_position"])
def test_readers_see_a_staged_feature_when_it_is_published_and_not_before(catalog, main, by_position):
    side = create_feature_table(catalog, "lake.f", main, [COUNT], by_position=by_position)
    staged = stage_request_feature(main, side, constant(1), name="first")
    assert catalog.load_table("lake.f").scan().count() == 0
    assert {v for b in staged.join().batches(["count"]) for v in b["count"].to_pylist()} == {1}
    staged.publish()
    assert set(values(main, catalog.load_table("lake.f"), "count").values()) == {1}

    later = stage_request_feature(
        main, side, lambda r: {"count": of_request(r), "rate": [0.5] * r.num_rows}, name="next", columns=[COUNT, RATE]
    )
    seen = catalog.load_table("lake.f")
    assert [column.name for column in feature_schema(seen).features] == ["count"]
    assert "rate" not in seen.schema().column_names
    assert set(values(main, seen, "count").values()) == {1}
    assert staged_features(seen) == ["next"]
    results = later.check(ranges={"rate": (0, 1)})
    assert set(results) == {"requests", "order", "buckets", "nulls", "ranges"}
    assert all(result.ok for result in results.values()), results
    assert results["requests"].checked == len(LOG)
    for taken in ("reqdedup-staged-y", "main", " "):
        with pytest.raises(ValueError, match="tag: a name that is not"):
            later.publish(tag=taken)
    assert staged_features(catalog.load_table("lake.f")) == ["next"]
    later.publish(tag="v2")
    seen = catalog.load_table("lake.f")
    assert [column.name for column in feature_schema(seen).features] == ["count", "rate"]
    assert "rate" in seen.schema().column_names
    assert values(main, seen, "count") == {r["request_id"]: r["request_id"] for r in LOG}
    assert staged_features(seen) == []
    assert tags(seen) == {"v2": later.snapshot_id}
    assert later.publish() == later.snapshot_id  # by a run that was killed after it had published


@pytest.mark.slow
def test_what_is_dropped_was_never_there(catalog, main):
    side = create_feature_table(catalog, "lake.f", main, [COUNT])
    add_request_feature(main, side, constant(1))
    files = file_of_bucket(side)
    staged = stage_request_feature(main, side, constant(2), name="x")
    staged_feature(main, catalog.load_table("lake.f"), "x").drop()
    seen = catalog.load_table("lake.f")
    assert file_of_bucket(seen) == files
    assert staged_features(seen) == []
    for late in (staged.publish, staged.drop):
        with pytest.raises(
            ConflictError, match=r"staged-x at snapshot .* required, found None: another writer was faster"
        ):
            late()
    with pytest.raises(ValueError, match="staged as 'x' required, found none"):
        staged_feature(main, seen, "x")


@pytest.mark.slow
def test_the_second_of_two_publications_from_one_version_is_refused(catalog, main):
    side = create_feature_table(catalog, "lake.f", main, [COUNT])
    for base in (None, 0):
        if base is not None:
            add_request_feature(main, side, constant(base))
        one = stage_request_feature(main, side, constant(1), name="one")
        two = stage_request_feature(main, catalog.load_table("lake.f"), constant(2), name="two")
        two.publish()
        with pytest.raises(ConflictError, match=r"lake\.f: main at snapshot .*another writer was faster"):
            one.publish()
        assert set(values(main, side.refresh(), "count").values()) == {2}
        again = stage_request_feature(main, side, constant(3), name="one")  # takes the place of what was staged
        with pytest.raises(ConflictError, match=r"staged-one at snapshot|main at snapshot"):
            one.publish()
        again.publish()
        assert set(values(main, side, "count").values()) == {3}
        if base is None:
            catalog.purge_table("lake.f")
            side = create_feature_table(catalog, "lake.f", main, [COUNT])


@pytest.mark.slow
def test_two_first_backfills_at_once_do_not_double_the_rows(catalog, main):
    side = create_feature_table(catalog, "lake.f", main, [COUNT])
    other = catalog.load_table("lake.f")

    def compute(requests: pa.RecordBatch) -> pa.Array:
        if other.current_snapshot() is None:
            add_request_feature(main, other, constant(1))
        return constant(2)(requests)

    with pytest.raises(RuntimeError, match="another writer changed the table"):
        add_request_feature(main, side, compute)
    assert set(values(main, side.refresh(), "count").values()) == {1}


@pytest.mark.slow
def test_checks_find_what_is_wrong_and_publishing_is_refused(catalog, main):
    side = create_feature_table(catalog, "lake.f", main, [COUNT, VECTOR])
    both = lambda r: {"count": range(r.num_rows), "vector": [[np.nan, 1.0]] * r.num_rows}  # noqa: E731
    staged = stage_request_feature(main, side, both, name="x")
    assert not staged.check(ranges={"count": (5, 10)})["ranges"].ok
    assert "count: 5 to 10 required, found 0" in staged.checks["ranges"].detail
    with pytest.raises(ValueError, match="every check passed required before 'x' is published, found ranges: count"):
        staged.publish()
    assert "found nan" in staged.check(ranges={"vector": (-1, 1)})["ranges"].detail
    with pytest.raises(ValueError, match=r"ranges: features of numbers required .*found nothing"):
        staged.check(ranges={"nothing": (0, 1)})
    assert catalog.load_table("lake.f").scan().count() == 0

    write(main, to_batches(make_log(num_users=5, seed=9)), mode="append")
    results = staged.check()
    assert not results["requests"].ok
    assert "without a row" in results["requests"].detail
    assert results["order"].ok
    with pytest.raises(ValueError, match="found requests: "):
        staged.publish()


@pytest.mark.slow
def test_what_is_staged_for_some_users_must_be_complete_in_their_buckets_only(catalog, main):
    side = create_feature_table(catalog, "lake.f", main, [COUNT])
    staged = stage_request_feature(main, side, constant(4), name="segment", users=np.array(USERS[:1]))
    again = staged_feature(main, catalog.load_table("lake.f"), "segment")
    results = again.check()
    assert results["requests"].ok
    assert 0 < results["requests"].checked < len(LOG)
    assert not feature_checks(main, side, staged.snapshot_id)["requests"].ok
    again.publish()
    found = values(main, side.refresh(), "count")
    assert {request for request, value in found.items() if value == 4} == requests_of(USERS[:1])


@pytest.mark.slow
def test_rolling_back_to_a_tag_restores_rows_and_columns(catalog, main):
    side = create_feature_table(catalog, "lake.f", main, [COUNT])
    add_request_feature(main, side, constant(1))
    first = tag(side, "v1")
    assert tag(side, "v1") == first
    add_request_feature(main, side, constant(0.5), columns=[SCORE])
    add_request_feature(main, side, constant(2), columns=[COUNT])
    tag(side, "v2")
    with pytest.raises(RuntimeError, match="v1 at snapshot None required"):
        tag(side, "v1")
    assert rollback_to(catalog.load_table("lake.f"), "v1") == first
    seen = catalog.load_table("lake.f")
    assert bucket_join(main, seen).schema.names[-1] == "count"
    assert "new_score" not in seen.schema().column_names
    assert set(values(main, seen, "count").values()) == {1}
    rollback_to(seen, "v2")
    assert set(values(main, seen, "new_score").values()) == {0.5}
    assert set(values(main, seen, "count").values()) == {2}
    with pytest.raises(ValueError, match="tag 'v3' required, found v1, v2"):
        rollback_to(seen, "v3")
    drop_tag(seen, "v1")
    assert set(tags(seen)) == {"v2"}


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(catalog, main):
    text = (Path(__file__).resolve().parents[3] / "docs" / "features.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    scope = {"catalog": catalog, "main": main, "vip_users": np.array(USERS[:2])}
    scope["model"] = lambda requests: np.linspace(0, 1, requests.num_rows, dtype=np.float32)
    exec(code, scope)
    assert all(result.ok for result in scope["results"].values())
    assert sum(batch.num_rows for batch in scope["rows"]) == sum(len(request["items"]) for request in LOG)
    assert "recent_event_count" in table_schema(catalog.load_table(main.name()))


@pytest.mark.slow
def test_tags_of_the_user_and_branches_of_ours_are_kept_apart(catalog, main):
    side = create_feature_table(catalog, "lake.f", main, [COUNT])
    first = add_request_feature(main, side, constant(1)).snapshot_id
    for name in ("staged-x", "promoting"):
        tag(side, name)
        tag(main, name)
    staged = stage_request_feature(main, side, constant(2), name="x")
    staged.drop()
    stage_request_feature(main, side, constant(2), name="x").publish()
    promote(main, [side])
    assert tags(catalog.load_table("lake.f")) == {"staged-x": first, "promoting": first}
    assert set(tags(catalog.load_table(".".join(main.name())))) == {"staged-x", "promoting"}
    for name in ("reqdedup-staged-x", "reqdedup-promoting", "main"):
        with pytest.raises(ValueError, match="does not begin with reqdedup- required"):
            tag(side, name)
