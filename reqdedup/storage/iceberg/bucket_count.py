"""How many buckets a table should have: few enough that files are large, enough that one bucket is easy to hold.

A power of two, so that tables of different counts can be joined. docs/buckets.md says what each bound is for.
"""

from __future__ import annotations

from dataclasses import dataclass

from reqdedup.storage.iceberg.settings import WriteSettings

FILE_BYTES = WriteSettings().file_bytes

MAX_BUCKET_ROWS = 16_000_000
"""The writer holds the scalars of one bucket: about 100 bytes a row while it sorts them."""

MIN_BUCKET_USERS = 64
"""Below, the largest user and chance make buckets uneven."""

MAX_BUCKETS = 4096


@dataclass(frozen=True)
class BucketChoice:
    """num_buckets: a power of two.  reason: which bound decided."""

    num_buckets: int
    reason: str


def choose_num_buckets(
    *, stored_bytes: int | None = None, rows: int | None = None, users: int | None = None, workers: int = 1
) -> BucketChoice:
    """The bucket count for a table of this size; give the size that it will grow to before it is rewritten.

    stored_bytes: of its data files, compressed (a dictionary layout: `reqdedup audit` estimates them).  rows, users: as
    far as known.  workers: processes that are to work on different buckets at once.
    Raises ValueError if neither bytes nor rows are given, and for counts that are not positive.
    """
    for name, value in (("stored_bytes", stored_bytes), ("rows", rows), ("users", users), ("workers", workers)):
        if value is not None and value < 0:
            raise ValueError(f"{name}: at least 0 required, found {value}")
    if stored_bytes is None and rows is None:
        raise ValueError("stored_bytes or rows required, found neither; `reqdedup audit` tells both of a table")
    wanted = {
        f"about {FILE_BYTES // 2**20} MB of files in each": _power_of_two((stored_bytes or 0) / FILE_BYTES),
        f"at most {MAX_BUCKET_ROWS // 10**6} million rows in each, which the writer holds": _power_of_two(
            (rows or 0) / MAX_BUCKET_ROWS
        ),
        f"one for each of {workers} workers": _power_of_two(workers),
    }
    reason, num_buckets = max(wanted.items(), key=lambda item: item[1])
    if users is not None and num_buckets > 1:
        most = 1 << max(int(users // MIN_BUCKET_USERS).bit_length() - 1, 0)
        if num_buckets > most:
            reason, num_buckets = f"at least {MIN_BUCKET_USERS} users in each, since a user is never split", most
    if num_buckets > MAX_BUCKETS:
        reason, num_buckets = f"at most {MAX_BUCKETS}: every append writes a file into most of them", MAX_BUCKETS
    return BucketChoice(num_buckets, reason)


def _power_of_two(count: float) -> int:
    """The lowest power of two that is at least `count`."""
    power = 1
    while power < count:
        power *= 2
    return power
