"""A team's own table, in names and types of its own, comes out row for row the same, whatever form it had."""

from __future__ import annotations

import datetime as dt
import re

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.dedup.history_time import UNIT_DIGITS
from reqdedup.logs.ids import hash_string
from reqdedup.schema import Kind, Level
from reqdedup.storage import ConflictError, Layout, TableSource, create_table, table_layout, table_schema
from reqdedup.storage.foreign import source
from reqdedup.storage.iceberg.layout import table_buckets
from reqdedup.storage.measure import checks
from tests.convert.their_log import MAPPING, THEIR_SCHEMA, expected, folder_of, rows_in, their_rows
from tests.storage.foreign.delete_files import delete_positions
from tests.storage.tables import files_of


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_every_row_and_value_arrives_in_every_layout(catalog, tmp_path, layout, monkeypatch):
    monkeypatch.setattr(source, "PIECE_BYTES", 4096)  # many pieces, each with a few rows of many requests
    rows = their_rows()
    seen = []
    report = convert_table(
        folder_of(tmp_path, rows), catalog, "test.ours", MAPPING, layout=layout, num_buckets=4, progress=seen.append
    )
    assert report.notes == ()
    table = catalog.load_table("test.ours")
    assert rows_in(table) == expected(rows)
    assert (report.rows, report.requests) == (len(rows), 40)
    assert report.checksum == checks.content_checksum(TableSource(table))
    assert table_layout(table) is layout
    if layout.is_bucketed:
        assert table_buckets(table) == 4
        for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right):
            assert check(table).ok
    assert {one.phase for one in seen} == {"keys", "sample", "rows", "verify"}


def test_levels_kinds_and_names_are_found(catalog, tmp_path):
    convert_table(folder_of(tmp_path, their_rows()), catalog, "test.ours", MAPPING)
    schema = table_schema(catalog.load_table("test.ours"))
    assert {column.name: column.level for column in schema.columns if column.level is not Level.KEY} == {
        **dict.fromkeys(["user_key", "request_key", "request_ts", "day", "country"], Level.REQUEST),
        **dict.fromkeys(["history_item_id", "history_watched", "history_kind", "taste"], Level.REQUEST),
        **dict.fromkeys(["shown_price", "rank"], Level.ITEM),
        "clicked": Level.LABEL,
    }
    assert (schema["taste"].kind, schema["taste"].width) == (Kind.VECTOR, 4)
    assert (schema["history_kind"].kind, schema["history_kind"].dtype) == (Kind.SEQUENCE, "int32")


@pytest.mark.slow
def test_an_iceberg_table_with_renamed_columns_and_deleted_rows(catalog, tmp_path):
    rows = their_rows().drop_columns(["history", "taste", "country"])
    catalog.create_namespace("test")
    theirs = catalog.create_table("test.theirs", plain_types(rows.schema))
    theirs.append(rows.slice(0, 100).cast(plain_types(rows.schema)))
    with theirs.update_schema() as update:
        update.rename_column("rank", "position")
        update.add_column("late", theirs.schema().find_type("member"))
    later = (
        rows.slice(100)
        .cast(plain_types(rows.schema))
        .rename_columns(["position" if name == "rank" else name for name in rows.column_names])
    )
    theirs.append(later.append_column("late", pa.array([f"spät-{i}" for i in range(len(later))])))
    theirs.delete("position < 10")
    mapping = ColumnMapping(user="member", request="session", item="shown.id", time="at", labels=["clicked"])
    report = convert_table(theirs, catalog, "test.ours", mapping, layout=Layout.SORTED_LARGE_PAGES, num_buckets=2)
    assert report.rows == theirs.scan().count() < len(rows)
    ours = duckdb.sql(
        "select user_key, request_key, item_id, shown_price, position, late, clicked::bool, epoch_us(request_ts) "
        f"from read_parquet({files_of(catalog.load_table('test.ours'))}) order by all"
    ).fetchall()
    scanned = theirs.scan().to_arrow()  # noqa: F841
    wanted = duckdb.sql(
        'select member, session, shown.id, shown.price, position, late, clicked, epoch_us("at") from scanned order by all'
    ).fetchall()
    assert ours == wanted


def plain_types(schema: pa.Schema) -> pa.Schema:
    """What Iceberg can hold of it: no small integers, milliseconds or dictionaries."""
    kinds = {"at": pa.timestamp("us"), "rank": pa.int32(), "session": pa.string()}
    return pa.schema([pa.field(field.name, kinds.get(field.name, field.type)) for field in schema])


