"""The rows that estimates are made from: whole users with all their requests, rows drawn one by one, and stretches.

Whole users, because deduplication is about the rows of a request and about what a user's requests share. The keys say
how many requests and rows every user has, so users are drawn at equal steps from the list of all, ordered by these (and
by a hash of the key where they tie): light and heavy users come in their true shares, and the same ones at any time and
from any file order. Single rows, because in a shuffled table two rows of one request almost never meet in a page, while
in a small shuffled sample they would all the time. And stretches of row groups, every row as it lies: how near the
copies of a value are is the doing of whoever wrote the table, and no drawing of rows keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.hashing import below_rate, stable_hash
from reqdedup.arrays.places import places_in
from reqdedup.audit.footers import RowGroupRef, TableFacts
from reqdedup.audit.scan import BATCH_ROWS, KeyColumns, RequestIndex, read_keys
from reqdedup.audit.values import SampleColumn
from reqdedup.storage.foreign.files import DataFile, TableFiles
from reqdedup.storage.foreign.leaves import Shape

MIN_USERS = 50
"""Fewer say too little about the others."""

MAX_SAMPLE_ROWS = 1_000_000
SINGLE_ROWS_BYTES = 512 * 2**20
"""Of the rows drawn one by one, and of stretches: as many as one file of a shuffled table holds."""

PROBE_ROWS, PROBE_GROUPS = 256, 4
READ_BYTES = 64 * 2**20
"""Arrow bytes read at a time."""


@dataclass(frozen=True)
class SamplePlan:
    """users: sorted hashes of the users to take.  row_rate: of single rows, in what is read.

    row_bytes: Arrow bytes of a fat row.  is_whole: every user is taken, so the sample is the table.
    stretches: number of a row group -> how many of its first rows are taken as they lie.
    """

    users: np.ndarray = field(repr=False)
    row_rate: float
    row_bytes: float
    is_whole: bool
    stretches: Mapping[int, int] = field(default_factory=dict, repr=False)

    @property
    def num_users(self) -> int:
        return len(self.users)


@dataclass
class Sample:
    """The sampled rows in the table's order.

    columns: by leaf name.  user, request: hashes of each row.  in_users, in_single, in_stretch: which sets it is in.
    key_rank: of its (user key, request key, item key).
    rows_touched: rows of the row groups that were read for users and single rows.
    """

    columns: dict[str, SampleColumn]
    user: np.ndarray
    request: np.ndarray
    in_users: np.ndarray
    in_single: np.ndarray
    in_stretch: np.ndarray
    key_rank: np.ndarray
    rows_touched: int


def plan_sample(
    table: TableFiles, facts: TableFacts, index: RequestIndex, *, sample_bytes: int, read_bytes: int
) -> SamplePlan:
    """How many users to take so that their fat rows weigh about `sample_bytes`.

    Raises ValueError if reading their rows would take more than `read_bytes`, because they lie
    in too many row groups.
    """
    row_bytes = max(_row_bytes(table, facts), 1.0)
    users, inverse = np.unique(index.user, return_inverse=True)
    rows, groups = (np.bincount(inverse, weights=values) for values in (index.rows, index.row_groups))
    by_size = np.lexsort((users, rows, np.bincount(inverse)))
    budget_rows = min(sample_bytes / row_bytes, MAX_SAMPLE_ROWS)
    if index.num_rows <= budget_rows and index.rate == 1:
        num_users = len(users)
    else:
        num_users = min(max(int(index.num_users * budget_rows / index.num_rows), MIN_USERS), len(users))
    drawn = by_size[_equal_steps(len(users), num_users)]
    while _read_share(groups[drawn], facts) * facts.compressed_bytes > read_bytes and num_users > MIN_USERS:
        num_users = max(num_users // 2, MIN_USERS)
        drawn = by_size[_equal_steps(len(users), num_users)]
    touched = _read_share(groups[drawn], facts)
    if touched * facts.compressed_bytes > read_bytes:
        raise ValueError(
            f"{table.name}: a sample of {num_users} users reads about {touched * facts.compressed_bytes / 1e9:,.1f} "
            f"GB, because their rows lie in {touched:.0%} of {len(facts.row_groups):,} row groups; "
            f"{read_bytes / 1e9:,.1f} GB are allowed. Allow more, or audit some of the files (one day)"
        )
    is_whole = num_users == len(users) and index.rate == 1
    single_rows = min(SINGLE_ROWS_BYTES / row_bytes, MAX_SAMPLE_ROWS)
    return SamplePlan(
        users=np.sort(users[drawn]),
        row_rate=1.0 if is_whole else min(1.0, single_rows / max(touched * index.num_rows, 1)),
        row_bytes=row_bytes,
        is_whole=is_whole,
        stretches=_stretches(facts, facts.num_rows if is_whole else single_rows),
    )


def _stretches(facts: TableFacts, num_rows: float) -> dict[int, int]:
    """Row groups evenly over the table, whole ones as long as they are not more than `num_rows`."""
    groups = facts.row_groups
    count = int(np.clip(num_rows * len(groups) / max(facts.num_rows, 1), 1, len(groups)))
    numbers = np.linspace(0, len(groups) - 1, count).astype(int).tolist()
    return {number: min(groups[number].num_rows, max(int(num_rows / count), 1)) for number in numbers}


def _equal_steps(num_all: int, num_drawn: int) -> np.ndarray:
    """The middle of each of `num_drawn` equal stretches."""
    return ((np.arange(num_drawn) + 0.5) * num_all / num_drawn).astype(np.int64)


def gather(
    table: TableFiles,
    facts: TableFacts,
    keys: KeyColumns,
    plan: SamplePlan,
    directory: Path,
    *,
    first_rows: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sample:
    """Read the rows of the plan; row groups without any of them are skipped after their keys.

    first_rows: of each row group; all if None.
    """
    leaves = [column.leaf for column in facts.columns.values() if column.leaf.shape is not Shape.NESTED]
    columns = {leaf.name: SampleColumn(leaf, directory, number) for number, leaf in enumerate(leaves)}
    parts: list[tuple[np.ndarray, ...]] = []
    touched = 0
    for number, group in enumerate(facts.row_groups):
        file = table.files[group.file]
        user, request, in_users, in_single, missing = _choose(file, group, keys, plan)
        in_stretch = (np.arange(len(user)) < plan.stretches.get(number, 0)) & ~missing
        wanted = in_users | in_single
        touched += group.num_rows * bool(wanted.any())
        wanted |= in_stretch
        wanted[first_rows:] &= first_rows is None
        if wanted.any():
            parts.append(tuple(values[wanted] for values in (user, request, in_users, in_single, in_stretch)))
            _read_rows(file, group, wanted, columns, plan.row_bytes)
        progress(number + 1, len(facts.row_groups))
    for column in columns.values():
        column.finish()
    user, request, in_users, in_single, in_stretch = (np.concatenate(arrays) for arrays in zip(*parts))
    rank = _rank([columns[name] for name in (*keys.all, *keys.item)])
    return Sample(columns, user, request, in_users, in_single, in_stretch, rank, touched)


def _choose(file: DataFile, group: RowGroupRef, keys: KeyColumns, plan: SamplePlan) -> tuple[np.ndarray, ...]:
    """Of each row of a row group: user, request, whether it is of a sampled user, whether drawn alone, whether a key is
    null."""
    users, requests, masks = [], [], []
    with file.parquet(keys.all) as parquet:
        names = file.columns(keys.all)
        for batch in file.batches(parquet, BATCH_ROWS, row_groups=[group.index], columns=names):
            request, user, _, missing = read_keys(batch, keys, file)
            users.append(user)
            requests.append(request)
            masks.append(missing)
    user, request, missing = (np.concatenate(part) for part in (users, requests, masks))
    in_users = (places_in(user, plan.users) >= 0) & ~missing
    row_hash = stable_hash(np.arange(len(user)), group.file * 1_000_003 + group.index)
    in_single = below_rate(row_hash, plan.row_rate) & ~missing & in_users.any()
    return user, request, in_users, in_single, missing


def _read_rows(
    file: DataFile,
    group: RowGroupRef,
    wanted: np.ndarray,
    columns: dict[str, SampleColumn],
    row_bytes: float,
) -> None:
    names = file.columns(columns)
    batch_rows = int(np.clip(READ_BYTES / row_bytes, 16, BATCH_ROWS))
    at, end = 0, int(np.flatnonzero(wanted)[-1]) + 1
    batch_rows = min(batch_rows, end)
    with file.parquet(columns) as parquet:
        for batch in file.batches(parquet, batch_rows, row_groups=[group.index], columns=names):
            take = pa.array(np.flatnonzero(wanted[at : at + batch.num_rows]))
            at += batch.num_rows
            if not len(take):
                if at >= end:
                    break
                continue
            arrays = {name: array.take(take) for name, array in file.arrays(batch, columns).items()}
            for name, column in columns.items():
                column.add(arrays.get(name), len(take))
            if at >= end:
                break


def _row_bytes(table: TableFiles, facts: TableFacts) -> float:
    """Arrow bytes of a mean row with every value laid down, from footers where widths are fixed, else from a probe."""
    total = 0.0
    text = []
    for name, column in facts.columns.items():
        if column.leaf.shape is Shape.NESTED:
            continue
        if column.leaf.width_bytes:
            total += column.leaf.width_bytes * column.num_values / max(facts.num_rows, 1)
        else:
            text.append(name)
    return total + _probe_text(table, facts, text)


def _probe_text(table: TableFiles, facts: TableFacts, names: list[str]) -> float:
    if not names:
        return 0.0
    total = rows = 0
    positions = np.linspace(0, len(facts.row_groups) - 1, min(PROBE_GROUPS, len(facts.row_groups))).astype(int)
    for position in np.unique(positions).tolist():
        group = facts.row_groups[position]
        file = table.files[group.file]
        with file.parquet(names) as parquet:
            in_file = file.columns(names)
            for batch in file.batches(parquet, PROBE_ROWS, row_groups=[group.index], columns=in_file):
                rows += batch.num_rows
                total += sum(map(_text_bytes, file.arrays(batch, names).values()))
                break
    return total / max(rows, 1)


def _text_bytes(array: pa.Array) -> int:
    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_large_list(array.type) or pa.types.is_list(array.type):
        return _text_bytes(array.flatten())
    return int(array.nbytes)


def _read_share(groups_of_user: np.ndarray, facts: TableFacts) -> float:
    """Expected part of the row groups that hold a row of these users, users placed independently."""
    shares = np.minimum(groups_of_user / max(len(facts.row_groups), 1), 1.0)
    with np.errstate(divide="ignore"):
        return float(1 - np.exp(np.log1p(-shares).sum()))


def _rank(columns: list[SampleColumn]) -> np.ndarray:
    """Dense rank of each row's key values in the order of the columns, [N] int64."""
    ranks = []
    for column in columns:
        if column.is_stored:
            order = pc.rank(column.values, tiebreaker="dense")
            ranks.append(order.to_numpy(zero_copy_only=False).astype(np.int64)[column.ids])
        else:
            ranks.append(
                pc.rank(column.plain_values(), tiebreaker="dense").to_numpy(zero_copy_only=False).astype(np.int64)
            )
    order = np.lexsort(ranks[::-1])
    changed = np.zeros(len(order), bool)
    for rank in ranks:
        changed[1:] |= rank[order][1:] != rank[order][:-1]
    ranked = np.empty(len(order), np.int64)
    ranked[order] = np.cumsum(changed)
    return ranked
