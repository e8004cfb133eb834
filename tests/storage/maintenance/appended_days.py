"""A table to which a log of several days was appended, day by day."""

from __future__ import annotations

from reqdedup.storage import Layout, create_table, write
from reqdedup.storage.iceberg.encodings import CHOICES_PROPERTY
from tests.storage.small_log import log_schema, make_log, to_batches


def new_table(catalog, layout=Layout.BY_REQUEST, name="compact", num_buckets=4):
    return create_table(catalog, f"test.{name}", log_schema(), layout, num_buckets=num_buckets)


def days(num_days: int = 3) -> list[list]:
    """Logs of several days, some users in more than one of them; no request twice."""
    log = make_log(num_users=30, seed=4)
    return [log[day::num_days] for day in range(num_days)]


def append_days(table, logs) -> list:
    for log in logs:
        write(table, to_batches(log), mode="append")
    return [batch for log in logs for batch in to_batches(log)]


def same_forms(table, other) -> None:
    """Give `table` the forms of columns that the first rows of `other` decided."""
    chosen = other.refresh().properties.get(CHOICES_PROPERTY)
    if chosen is not None:
        with table.transaction() as transaction:
            transaction.set_properties({CHOICES_PROPERTY: chosen})