@pytest.mark.slow
def test_rows_that_position_deletes_name_are_left_out(catalog):
    rows = their_rows().drop_columns(["history", "taste", "country"])
    catalog.create_namespace("test")
    theirs = catalog.create_table("test.theirs", plain_types(rows.schema))
    theirs.append(rows.cast(plain_types(rows.schema)))
    (task,) = theirs.scan().plan_files()
    delete_positions(theirs, {task.file.file_path: [3, 60, 61]})
    mapping = ColumnMapping(user="member", request="session", item="shown.id", time="at", labels=["clicked"])
    report = convert_table(theirs, catalog, "test.ours", mapping)
    assert report.rows == len(rows) - 3
    assert "left out, as delete files name them: 3 rows" in report.notes
    stored = pq.read_table(task.file.file_path.removeprefix("file://")).column("shown").to_pylist()
    kept = sorted(one["id"] for row, one in enumerate(stored) if row not in (3, 60, 61))
    assert (
        sorted(
            row["item_id"]
            for batch in TableSource(catalog.load_table("test.ours")).batches()
            for row in batch.to_pylist()
        )
        == kept
    )


@pytest.mark.parametrize(("unit", "said"), [("s", True), ("ms", False), ("us", True)])
def test_times_in_a_unit_that_is_hardly_right_are_noted(catalog, tmp_path, unit, said):
    rows = pa.table({"u": [1, 2], "r": [1, 2], "i": [1, 2], "at": [1_700_000_000_000, 1_700_000_000_001]})
    mapping = ColumnMapping(user="u", request="r", item="i", time="at", time_unit=unit)
    notes = convert_table(folder_of(tmp_path, rows, num_files=1), catalog, "test.ours", mapping).notes
    assert any(f"the times of at, read as {unit} since 1970, are " in note for note in notes) == said


def test_integer_keys_stay_and_several_columns_make_a_request(catalog, tmp_path):
    rows = pa.table(
        {
            "uid": pa.array([1, 1, 2, 2], pa.int32()),
            "hour": pa.array([5, 6, 5, 5]),
            "slot": ["a", "a", "a", "b"],
            "iid": pa.array([10, 11, 12, 13], pa.uint32()),
            "ms": pa.array([1_700_000_000_000 + i for i in range(4)]),
        }
    )
    mapping = ColumnMapping(user="uid", request=["hour", "slot"], item="iid", time="ms", time_unit="ms")
    report = convert_table(folder_of(tmp_path, rows, num_files=1), catalog, "test.ours", mapping)
    table = catalog.load_table("test.ours")
    found = [row for batch in TableSource(table).batches() for row in batch.to_pylist()]
    assert report.requests == 4
    assert sorted((row["user_id"], row["item_id"], row["hour"], row["slot"]) for row in found) == [
        (1, 10, 5, "a"),
        (1, 11, 6, "a"),
        (2, 12, 5, "a"),
        (2, 13, 5, "b"),
    ]
    assert {row["request_ts"] for row in found} == {
        dt.datetime.fromtimestamp(1_700_000_000, dt.UTC) + dt.timedelta(milliseconds=i) for i in range(4)
    }


@pytest.mark.parametrize("hashed", [True, False])
def test_lists_of_string_ids_become_those_of_items_and_null_lists_empty(catalog, tmp_path, hashed):
    rows = pa.table(
        {
            "u": ["a", "a", "b"],
            "r": ["1", "1", "2"],
            "i": ["N1", "N2", "N1"],
            "t": pa.array([1, 1, 2], pa.timestamp("s")),
            "clicks": pa.array([["N7", "N1"], ["N7", "N1"], None], pa.list_(pa.string())),
        }
    )
    mapping = ColumnMapping(user="u", request="r", item="i", time="t", ids=["clicks"], hash_items=hashed)
    report = convert_table(folder_of(tmp_path, rows), catalog, "test.ours", mapping)
    found = [row for batch in TableSource(catalog.load_table("test.ours")).batches() for row in batch.to_pylist()]
    ids = {"N1": 0, "N7": 1, "N2": 2}  # the most frequent first
    dtype = np.int64 if hashed else np.int32
    if hashed:
        ids = {key: hash_string(key) for key in ids}
    assert {row["clicks"] for row in found} == {np.array([ids["N7"], ids["N1"]], dtype).tobytes(), b""}
    assert {row["item_id"] for row in found} == {ids["N1"], ids["N2"]}
    assert catalog.table_exists("test.items") is not hashed
    assert "1 null list: empty, since a sequence cannot be null" in report.changes
    assert any(
        "models need history_item_id, " in note and "--rename clicks=history_item_id" in note for note in report.notes
    )


