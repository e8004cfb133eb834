"""A verb makes the same files on every engine, bit for bit, and leaves no other; what is sent to it holds no secret."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pyiceberg.catalog import Catalog

from reqdedup.dedup.checksum import ContentChecksum
from reqdedup.distributed import Engine, Inline
from reqdedup.storage import (
    TableSource,
    add_request_feature,
    compact,
    create_feature_table,
    delete_user,
    promote,
    realign,
    rebucket,
    write,
)
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.measure.checks import content_checksum
from reqdedup.storage.tasks import groups
from tests.distributed.faulty import Faulty
from tests.distributed.listening import Listening
from tests.storage.feature_tables import COUNT, USERS, VECTOR, main_table, of_request
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import make_log, to_batches
from tests.storage.tasks.secret_lake import open_lake

LATE = make_log(num_users=12, seed=9)


def life(lake: Catalog, engine: str | Engine) -> dict[str, list[str]]:
    """Everything that runs as tasks, in turn; bytes of the files of each bucket after each step."""
    main = main_table(lake)
    write(main, to_batches(LATE), mode="append")
    seen = {}

    def look(step: str, *tables) -> None:
        for table in tables:
            files = [task.file for task in table.refresh().scan().plan_files()]
            digests = [f"{f.partition[0]} {digest(f.file_path)}" for f in files]
            seen[f"{step} {table.name()[-1]}"] = sorted(digests)

    compact(main, engine=engine)
    look("compact", main)
    side = create_feature_table(lake, "lake.side", main, [COUNT, VECTOR])
    add_request_feature(main, side, of_request, columns=[COUNT], engine=engine)
    look("compute", side)
    add_request_feature(main, side, of_request, columns=[COUNT], users=USERS[:3], engine=engine)
    delete_user([main, side], USERS[:2], engine=engine)
    look("delete", main, side)
    write(main, to_batches(LATE[:5]), mode="replace")
    realign(main, side, engine=engine)
    look("realign", side)
    promote(main, [side], columns=["count"], engine=engine)
    look("promote", main)
    for table in (main, side):
        rebucket(table, 8, engine=engine)
    look("rebucket", main, side)
    for table in (main, side):
        assert on_disk(table) == needed_by(table.refresh())
    return seen


def digest(path: str) -> str:
    return hashlib.blake2b(Path(path.removeprefix("file://")).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def inline(tmp_path_factory) -> dict[str, list[str]]:
    return life(open_lake(tmp_path_factory.mktemp("inline")), "inline")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 7))])
def test_files_are_the_same_bits_if_answers_are_shuffled_doubled_late_and_lost(inline, tmp_path, monkeypatch, seed):
    monkeypatch.setattr(groups, "BUCKETS_TOGETHER", 1 + seed % 3)
    engine = Faulty(seed)
    assert life(open_lake(tmp_path), engine) == inline
    assert engine.retries


@pytest.mark.slow
def test_processes_compact_to_the_same_bits(inline, tmp_path):
    main = main_table(open_lake(tmp_path))
    write(main, to_batches(LATE), mode="append")
    compact(main, engine="processes:2")
    files = [task.file for task in main.refresh().scan().plan_files()]
    assert (
        sorted(f"{file.partition[0]} {digest(file.file_path)}" for file in files) == inline["compact main_by_request"]
    )


@pytest.mark.soak
def test_files_of_processes_are_the_same_bits(inline, tmp_path):
    assert life(open_lake(tmp_path), "processes:2") == inline


@pytest.fixture(scope="module")
def listened(inline, tmp_path_factory) -> Listening:
    engine = Listening()
    assert life(open_lake(tmp_path_factory.mktemp("listened")), engine) == inline
    return engine


@pytest.mark.slow
def test_nothing_that_is_sent_holds_a_secret(listened):
    assert len(listened.sent) > 10
    for secret in (b"TOPSECRET", b"AKIDEXAMPLE", b"PASSWORD", b"catalog.db"):
        assert not any(secret in sent for sent in listened.sent)


@pytest.mark.slow
def test_each_task_says_what_it_reads_so_that_it_has_time_and_memory_for_it(listened):
    kinds = {type(task).__name__ for task in listened.tasks}
    assert kinds == {"BucketTask", "CompactTask", "DeleteTask", "UnitTask"}
    assert not [task for task in listened.tasks if task.num_bytes < 100]


@pytest.mark.slow
@pytest.mark.parametrize("engine", [Inline(), Faulty(1)], ids=lambda engine: engine.name)
def test_a_task_that_fails_leaves_the_table_as_it_was_and_names_its_bucket(tmp_path, engine):
    lake = open_lake(tmp_path)
    main = main_table(lake)
    contradiction = [dict(request, device=request["device"] + 1) for request in make_log(num_users=30, seed=4)[:1]]
    write(main, to_batches(contradiction), mode="append")
    before = main.current_snapshot()
    with pytest.raises(ValueError, match="one value per request required") as raised:
        compact(main, one_commit=True, force=True, engine=engine)
    assert "in bucket " in raised.value.__notes__[0]
    assert main.refresh().current_snapshot() == before
    assert on_disk(main) == needed_by(main)


@pytest.mark.slow
def test_the_gate_refuses_a_task_that_says_it_has_other_rows(tmp_path):
    class Lying(Inline):
        def run(self, work, tasks):
            for number, written in super().run(work, tasks):
                object.__setattr__(written, "checksum", ContentChecksum(written.rows + 1, 0))
                yield number, written

    main = main_table(open_lake(tmp_path))
    rows = content_checksum(TableSource(main))
    with pytest.raises(IntegrityError, match=r"rows required of bucket 0, found"):
        compact(main, force=True, engine=Lying())
    assert content_checksum(TableSource(main.refresh())) == rows
    assert on_disk(main) == needed_by(main)
