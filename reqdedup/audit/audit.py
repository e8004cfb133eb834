"""`audit_table`: what a table that a team already has would save, and what to set. It reads, and writes nothing to it.

    footers -> keys (every row) -> sample (whole users) -> the sample in each layout -> causes -> report

Reading: all footers, the key columns of all rows, all columns of the row groups that hold sampled users. Temporary disk
space is the distinct values of the sample and its rows in one layout; memory is bounded by the
sample, not by the table.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyiceberg.table import Table

from reqdedup.audit.advice import cheapest_step, writer_settings
from reqdedup.audit.assemble import (
    audit_notes,
    column_audit,
    layout_audit,
    request_audit,
    sample_audit,
    table_audit,
    table_overlap,
)
from reqdedup.audit.causes import diagnose
from reqdedup.audit.columns import SampleTable
from reqdedup.audit.estimate import interval
from reqdedup.audit.footers import read_facts
from reqdedup.audit.layouts import SampleLayouts
from reqdedup.audit.plain import PlainSample
from reqdedup.audit.repeats import Repeats, RequestRows, measure_repeats
from reqdedup.audit.report import (
    LAYOUTS,
    SHUFFLED,
    SORTED_LARGE_PAGES,
    AuditReport,
)
from reqdedup.audit.sample import Sample, gather, plan_sample
from reqdedup.audit.scan import KeyColumns, check_keys, scan_keys
from reqdedup.audit.verdict import verdict
from reqdedup.display import counted
from reqdedup.storage.foreign.files import TableFiles
from reqdedup.storage.foreign.leaves import Shape
from reqdedup.storage.foreign.source import stored_blobs
from reqdedup.storage.foreign.table import open_table
from reqdedup.storage.iceberg.bucket_count import choose_num_buckets

DEFAULT_SAMPLE_BYTES = 2 * 2**30
DEFAULT_READ_BYTES = 256 * 10**9


@dataclass(frozen=True)
class AuditProgress:
    """How far an audit is. phase: footers, keys, sample, layouts or causes; done of total, in `unit`."""

    phase: str
    done: int
    total: int
    unit: str

    def __str__(self) -> str:
        return f"{self.phase}: {self.done:,} of {self.total:,} {self.unit}"


def audit_table(
    source: Table | str | Path | Sequence[str | Path],
    *,
    request_key: str | Sequence[str],
    user_key: str | Sequence[str] = (),
    item_key: str | Sequence[str] = (),
    snapshot_id: int | None = None,
    sample_bytes: int = DEFAULT_SAMPLE_BYTES,
    read_bytes: int = DEFAULT_READ_BYTES,
    num_buckets: int | None = None,
    threads: int | None = None,
    progress: Callable[[AuditProgress], None] | None = None,
    temp_dir: str | Path | None = None,
) -> AuditReport:
    """What each column of a table repeats, what that costs, and what to set.

    source: a pyiceberg Table of any catalog, a folder of Parquet files (local or a URI), one file, or several.
    request_key: the column or columns that are equal on all rows of a request.  user_key: of the user; without it
    requests are sampled instead of users, and user overlap is not reported.  item_key: what the rows of a request are
    ordered by in the estimated layouts; without it they stay in the table's order.
    sample_bytes: of the sampled rows with every value laid down; a larger sample narrows the
        intervals and takes longer.
    read_bytes: compressed, the most that the sample may read.  num_buckets: of the layouts that are estimated; by
    default as many as `convert` makes.
    threads: columns written at once, up to four where None; each holds one column of one row group in memory.
    temp_dir: for the sample; the system's where None.
    Raises ValueError for missing or unusable key columns, no Parquet file, mixed schemas, an empty table, and damaged
    or encrypted files, which it names.
    """
    started = time.monotonic()

    def report(phase: str, unit: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(AuditProgress(phase, done, total, unit)) if progress else None

    if sample_bytes < 1 or (num_buckets is not None and num_buckets < 1):
        raise ValueError(f"sample_bytes and num_buckets must be positive, found {sample_bytes} and {num_buckets}")
    threads = threads or min(4, os.cpu_count() or 1)
    keys = KeyColumns(_names(request_key), _names(user_key), _names(item_key))
    table = open_table(source, snapshot_id=snapshot_id)
    check_keys(table, keys)
    facts = read_facts(table, report("footers", "files"))
    if facts.num_rows == 0:
        raise ValueError(
            f"{table.name}: a table with rows required, found {counted(facts.num_files, 'file')} without any"
        )
    index = scan_keys(table, facts, keys, report("keys", "rows"))
    if num_buckets is None:
        fan_out = max(index.num_rows / max(index.num_requests, 1), 1.0)
        size = choose_num_buckets(stored_bytes=round(facts.file_bytes / fan_out), rows=facts.num_rows)
        num_buckets = size.num_buckets
    plan = plan_sample(table, facts, index, sample_bytes=sample_bytes, read_bytes=read_bytes)
    requests = request_audit(index, keys)
    with tempfile.TemporaryDirectory(prefix="reqdedup-audit-", dir=temp_dir) as directory:
        sample = gather(table, facts, keys, plan, Path(directory), progress=report("sample", "row groups"))
        rows = RequestRows(sample, is_whole=plan.is_whole)
        repeats = _repeats(sample, rows, keys)
        ours = SampleTable(table, sample, repeats, keys, stored_blobs(source))
        layouts = SampleLayouts(
            ours, sample, rows, facts, index, plan, num_buckets=num_buckets, directory=Path(directory)
        )
        measured = layouts.measure(report("layouts", "layouts"))
        plain = PlainSample(
            sample,
            rows,
            repeats,
            facts,
            index,
            plan,
            num_buckets=num_buckets,
            directory=Path(directory),
        )
        with ThreadPoolExecutor(threads, thread_name_prefix="audit") as pool:
            diagnosis = diagnose(plain, facts, requests, run=pool.map, progress=report("causes", "columns"))
        overlap = table_overlap(sample, repeats, diagnosis.heavy) if keys.user else None
        notes = audit_notes(table, facts, index, plan, sample, requests, measured, ours.times, diagnosis.check)
    stay = sum(
        column.compressed_bytes for name, column in facts.columns.items() if name not in measured.columns[SHUFFLED]
    )
    totals = {
        name: interval(list(columns.values()), measured.population(name)).plus(stay)
        for name, columns in measured.columns.items()
    }
    nested = sum(column.compressed_bytes for column in facts.columns.values() if column.leaf.shape is Shape.NESTED)
    lists = totals[SORTED_LARGE_PAGES]
    step_bytes, one_limit = (sum(columns.values()) + nested for columns in (diagnosis.plain, diagnosis.one_limit))
    audited = table_audit(table, facts, index)
    step = cheapest_step(facts.compressed_bytes, step_bytes, one_limit, lists, diagnosis, requests)
    layout_audits = [layout_audit(name, totals[name], facts.compressed_bytes) for name in LAYOUTS]
    return AuditReport(
        verdict=[
            *_warning(table),
            *verdict(audited, requests, layout_audits, diagnosis.causes, step, overlap),
        ],
        table=audited,
        requests=requests,
        sample=sample_audit(sample, rows, plan),
        layouts=layout_audits,
        user_overlap=overlap,
        columns=[column_audit(name, facts, repeats, measured) for name in facts.columns],
        causes=diagnosis.causes,
        step=step,
        model_check=diagnosis.check,
        settings=writer_settings(
            audited, facts, requests, diagnosis, step, num_buckets=num_buckets, row_bytes=plan.row_bytes
        ),
        notes=notes,
        seconds=time.monotonic() - started,
    )


def _warning(table: TableFiles) -> list[str]:
    """What comes first of all if the folder belongs to a table."""
    if table.table_format is None:
        return []
    return [
        f"These files are those of the {table.table_format}, among them files that its newest version no longer has: "
        "deleted and rewritten rows were counted too. Audit it through its catalog, or a copy that its engine wrote "
        "out."
    ]


def _names(key: str | Sequence[str]) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else tuple(key)


def _repeats(sample: Sample, rows: RequestRows, keys: KeyColumns) -> dict[str, Repeats]:
    name = keys.request[0]
    key = sample.columns[name].rows(np.arange(len(sample.user))) if name in sample.columns else None
    return {
        column: measure_repeats(
            values, rows, is_key=column in keys.all, has_users=bool(keys.user), request_name=name, request_key=key
        )
        for column, values in sample.columns.items()
    }
