"""`audit_table`: what a table that a team already has would save, and what to set. It reads, and writes nothing to it.

    footers -> keys (every row) -> sample (whole users) -> the sample in each layout -> causes -> report

Reading: all footers, the key columns of all rows, all columns of the row groups that hold sampled users. Temporary disk
space is the distinct values of the sample and one column of it; memory is bounded by the sample, not by the table.
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
import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.storage.audit.advice import cheapest_step, writer_settings
from reqdedup.storage.audit.causes import diagnose, small_group_rows
from reqdedup.storage.audit.estimate import (
    DICTIONARY_MODEL_ERROR,
    MODEL_ERROR,
    ColumnTotal,
    Estimate,
    Population,
    interval,
)
from reqdedup.storage.audit.files import TableFiles, open_table
from reqdedup.storage.audit.footers import TableFacts, read_facts
from reqdedup.storage.audit.layouts import SampleLayouts
from reqdedup.storage.audit.leaves import Shape
from reqdedup.storage.audit.repeats import Repeats, RequestRows, measure_repeats
from reqdedup.storage.audit.report import (
    BY_REQUEST,
    LAYOUTS,
    SHUFFLED,
    SORTED,
    SORTED_LARGE_PAGES,
    STORE_ONCE,
    AuditReport,
    ColumnAudit,
    LayoutAudit,
    RequestAudit,
    SampleAudit,
    Spread,
    TableAudit,
)
from reqdedup.storage.audit.sample import MIN_USERS, Sample, SamplePlan, gather, plan_sample
from reqdedup.storage.audit.scan import KeyColumns, RequestIndex, check_keys, scan_keys
from reqdedup.storage.audit.verdict import verdict
from reqdedup.storage.audit.writing import PYICEBERG_DEFAULTS, WriterSettings

DEFAULT_SAMPLE_BYTES = 2 * 2**30
DEFAULT_READ_BYTES = 256 * 10**9
GROUPED_RUNS, SCATTERED_SHARE = 1.05, 0.5
CHECK_TOLERANCE = 0.1


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
    num_buckets: int = 16,
    threads: int | None = None,
    progress: Callable[[AuditProgress], None] | None = None,
    temp_dir: str | Path | None = None,
) -> AuditReport:
    """What each column of a table repeats, what that costs, and what to set.

    source: a pyiceberg Table of any catalog, a folder of Parquet files (local or a URI), one file, or several.
    request_key: the column or columns that are equal on all rows of a request.  user_key: of the user; without it requests
    are sampled instead of users, and user overlap is not reported.  item_key: what the rows of a request are ordered by in
    the estimated layouts; without it they stay in the table's order.
    sample_bytes: of the sampled rows with every value laid down; a larger sample narrows the intervals and takes longer.
    read_bytes: compressed, the most that the sample may read.  num_buckets: of the layouts that are estimated.
    threads: columns written at once, up to four where None; each holds one column of one row group in memory.
    temp_dir: for the sample; the system's where None.
    Raises ValueError for missing or unusable key columns, no Parquet file, mixed schemas, an empty table, and damaged or
    encrypted files, which it names.
    """
    started = time.monotonic()

    def report(phase: str, unit: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(AuditProgress(phase, done, total, unit)) if progress else None

    if sample_bytes < 1 or num_buckets < 1:
        raise ValueError(f"sample_bytes and num_buckets must be positive, found {sample_bytes} and {num_buckets}")
    threads = threads or min(4, os.cpu_count() or 1)
    keys = KeyColumns(_names(request_key), _names(user_key), _names(item_key))
    table = open_table(source, snapshot_id=snapshot_id)
    check_keys(table, keys)
    facts = read_facts(table, report("footers", "files"))
    if facts.num_rows == 0:
        raise ValueError(f"{table.name}: a table with rows required, found {facts.num_files:,} files without any")
    index = scan_keys(table, facts, keys, report("keys", "rows"))
    plan = plan_sample(table, facts, index, sample_bytes=sample_bytes, read_bytes=read_bytes)
    requests = _request_audit(index, keys)
    with tempfile.TemporaryDirectory(prefix="reqdedup-audit-", dir=temp_dir) as directory:
        sample = gather(
            table, facts, keys, plan, Path(directory), num_buckets=num_buckets, progress=report("sample", "row groups")
        )
        rows = RequestRows(sample, is_whole=plan.is_whole)
        repeats = _repeats(sample, rows, keys)
        layouts = SampleLayouts(
            sample, rows, repeats, facts, index, plan, num_buckets=num_buckets, directory=Path(directory)
        )
        layouts.prepare([small_group_rows(facts, requests), facts.median_row_group_rows])
        with ThreadPoolExecutor(threads, thread_name_prefix="audit") as pool:
            measured, large_pages = _measure_layouts(layouts, pool, report("layouts", "columns"))
            diagnosis = diagnose(
                layouts,
                facts,
                requests,
                large_pages=large_pages,
                run=pool.map,
                progress=report("causes", "columns"),
            )
        overlap = _table_overlap(sample, repeats, diagnosis.heavy) if keys.user else None
        notes = _notes(table, facts, index, plan, sample, requests, diagnosis.check)
    nested = sum(column.compressed_bytes for column in facts.columns.values() if column.leaf.shape is Shape.NESTED)
    populations = dict.fromkeys(LAYOUTS, layouts.users) | {SHUFFLED: layouts.singles}
    totals = {
        name: interval(list(columns.values()), populations[name], model_error=_model_error(name)).plus(nested)
        for name, columns in measured.items()
    }
    plain, one_limit = (
        interval(list(columns.values()), layouts.users).plus(nested)
        for columns in (diagnosis.plain, diagnosis.one_limit)
    )
    audited = _table_audit(table, facts, index)
    step = cheapest_step(facts.compressed_bytes, plain, one_limit, diagnosis, requests)
    layout_audits = [_layout_audit(name, totals[name], facts.compressed_bytes) for name in LAYOUTS]
    return AuditReport(
        verdict=verdict(audited, requests, layout_audits, diagnosis.causes, step, overlap),
        table=audited,
        requests=requests,
        sample=_sample_audit(sample, rows, plan),
        layouts=layout_audits,
        user_overlap=overlap,
        columns=[_column_audit(name, facts, repeats, measured, populations) for name in facts.columns],
        causes=diagnosis.causes,
        step=step,
        model_check=diagnosis.check,
        settings=writer_settings(
            audited, facts, requests, diagnosis, num_buckets=num_buckets, row_bytes=plan.row_bytes
        ),
        notes=notes,
        seconds=time.monotonic() - started,
    )


def _model_error(layout: str) -> float:
    return DICTIONARY_MODEL_ERROR if layout == SORTED else MODEL_ERROR


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


def _measure_layouts(
    layouts: SampleLayouts, pool: ThreadPoolExecutor, progress: Callable[[int, int], None]
) -> tuple[dict[str, dict[str, ColumnTotal]], dict[str, tuple[ColumnTotal, WriterSettings]]]:
    """layout -> column -> bytes; and column -> bytes and settings with large pages."""
    names = list(layouts.sample.columns)
    measured: dict[str, dict[str, ColumnTotal]] = {layout: {} for layout in LAYOUTS}
    large_pages = {}

    def measure(name: str) -> tuple[dict[str, ColumnTotal], WriterSettings]:
        large, settings = layouts.large_pages(name)
        return {
            SHUFFLED: layouts.shuffled(name, PYICEBERG_DEFAULTS),
            SORTED: layouts.sorted(name, PYICEBERG_DEFAULTS),
            SORTED_LARGE_PAGES: large,
            BY_REQUEST: layouts.by_request(name),
            STORE_ONCE: layouts.store_once(name),
        }, settings

    for done, (name, (totals, settings)) in enumerate(zip(names, pool.map(measure, names)), start=1):
        for layout, total in totals.items():
            measured[layout][name] = total
        large_pages[name] = totals[SORTED_LARGE_PAGES], settings
        progress(done, len(names))
    return measured, large_pages


def _request_audit(index: RequestIndex, keys: KeyColumns) -> RequestAudit:
    runs = float((index.runs * 1.0).sum() / len(index.runs))
    fan_out = float(index.rows.mean())
    order = "grouped" if runs <= GROUPED_RUNS else "partly" if runs < SCATTERED_SHARE * fan_out else "scattered"
    users = index.num_users if keys.user else None
    return RequestAudit(
        request_key=list(keys.request),
        user_key=list(keys.user),
        requests=index.num_requests,
        users=users,
        is_exact=index.rate == 1,
        requests_per_user=index.num_requests / users if users else None,
        single_row_requests=float((index.rows == 1).mean()),
        rows_per_request=_spread(index.rows),
        runs_per_request=_spread(index.runs),
        row_groups_per_request=_spread(index.row_groups),
        files_per_request=_spread(index.files),
        user_runs=index.user_runs / users if users else None,
        order=order,
        shared_ids=index.shared_ids,
    )


def _spread(values: np.ndarray) -> Spread:
    p50, p90, p99 = (float(value) for value in np.quantile(values, [0.5, 0.9, 0.99]))
    return Spread(mean=float(values.mean()), p50=p50, p90=p90, p99=p99, max=float(values.max()))


def _table_audit(table: TableFiles, facts: TableFacts, index: RequestIndex) -> TableAudit:
    return TableAudit(
        name=table.name,
        kind=table.kind,
        rows=facts.num_rows,
        rows_without_key=index.null_rows,
        files=facts.num_files,
        row_groups=len(facts.row_groups),
        file_bytes=facts.file_bytes,
        compressed_bytes=facts.compressed_bytes,
        uncompressed_bytes=facts.uncompressed_bytes,
        median_row_group_rows=facts.median_row_group_rows,
        median_row_group_bytes=facts.median_row_group_bytes,
        written_by=list(facts.created_by),
    )


def _sample_audit(sample: Sample, rows: RequestRows, plan: SamplePlan) -> SampleAudit:
    return SampleAudit(
        users=rows.num_users,
        requests=rows.num_requests,
        rows=len(rows.order),
        single_rows=int(sample.in_single.sum()),
        fat_bytes=int(plan.row_bytes * len(rows.order)),
        is_whole_table=plan.is_whole,
    )


def _layout_audit(name: str, total: Estimate, today: int) -> LayoutAudit:
    return LayoutAudit(
        layout=name,
        bytes=total.bytes,
        low=total.low,
        high=total.high,
        ratio=today / max(total.bytes, 1.0),
        ratio_low=today / max(total.high, 1.0),
        ratio_high=today / max(total.low, 1.0),
    )


def _column_audit(
    name: str,
    facts: TableFacts,
    repeats: dict[str, Repeats],
    measured: dict[str, dict[str, ColumnTotal]],
    populations: dict[str, Population],
) -> ColumnAudit:
    column, found = facts.columns[name], repeats.get(name)
    kind = str(column.leaf.type)
    return ColumnAudit(
        name=name,
        type=kind
        if column.leaf.shape is Shape.SCALAR
        else f"list<{kind}>"
        if column.leaf.shape is Shape.LIST
        else "nested",
        level=found.level if found else "unknown",
        is_constant=bool(found and found.is_constant),
        repeat_ratio=found.repeat_ratio if found else None,
        checked_requests=found.checked_requests if found else 0,
        broken_requests=found.broken_requests if found else 0,
        example=found.example if found else None,
        user_overlap=found.user_overlap if found else None,
        compressed_bytes=column.compressed_bytes,
        uncompressed_bytes=column.uncompressed_bytes,
        codec=column.codec if len(column.codecs) == 1 else "+".join(column.codecs),
        encodings=sorted(column.encodings),
        page_bytes=column.page_bytes,
        rows_per_page=column.rows_per_page,
        dictionary_share=column.dictionary_share,
        estimates={
            layout: interval([columns[name]], populations[layout], model_error=_model_error(layout))
            for layout, columns in measured.items()
            if name in columns
        },
    )


def _table_overlap(sample: Sample, repeats: dict[str, Repeats], heavy: Sequence[str]) -> float | None:
    """Of all heavy columns, weighted by the bytes of their distinct values."""
    weights = {
        name: float(sample.columns[name].value_bytes.sum()) for name in heavy if repeats[name].user_overlap is not None
    }
    total = sum(weights.values())
    return (
        sum(weight * (repeats[name].user_overlap or 0.0) for name, weight in weights.items()) / total if total else None
    )


def _notes(
    table: TableFiles,
    facts: TableFacts,
    index: RequestIndex,
    plan: SamplePlan,
    sample: Sample,
    requests: RequestAudit,
    check: float | None,
) -> list[str]:
    notes = list(table.notes)
    nested = [name for name, column in facts.columns.items() if column.leaf.shape is Shape.NESTED]
    if nested:
        notes.append(f"nested deeper than one list, taken to stay as they are: {', '.join(nested)}")
    if index.null_rows:
        notes.append(
            f"{index.null_rows:,} rows have a null in a key ({index.null_rows / facts.num_rows:.2%}); they belong to no "
            "request, are in today's bytes, and in no estimate"
        )
    if requests.shared_ids:
        notes.append(
            f"{requests.shared_ids:,} request keys belong to more than one user; each user's part counts as a request of its own"
        )
    if not requests.is_exact:
        notes.append(f"requests and users are estimated from {index.rate:.2%} of the users")
    if requests.rows_per_request.max == 1:
        notes.append("every request has one row: nothing repeats within a request, and only user overlap can be saved")
    filled = [name for name, column in sample.columns.items() if column.null_elements]
    if filled:
        notes.append(f"null elements of lists were written as zeros: {', '.join(filled)}")
    binary = [
        name
        for name, column in sample.columns.items()
        if column.is_stored
        and not column.is_list
        and pa.types.is_binary(column.leaf.type)
        and column.row_bytes.mean() > 64
    ]
    if binary:
        notes.append(
            f"binary columns stay binary in every layout, also where that of lists is meant: {', '.join(binary)}"
        )
    if plan.num_users < MIN_USERS and not plan.is_whole:
        notes.append(f"only {plan.num_users} users were sampled; allow a larger sample")
    if check is not None and abs(check - 1) > CHECK_TOLERANCE:
        notes.append(
            f"the sample, written as the table is today, comes to {check:.2f} of its real bytes: settings that footers do not "
            "show (a codec's level) or another writer; read the causes with that in mind"
        )
    return notes