@pytest.mark.slow
def test_a_column_of_another_level_than_given_is_an_error_and_leaves_no_table(catalog, tmp_path):
    folder = folder_of(tmp_path, their_rows())
    wrong = ColumnMapping(user="member", request="session", item="shown.id", time="at", levels={"rank": Level.REQUEST})
    with pytest.raises(ValueError, match="column rank: one value per request required") as caught:
        convert_table(folder, catalog, "test.ours", wrong)
    assert not catalog.table_exists("test.ours")
    said = re.search(
        r"found (\d+) \((.*) at row (\d+)\) and (\d+) \((.*) at row (\d+)\) in request '(\w+)' of user '([^']+)'",
        str(caught.value),
    ).groups()
    for value, path, row in (said[:3], said[3:6]):
        stored = pq.read_table(path).slice(int(row) - 1, 1).to_pylist()[0]
        assert (str(stored["rank"]), stored["session"], stored["member"]) == (value, *said[6:])


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["s", "ns"])
def test_times_of_history_events_become_milliseconds_whatever_their_unit(catalog, tmp_path, unit):
    newest_ms = [[1_699_999_000_500, 1_699_999_100_999], [], [1_600_000_000_000]]
    times = [[value * 10**digits // 1000 for value in one] for one in newest_ms for digits in [UNIT_DIGITS[unit]]]
    expected = [[value // 1000 * 1000 if unit == "s" else value for value in one] for one in newest_ms]
    rows = pa.table(
        {
            "u": ["a", "b", "c"],
            "r": [1, 2, 3],
            "i": [1, 2, 3],
            "t": pa.array([1_700_000_000] * 3, pa.timestamp("s")),
            "numbers": pa.array(times, pa.list_(pa.int64())),
        }
    )
    typed = rows.append_column("typed", rows["numbers"].cast(pa.list_(pa.timestamp(unit)))).drop_columns("numbers")
    (tmp_path / "typed").mkdir()
    keys = {"user": "u", "request": "r", "item": "i", "time": "t"}
    folders = {"numbers": folder_of(tmp_path, rows), "typed": folder_of(tmp_path / "typed", typed)}
    for name, folder in folders.items():
        mapping = ColumnMapping(
            **keys, rename={name: "history_ts"}, history_time_unit=unit if name == "numbers" else None
        )
        convert_table(folder, catalog, f"test.{name}", mapping)
        table = catalog.load_table(f"test.{name}")
        found = [row for batch in TableSource(table).batches() for row in batch.to_pylist()]
        assert {row["request_id"]: np.frombuffer(row["history_ts"], "<i8").tolist() for row in found} == dict(
            zip([1, 2, 3], expected)
        )
    if unit != "ms":
        with pytest.raises(ValueError, match=f"found ones that seem to be in {unit} .*--history-time-unit {unit}"):
            convert_table(
                folders["numbers"], catalog, "test.w", ColumnMapping(**keys, rename={"numbers": "history_ts"})
            )
        assert not catalog.table_exists("test.w")


@pytest.mark.slow
def test_a_value_that_changes_on_the_way_stops_the_conversion(catalog, tmp_path, monkeypatch):
    from reqdedup.convert import rows as rows_module

    blobs_of = rows_module.blobs_of

    def damaged(lists):
        array = blobs_of(lists)
        flipped = [bytes([value[0] ^ 1]) + value[1:] if value else value for value in array.dictionary.to_pylist()]
        return pa.DictionaryArray.from_arrays(array.indices, pa.array(flipped, pa.binary()))

    monkeypatch.setattr(rows_module, "blobs_of", damaged)
    with pytest.raises(RuntimeError, match=r"the rows of .* required .*, found .*; nothing was committed"):
        convert_table(folder_of(tmp_path, their_rows()), catalog, "test.ours", MAPPING)
    assert not catalog.table_exists("test.ours")


@pytest.mark.slow
def test_an_empty_table_of_the_name_is_used_or_refused_and_never_dropped(catalog, tmp_path):
    folder, rows = folder_of(tmp_path, their_rows()), their_rows()
    convert_table(folder, catalog, "test.like", MAPPING, num_buckets=2)
    schema = table_schema(catalog.load_table("test.like"))
    uuid = create_table(catalog, "test.ours", schema, Layout.BY_REQUEST, num_buckets=2).metadata.table_uuid
    with pytest.raises(ValueError, match=r"test\.ours: an empty table .*3 buckets required, found 2"):
        convert_table(folder, catalog, "test.ours", MAPPING, num_buckets=3)

    def fail(progress):
        if progress.phase == "verify":
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        convert_table(folder, catalog, "test.ours", MAPPING, num_buckets=2, progress=fail)
    assert catalog.load_table("test.ours").metadata.table_uuid == uuid
    convert_table(folder, catalog, "test.ours", MAPPING, num_buckets=2)
    table = catalog.load_table("test.ours")
    assert (table.metadata.table_uuid, rows_in(table)) == (uuid, expected(rows))


@pytest.mark.slow
def test_a_table_that_another_makes_meanwhile_stays_as_it_is(catalog, tmp_path):
    folder = folder_of(tmp_path, their_rows())

    def meanwhile(progress):
        if progress.phase == "verify" and not catalog.table_exists("test.ours"):
            convert_table(folder, catalog, "test.ours", MAPPING, num_buckets=4)

    with pytest.raises(ConflictError, match="another writer made the table in the meantime"):
        convert_table(folder, catalog, "test.ours", MAPPING, num_buckets=2, progress=meanwhile)
    table = catalog.load_table("test.ours")
    assert (table_buckets(table), len(table.metadata.snapshots)) == (4, 1)
    assert rows_in(catalog.load_table("test.ours")) == expected(their_rows())


@pytest.mark.slow
@pytest.mark.parametrize("error", [ConnectionError, KeyboardInterrupt])
def test_a_commit_that_landed_without_an_answer_keeps_its_table(catalog, tmp_path, error, monkeypatch):
    commit = type(catalog).commit_table
    folder, away = folder_of(tmp_path, their_rows()), []

    def landed(self, *arguments):
        commit(self, *arguments)
        away.append(True)
        raise error("no answer")

    def load(self, identifier):
        if away:
            raise ConnectionError("away")
        return load_table(self, identifier)

    load_table = type(catalog).load_table
    with monkeypatch.context() as patch:
        patch.setattr(type(catalog), "commit_table", landed)
        patch.setattr(type(catalog), "load_table", load)
        with pytest.raises(error, match="no answer"):
            convert_table(folder, catalog, "test.ours", MAPPING, num_buckets=2)
    assert rows_in(catalog.load_table("test.ours")) == expected(their_rows())


@pytest.mark.slow
def test_bad_input_says_what_is_required(catalog, tmp_path):
    rows = their_rows()
    rows = rows.append_column("list_of_words", pa.array([["x"]] * len(rows)))
    folder = folder_of(tmp_path, rows.append_column("per_row", pa.array([[i] for i in range(len(rows))])))
    keys = {"user": "member", "request": "session", "item": "shown.id", "time": "at"}
    skip = ["list_of_words", "per_row"]
    for changed, message in [
        ({"user": "nobody"}, "column nobody required, found member"),
        (
            {"user": "nobody", "time": "never", "exclude": ["nothing"]},
            "columns nobody, never, nothing required, found mem",
        ),
        ({"item": "taste"}, "key columns of whole numbers.*found taste .float"),
        ({"time": "rank"}, "time column rank of timestamps required.* and no unit; .*--time-unit"),
        (
            {"exclude": skip, "rename": {"rank": "taste", "day": "shown_price"}},
            "one target column per name required, found shown_price for day and for shown.price; taste for taste and for",
        ),
        ({"exclude": skip, "rename": {"member": "who"}}, "column member becomes user_id and cannot be renamed"),
        ({"exclude": skip, "levels": {"rank": Level.KEY}}, "column rank: a level of request, item or label"),
        (
            {"exclude": skip, "vectors": {"taste": 3}},
            "column taste as float32 required at row 1: 3 elements each required, found 4",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            convert_table(folder, catalog, "test.ours", ColumnMapping(**{**keys, **changed}))
        assert not catalog.table_exists("test.ours")
    with pytest.raises(ValueError, match=r"tell requests apart required, or session_gap_s .*, found neither"):
        ColumnMapping(**{**keys, "request": ()})
    with pytest.raises(ValueError, match="found both"):
        ColumnMapping(**keys, session_gap_s=60)
    with pytest.raises(ValueError, match="time_unit: one of s, ms, us, ns required, found 'min'"):
        ColumnMapping(**keys, time_unit="min")
    with pytest.raises(ValueError, match="found nothing there"):
        convert_table(tmp_path / "nowhere", catalog, "test.ours", MAPPING)
    fine = ColumnMapping(**keys, exclude=skip)
    convert_table(folder, catalog, "test.ours", fine)
    with pytest.raises(ValueError, match=r"test.ours: a new table required, found one; append to it"):
        convert_table(folder, catalog, "test.ours", fine)


def test_null_keys_and_null_elements_are_named_with_their_place(catalog, tmp_path):
    rows = their_rows(num_requests=4).to_pylist()
    rows[3]["shown"] = {"id": None, "price": 1.0}
    folder = folder_of(tmp_path, pa.Table.from_pylist(rows, THEIR_SCHEMA), shuffle=False, num_files=1)
    with pytest.raises(
        ValueError, match=r"part-0.parquet: column shown.id as int64 required at row 4: no nulls allowed, found 1"
    ):
        convert_table(folder, catalog, "test.ours", MAPPING)
