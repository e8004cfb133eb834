"""Every log has a namespace of its own, and no log writes over another's tables unasked."""

import pytest

from tests.storage.small_log import log_schema, make_log, to_batches
from warehouse import check_one_origin, check_same_log, log_record, made_from, namespace_of, replace_engagement_table
from warehouse.namespaces import LOG, LOG_FINGERPRINT


@pytest.fixture
def fill(catalog):
    def fill(name: str, properties=None):
        batches = to_batches(make_log(num_users=3))
        replace_engagement_table(catalog, "ns", name, log_schema(), batches, num_buckets=2, properties=properties)
        return catalog.load_table(f"ns.{name}")

    return fill


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "one" / "u.data"
    path.parent.mkdir()
    path.write_text("1\t1\t5\t881250949\n")
    return path


@pytest.mark.parametrize(
    ("logs", "preset", "name"),
    [
        ("", "", "smoke"),
        ("/logs/one.csv", "movielens", "movielens_one"),
        ("/logs/two.csv", "movielens", "movielens_two"),
        ("/data/ml-100k/", "movielens", "movielens_ml_100k"),
        ("/logs/My Log.csv", "", "my_log"),
        ("/logs/журнал.csv", "", "log"),
    ],
)
def test_the_name_is_that_of_preset_and_log(logs, preset, name):
    assert namespace_of(recipe="smoke", logs=logs, preset=preset) == name


def test_another_log_of_the_same_name_is_refused_by_name(catalog, fill, log, tmp_path):
    other = tmp_path / "two" / "u.data"
    other.parent.mkdir()
    other.write_text("7\t7\t1\t881250949\n")
    fill("raw_engagements", log_record(recipe="smoke", logs=str(log)))
    for record in (log_record(recipe="smoke", logs=str(other)), log_record(recipe="smoke")):
        with pytest.raises(ValueError, match=f"tables of another log, {log}.*`make run NAMESPACE=ns` replaces"):
            check_same_log(catalog, "ns", record)


def test_a_log_that_grew_or_was_moved_is_the_same_log(catalog, fill, log, tmp_path):
    first = log_record(recipe="smoke", logs=str(log.parent))
    fill("raw_engagements", first)
    moved = log_record(recipe="smoke", logs=str(log.parent.rename(tmp_path / "elsewhere")))
    assert (moved[LOG] == first[LOG], moved[LOG_FINGERPRINT]) == (False, first[LOG_FINGERPRINT])
    check_same_log(catalog, "ns", moved)
    log.parent.mkdir()
    log.write_text("1\t1\t5\t881250949\n1\t2\t5\t881250950\n")
    check_same_log(catalog, "ns", log_record(recipe="smoke", logs=str(log.parent)))


def test_tables_that_nobody_recorded_are_not_written_over(catalog, fill):
    record = log_record(recipe="smoke")
    check_same_log(catalog, "ns", record)  # not there
    replace_engagement_table(catalog, "ns", "raw_engagements", log_schema(), [], num_buckets=2)
    check_same_log(catalog, "ns", record)  # empty, as an interrupted first run leaves it
    fill("engagements_by_request")
    with pytest.raises(ValueError, match=r"no log is recorded.*`make run NAMESPACE=ns` replaces what it holds"):
        check_same_log(catalog, "ns", record)


def test_a_log_that_is_not_there_has_no_record(tmp_path):
    with pytest.raises(ValueError, match="nowhere: a file or folder required"):
        log_record(recipe="smoke", logs=str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_tables_of_two_moments_are_named(fill):
    raw = fill("raw_engagements")
    first = {
        name: fill(name, made_from(raw_engagements=raw)) for name in ("engagements_shuffled", "engagements_sorted")
    }
    assert check_one_origin(first, raw)
    raw = fill("raw_engagements")
    assert not check_one_origin(first, raw)  # of one moment, which has passed
    mixed = first | {"engagements_sorted": fill("engagements_sorted", made_from(raw_engagements=raw))}
    with pytest.raises(
        ValueError, match="found engagements_shuffled made from an older one; materialize engagements_shuffled"
    ):
        check_one_origin(mixed, raw)
