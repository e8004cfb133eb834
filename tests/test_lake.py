"""`rd.open()` and its verbs: the same tables as the functions below make, always fresh, and nothing half-done."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

import reqdedup as rd
from reqdedup import cli, storage
from reqdedup.display import ReportTable
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.logs.ids import hash_string
from reqdedup.storage.iceberg.layout import table_buckets
from tests.storage.foreign.folders import MARKERS, table_folder

LOG = SyntheticLogConfig(num_users=12, seed=3)
RATINGS = "userId,movieId,rating,timestamp\n" + "".join(
    f"{user},{item},{1 + item % 5},{1_000_000_000 + 100_000 * user + item}\n" for user in range(6) for item in range(5)
)
COLUMNS = {"user": "u", "request": "r", "item": "i", "time": "t", "time_unit": "s", "labels": ["y"]}


@pytest.fixture
def lake(tmp_path):
    return rd.open(tmp_path / "lake")


def synthetic(lake, name="lake.t"):
    table = storage.create_table(lake.make(), name, synthetic_schema(LOG), rd.Layout.BY_REQUEST, num_buckets=2)
    storage.write(table, synthesize(LOG))
    return lake.table(name)


def theirs(path, *, first: int = 0):
    rows = [
        {"u": r % 5, "r": r + first, "i": i, "t": 1_700_000_000 + r, "y": i % 2} for r in range(20) for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def files_of(folder):
    return sorted(str(path) for path in folder.rglob("*.parquet"))


@pytest.mark.slow
def test_importing_the_package_loads_no_heavy_library_before_a_verb_needs_it():
    code = (
        "import sys, reqdedup as rd; assert set(rd.__all__) <= set(dir(rd)); "
        "heavy = {'numpy', 'pyarrow', 'pyiceberg', 'polars', 'duckdb', 'torch', 'dagster'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "rd.open('x'); assert 'pyarrow' in sys.modules; assert not {'torch', 'dagster'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_of_the_package_is_there_and_another_is_an_attribute_error():
    assert all(getattr(rd, name) is not None for name in rd.__all__)
    with pytest.raises(AttributeError, match="there are Activity"):
        rd.nothing  # noqa: B018


@pytest.mark.slow
def test_a_log_goes_in_and_comes_out_as_rows(lake, tmp_path):
    (tmp_path / "r.csv").write_text(RATINGS + ",1,2,3\n")
    report = lake.ingest(tmp_path / "r.csv", "movies.r", preset="movielens", num_buckets=2)
    assert (report.written.rows, report.written.users, report.rejected) == (30, 6, {"null_id": 1})
    frame = lake.table("movies.r").to_polars()
    paths = [task.file.file_path for task in lake.table("movies.r").iceberg.scan().plan_files()]
    wanted = duckdb.sql(f"select user_id, item_id from read_parquet({paths}) order by all").fetchall()
    assert sorted(frame.select("user_id", "item_id").rows()) == wanted
    listed = {row["table"]: row for row in lake.tables().to_arrow().to_pylist()}
    assert {name: (row["kind"], row["rows"]) for name, row in listed.items()} == {
        "movies.r": ("engagements", 30),
        "movies.rejected_engagements": ("rejects", 1),
    }
    assert listed["movies.r"]["bytes"] == report.written.bytes
    assert "movies.r" in repr(lake.tables("movies"))


@pytest.mark.slow
def test_a_table_is_fresh_whoever_writes_it(lake):
    ours, theirs = synthetic(lake), rd.open(lake.place.data_dir).table("lake.t")
    before = theirs.source.num_rows
    ours.append(synthesize(LOG))
    assert theirs.source.num_rows == ours.source.num_rows == 2 * before
    theirs.compact()
    assert ours.health().small_files == theirs.health().small_files
    assert "rows" in repr(ours)


@pytest.mark.slow
def test_features_are_added_one_after_the_other_and_a_failed_one_leaves_no_table(lake):
    table = synthetic(lake)
    names = ("a", "b", "c")
    one, two, three = (rd.Column(name=n, dtype="int32", level=rd.Level.REQUEST, doc="a count") for n in names)

    def fail(requests):
        raise RuntimeError("no model")

    with pytest.raises(RuntimeError, match="no model"):
        table.feature("lake.f", one, fail)
    assert not lake.catalog.table_exists("lake.f")
    table.feature("lake.f", [one, two], lambda requests: {"a": [1] * len(requests), "b": [2] * len(requests)})
    table.feature("lake.f", three, lambda requests: [3] * requests.num_rows)
    table.feature("lake.f", two, lambda requests: [4] * requests.num_rows)
    joined = table.join("lake.f").to_arrow(names)
    assert {tuple(row.values()) for row in joined.select(names).to_pylist()} == {(1, 4, 3)}
    with pytest.raises(RuntimeError, match="no model"):
        table.feature("lake.f", one, fail)
    with pytest.raises(ValueError, match="a table by position required"):
        table.feature("lake.f", one, fail, by_position=True)
    assert lake.catalog.table_exists("lake.f")


@pytest.mark.slow
def test_the_verbs_of_a_table_are_the_functions_of_storage(lake):
    table = synthetic(lake)
    visits = rd.Column(name="visits", dtype="int32", level=rd.Level.REQUEST, doc="how often")
    table.feature("lake.f", visits, lambda requests: [7] * requests.num_rows)
    joined = table.join("lake.f")
    assert set(joined.to_arrow(["visits"])["visits"].to_pylist()) == {7}
    sample = table.sample(rate=0.5, seed=1)
    assert set(sample.to_arrow(["user_id"])["user_id"].to_pylist()) == set(sample.user_ids.to_pylist())
    assert table.report().to_arrow().equals(storage.compression_report({"lake.t": table.iceberg}))
    user = sample.user_ids[0].as_py()
    storage.tag(table.iceberg, "v1")
    planned = table.delete_user(pa.array([user]))
    assert planned.dry_run
    assert planned.is_found
    assert user in table.to_arrow(["user_id"])["user_id"].to_pylist()
    done = table.delete_user(user, apply=True)
    assert not done.dry_run
    assert "still held by v1 of lake.t, maybe 1 old snapshot of lake.f" in repr(done)
    assert done.shown().to_arrow().select(["held_by", "snapshots"]).to_pylist() == [
        {"held_by": "v1", "snapshots": 0},
        {"held_by": "", "snapshots": 1},
    ]
    assert "still held" not in repr(table.delete_user(user, apply=True, drop_refs=True, erase=True))
    assert user not in table.to_arrow(["user_id"])["user_id"].to_pylist()
    assert not lake.delete_user(user, namespaces=["lake"]).is_found
    with pytest.raises(ValueError, match="namespaces or tables required"):
        lake.delete_user(user)


@pytest.mark.slow
def test_a_join_says_how_many_rows_have_no_features(lake):
    table = synthetic(lake)
    visits = rd.Column(name="visits", dtype="int32", level=rd.Level.REQUEST, doc="how often", nullable=True)
    table.feature("lake.f", visits, lambda requests: [7] * requests.num_rows)
    rows = table.source.num_rows
    day = next(iter(synthesize(SyntheticLogConfig(num_users=3, seed=4))))
    assert table.join("lake.f").to_arrow(["visits"])["visits"].null_count == 0
    shifted = pa.compute.add(day["request_id"], 2**40)
    table.append([day.set_column(day.schema.get_field_index("request_id"), day.schema.field("request_id"), shifted)])
    for how in ("left", "inner"):
        with pytest.raises(
            ValueError, match=r"lake\.f is stale.* compute the features again, or join them as they are"
        ):
            table.join("lake.f", how=how)
    joined = storage.bucket_join(table.iceberg, lake.catalog.load_table("lake.f"), how="left")
    assert repr(joined) == "<BucketJoin lake.t join lake.f: left on user_id, request_id, adds visits>"
    new = joined.to_arrow(["visits"])["visits"].null_count
    assert new == day.num_rows
    assert f"{new} of {rows + new:,} rows without one in lake.f>" in repr(joined)


@pytest.mark.slow
def test_a_deletion_by_a_feature_table_finds_the_rejected_rows_beside_its_main_table(lake):
    table = synthetic(lake)
    lake.catalog.create_namespace("elsewhere")
    visits = rd.Column(name="visits", dtype="int32", level=rd.Level.REQUEST, doc="how often")
    table.feature("elsewhere.f", visits, lambda requests: [7] * requests.num_rows)
    storage.write_rejects(lake.catalog, "lake.rejected_engagements", [])
    found = lake.delete_user(1, tables="elsewhere.f")
    assert {report.table for report in found.reports} == {"elsewhere.f", "lake.t", "lake.rejected_engagements"}
    assert "still held" not in repr(found)


@pytest.mark.slow
def test_foreign_files_are_audited_converted_and_appended(lake, tmp_path):
    path = theirs(tmp_path / "a.parquet")
    audit = lake.audit(path, request_key="r", user_key="u", sample_bytes=2**20)
    assert audit.requests.requests == 20
    assert audit._repr_html_().count("<table>") == 2
    assert audit.to_polars()["name"].to_list() == audit.to_arrow()["name"].to_pylist() == ["u", "r", "i", "t", "y"]
    assert lake.convert(path, "ads.t", COLUMNS, num_buckets=2).rows == 60
    table = lake.table("ads.t")
    assert table.append(theirs(tmp_path / "b.parquet", first=20), COLUMNS).is_append
    assert table.source.num_rows == 120
    assert lake.audit("ads.t", request_key="request_id", user_key="user_id", sample_bytes=2**20).requests.requests == 40


@pytest.mark.slow
def test_what_a_notebook_shows_is_html_with_every_text_escaped(lake):
    table = synthetic(lake)
    for shown in (lake, table, table.report(), lake.tables(), table.delete_user(1)):
        html = shown._repr_html_()
        assert html.count("<table>") == html.count("</table>") == 1
        assert "lake.t" in html
    assert "<script>" not in ReportTable("<script>", pa.table({"<script>": ["<script>"]}))._repr_html_()


@pytest.mark.slow
def test_batches_and_sources_have_a_short_repr(lake):
    pytest.importorskip("torch")
    table = synthetic(lake)
    (batch, *_) = table.loader(requests_per_batch=4)
    for shown in (batch, table.source, table.sample(rate=0.5), table, lake):
        assert len(repr(shown)) < 300, repr(shown)
    assert f"{batch.num_requests} requests, {batch.num_rows} rows" in repr(batch)


def test_a_lake_that_is_not_there_is_an_error_and_is_not_made(tmp_path):
    lake = rd.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a catalog required, found none at"):
        lake.tables()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_line_shows_the_lake_that_open_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REQDEDUP_DATA_DIR", "mine")
    synthetic(rd.open())
    assert cli.main(["tables"]) == 0
    printed = capsys.readouterr().out
    assert f"sqlite:///{tmp_path}/mine/catalog.db" in printed
    assert "lake.t" in printed
    assert cli.main(["tables", "--namespace", "nope"]) == 2
    assert "namespace nope is not in the catalog; there are: lake" in capsys.readouterr().err


class InterruptAt:
    """A progress callback that gets Ctrl-C at its n-th call."""

    def __init__(self, number: int) -> None:
        self.number, self.calls = number, 0

    def __call__(self, *progress: object) -> None:
        self.calls += 1
        if self.calls == self.number:
            signal.raise_signal(signal.SIGINT)


def verbs(lake, tmp_path):
    """Name and call of each verb that writes; each makes or changes the table w.t."""
    log, first, more = tmp_path / "r.csv", theirs(tmp_path / "a.parquet"), theirs(tmp_path / "b.parquet", first=20)
    log.write_text(RATINGS)
    return {
        "ingest": lambda progress: lake.ingest(
            log, "w.t", preset="movielens", num_buckets=2, replace=True, progress=progress
        ),
        "convert": lambda progress: lake.convert(first, "w.t", COLUMNS, num_buckets=2, progress=progress),
        "append": lambda progress: lake.table("w.t").append(more, COLUMNS, progress=progress),
    }


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["ingest", "convert", "append"])
def test_interrupting_a_kernel_leaves_nothing_half_done(lake, tmp_path, verb):
    call = verbs(lake, tmp_path)[verb]
    if verb == "append":
        verbs(lake, tmp_path)["convert"](None)
    there = files_of(lake.place.data_dir) if verb == "append" else []
    count = InterruptAt(0)
    for number in range(1, 50):
        count = InterruptAt(number)
        try:
            call(count)
        except KeyboardInterrupt:
            assert lake.catalog.table_exists("w.t") is (verb == "append")
            assert files_of(lake.place.data_dir) == there
        else:
            break
    assert 1 < count.calls < 50
    assert lake.table("w.t").source.num_rows == {"ingest": 30, "convert": 60, "append": 120}[verb]


@pytest.mark.slow
@pytest.mark.parametrize("after", ["replace_table", "write_rejects"])
def test_an_ingest_that_is_interrupted_after_its_commit_has_its_own_rejects(lake, tmp_path, monkeypatch, after):
    (tmp_path / "old.csv").write_text(RATINGS + 2 * ",1,2,3\n")
    lake.ingest(tmp_path / "old.csv", "w.t", preset="movielens", num_buckets=2)
    (tmp_path / "r.csv").write_text(RATINGS + ",1,2,3\n")
    step, calls = getattr(storage, after), []

    def interrupted(*arguments, **options):
        calls.append(step)
        if after == "replace_table" or len(calls) > 1:
            step(*arguments, **options)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, after, interrupted)
    with pytest.raises(KeyboardInterrupt):
        lake.ingest(tmp_path / "r.csv", "w.t", preset="movielens", num_buckets=2)
    assert lake.table("w.t").source.num_rows == 30
    assert lake.catalog.load_table("w.rejected_engagements").scan().to_arrow().num_rows == 1


@pytest.mark.parametrize("kind", MARKERS)
@pytest.mark.parametrize("inside", ["", "data", "data/day=1/f.parquet", ".."])
def test_a_log_is_no_folder_of_another_table_format(lake, tmp_path, kind, inside):
    folder = table_folder(tmp_path, MARKERS[kind])
    mapping = {"user_id": "u", "item_id": "i", "time": {"column": "t"}, "labels": {"seen": {"value": 1}}}
    with pytest.raises(ValueError, match=f"found those of the {kind} table {folder}, among them"):
        lake.ingest((folder / inside).resolve(), "w.t", mapping=mapping)
    assert not lake.catalog.list_namespaces()


@pytest.mark.slow
def test_a_text_is_one_key_and_not_its_letters(lake, tmp_path):
    (tmp_path / "r.csv").write_text(
        "u,i,t,s\n" + "".join(f"{user},1,{1_700_000_000 + n},1\n" for n, user in enumerate(("m3", "m", "3")))
    )
    mapping = {
        "user_id": {"column": "u", "type": "string"},
        "item_id": "i",
        "time": {"column": "t"},
        "labels": {"seen": "s"},
    }
    lake.ingest(tmp_path / "r.csv", "w.t", mapping=mapping, num_buckets=1)
    assert sum(report.rows for report in lake.delete_user(keys="m3", namespaces="w", apply=True).reports) == 1
    left = lake.table("w.t").to_polars(["user_id"])["user_id"].to_list()
    assert sorted(left) == sorted([hash_string("m"), hash_string("3")])
    for wrong in ("4711", True, [1.5], []):
        with pytest.raises(ValueError, match="user_ids: "):
            lake.delete_user(wrong, namespaces="w", apply=True)
    assert lake.delete_user(np.int64(left[0]), namespaces="w").is_found


CHILD = """
import sys, reqdedup as rd
lake = rd.open(sys.argv[1])
print("ready", flush=True)
lake.ingest(sys.argv[2], "w.t", preset="movielens", num_buckets=4, replace=True)
"""


@pytest.mark.soak
def test_ctrl_c_at_any_time_leaves_rows_and_rejects_of_one_log(lake, tmp_path):
    logs = {}
    for number, users in enumerate((300, 400)):
        path = tmp_path / f"{number}.csv"
        rows = [f"{u},{i},3,{1_000_000_000 + 100_000 * u + i}\n" for u in range(users) for i in range(20)]
        path.write_text("userId,movieId,rating,timestamp\n" + "".join(rows) + (number + 1) * ",1,2,3\n")
        logs[users * 20] = (path, number + 1)
    paths = [path for path, _ in logs.values()]
    lake.ingest(paths[0], "w.t", preset="movielens", num_buckets=4)
    rng, interrupted = np.random.default_rng(0), 0
    for number in range(1, 13):
        command = [sys.executable, "-c", CHILD, str(lake.place.data_dir), str(paths[number % 2])]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(rng.uniform(0, 1.2))
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
        interrupted += child.returncode != 0
        rejects = lake.catalog.load_table("w.rejected_engagements").scan().to_arrow().num_rows
        assert rejects == logs[lake.table("w.t").source.num_rows][1]
    assert interrupted >= 4


@pytest.mark.slow
def test_a_new_table_has_buckets_that_fit_the_log_and_one_that_is_there_keeps_its_own(lake, tmp_path):
    (tmp_path / "r.csv").write_text(RATINGS)

    def buckets(**options):
        lake.ingest(tmp_path / "r.csv", "w.t", preset="movielens", **options)
        return table_buckets(lake.catalog.load_table("w.t"))

    assert buckets() == 1
    assert buckets(num_buckets=6, replace=True) == 6
    assert buckets() == buckets(replace=True) == 6
    with pytest.raises(ValueError, match=r"w\.t: is there in another form \(1 bucket required, found 6\)"):
        buckets(num_buckets=1)
    with pytest.raises(ValueError, match="num_buckets must be positive, found 0"):
        buckets(num_buckets=0, replace=True)
