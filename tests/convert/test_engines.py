"""A conversion by tasks gives the table and the report of one by this process, bit for bit, and leaves no other file."""

from __future__ import annotations

from pathlib import Path

import pytest

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.distributed import Processes
from reqdedup.schema import Level
from reqdedup.storage import Layout
from reqdedup.storage.iceberg.vocabulary import Vocabulary
from reqdedup.storage.tasks import parts
from tests.convert.their_log import MAPPING, folder_of, their_rows
from tests.convert.their_tables import TABLES
from tests.distributed.faulty import Faulty
from tests.storage.foreign.delete_files import delete_positions
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.tables import files_of

pytestmark = pytest.mark.slow
OWN = ("table", "location", "seconds")
"""What the report says of itself."""


def contents(table) -> dict[str, list[bytes]]:
    """Bytes of the files, by bucket."""
    paths = sorted(files_of(table), key=lambda path: path.rpartition("/")[0])
    return {Path(path).parent.name: [Path(path).read_bytes()] for path in paths}


def told(report) -> dict:
    return {name: value for name, value in vars(report).items() if name not in OWN}


def alike(catalog, source, mapping, engine, monkeypatch, **options) -> None:
    monkeypatch.setattr(parts, "MAP_ROWS", 60)
    reports = [
        convert_table(source, catalog, f"lake.{name}", mapping, num_buckets=3, engine=one, **options)
        for name, one in (("here", "inline"), ("there", engine))
    ]
    here, there = (catalog.load_table(f"lake.{name}") for name in ("here", "there"))
    assert told(reports[0]) == told(reports[1])
    assert contents(here) == contents(there)
    assert here.properties == there.properties
    assert on_disk(there) == needed_by(there)


IN_EVERY_RUN = ("polars", "lists of candidates", "sessions of half an hour")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in IN_EVERY_RUN else pytest.mark.soak) for one in TABLES]
)
def test_whoever_wrote_the_files(catalog, tmp_path, monkeypatch, name):
    folder = tmp_path / "theirs"
    folder.mkdir()
    TABLES[name].write(folder)
    engine = Faulty(1)
    alike(catalog, str(folder), ColumnMapping(**TABLES[name].mapping), engine, monkeypatch)
    assert engine.retries


@pytest.mark.parametrize(
    "layout",
    [
        Layout.ARRIVAL,
        *(pytest.param(one, marks=pytest.mark.soak) for one in (Layout.SORTED, Layout.SORTED_LARGE_PAGES)),
    ],
)
def test_requests_that_come_again_are_kept_once_in_every_layout(catalog, tmp_path, monkeypatch, layout):
    alike(catalog, folder_of(tmp_path, their_rows()), MAPPING, Faulty(2), monkeypatch, layout=layout)


def test_a_table_with_deleted_rows_is_compared_with_its_independent_reader(catalog, tmp_path, monkeypatch):
    convert_table(folder_of(tmp_path, their_rows()), catalog, "lake.source", MAPPING, num_buckets=2)
    source = catalog.load_table("lake.source")
    delete_positions(source, {task.file.file_path: [0, 5] for task in source.scan().plan_files()})
    mapping = ColumnMapping(user="user_id", request="request_id", item="item_id", time="request_ts", labels=["clicked"])
    alike(catalog, source.refresh(), mapping, Faulty(3), monkeypatch)


def test_dense_ids_are_given_once_and_are_the_same(catalog, tmp_path, monkeypatch):
    rows = their_rows()
    shown = rows["shown"].combine_chunks().field("id").cast("string")
    rows = rows.drop_columns("shown").append_column("video", shown)
    mapping = ColumnMapping(user="member", request="session", item="video", time="at", labels=["clicked"])
    folder = folder_of(tmp_path, rows)
    monkeypatch.setattr(parts, "MAP_ROWS", 60)
    for name, engine in (("here", "inline"), ("there", Faulty(4))):
        convert_table(folder, catalog, f"{name}.ours", mapping, num_buckets=3, engine=engine)
    here, there = (
        Vocabulary(catalog, f"{name}.items").table().scan().to_arrow().drop_columns("first_seen")
        for name in ("here", "there")
    )
    assert here.sort_by("item_id").equals(there.sort_by("item_id"))
    assert contents(catalog.load_table("here.ours")) == contents(catalog.load_table("there.ours"))
    report = convert_table(folder, catalog, "there.ours", mapping, append=True, engine=Faulty(5))
    assert report.repeated_rows == report.rows == len(rows)


@pytest.mark.soak
def test_processes_convert_to_the_same_bits(catalog, tmp_path, monkeypatch):
    alike(catalog, folder_of(tmp_path, their_rows()), MAPPING, Processes(2), monkeypatch)


def test_what_is_wrong_is_said_in_the_words_of_the_source_and_leaves_nothing(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MAP_ROWS", 60)
    wrong = ColumnMapping(**{**vars(MAPPING), "levels": {"rank": Level.REQUEST}})
    folder = folder_of(tmp_path, their_rows())
    for engine in ("inline", Faulty(6)):
        with pytest.raises(
            ValueError, match=r"column rank: one value .* at row \d+\) in request '.*' of user 'mitglied"
        ):
            convert_table(folder, catalog, "lake.ours", wrong, num_buckets=3, engine=engine)
    assert not catalog.table_exists("lake.ours")
    assert not list((tmp_path / "lake").rglob("*.arrows"))


def test_the_random_order_is_refused_by_name(catalog, tmp_path):
    with pytest.raises(ValueError, match=r"another layout than SHUFFLED.*by engine processes:2"):
        convert_table(
            folder_of(tmp_path, their_rows()),
            catalog,
            "lake.ours",
            MAPPING,
            layout=Layout.SHUFFLED,
            engine="processes:2",
        )
