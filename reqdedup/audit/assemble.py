"""What was measured, put into the report's form: the table, its requests, its columns, and what
must be said beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.audit.estimate import Estimate, interval
from reqdedup.audit.footers import TableFacts
from reqdedup.audit.layouts import LayoutTotals
from reqdedup.audit.repeats import Repeats, RequestRows
from reqdedup.audit.report import (
    CHECK_TOLERANCE,
    SHUFFLED,
    ColumnAudit,
    LayoutAudit,
    RequestAudit,
    SampleAudit,
    Spread,
    TableAudit,
)
from reqdedup.audit.sample import MIN_USERS, Sample, SamplePlan
from reqdedup.audit.scan import KeyColumns, RequestIndex
from reqdedup.dedup.history_time import unit_of_times
from reqdedup.schema import HISTORY_TS
from reqdedup.storage.foreign.files import TableFiles
from reqdedup.storage.foreign.leaves import Shape

GROUPED_RUNS, SCATTERED_SHARE = 1.05, 0.5
"""Up to so many runs per request, its rows are grouped; from this part of its rows on, scattered."""


def request_audit(index: RequestIndex, keys: KeyColumns) -> RequestAudit:
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


def table_audit(table: TableFiles, facts: TableFacts, index: RequestIndex) -> TableAudit:
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


def sample_audit(sample: Sample, rows: RequestRows, plan: SamplePlan) -> SampleAudit:
    return SampleAudit(
        users=rows.num_users,
        requests=rows.num_requests,
        rows=len(rows.order),
        single_rows=int(sample.in_single.sum()),
        fat_bytes=int(plan.row_bytes * len(rows.order)),
        is_whole_table=plan.is_whole,
    )


def layout_audit(name: str, total: Estimate, today: int) -> LayoutAudit:
    return LayoutAudit(
        layout=name,
        bytes=total.bytes,
        low=total.low,
        high=total.high,
        ratio=today / max(total.bytes, 1.0),
        ratio_low=today / max(total.high, 1.0),
        ratio_high=today / max(total.low, 1.0),
    )


def column_audit(
    name: str,
    facts: TableFacts,
    repeats: dict[str, Repeats],
    totals: LayoutTotals,
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
            layout: interval([columns[name]], totals.population(layout))
            for layout, columns in totals.columns.items()
            if name in columns
        },
    )


def table_overlap(sample: Sample, repeats: dict[str, Repeats], heavy: Sequence[str]) -> float | None:
    """Of all heavy columns, weighted by the bytes of their distinct values."""
    weights = {
        name: float(sample.columns[name].value_bytes.sum()) for name in heavy if repeats[name].user_overlap is not None
    }
    total = sum(weights.values())
    return (
        sum(weight * (repeats[name].user_overlap or 0.0) for name, weight in weights.items()) / total if total else None
    )


def audit_notes(
    table: TableFiles,
    facts: TableFacts,
    index: RequestIndex,
    plan: SamplePlan,
    sample: Sample,
    requests: RequestAudit,
    layouts: LayoutTotals,
    times: Mapping[str, str],
    check: float | None,
) -> list[str]:
    """Notes, most basic first. times: unit of the lists that were taken for times of events."""
    notes = list(table.notes)
    nested = [name for name, column in facts.columns.items() if column.leaf.shape is Shape.NESTED]
    if nested:
        notes.append(f"nested deeper than one list, taken to stay as they are: {', '.join(nested)}")
    placed = set(layouts.columns[SHUFFLED])
    without = [name for name in sample.columns if name not in placed]
    if without:
        notes.append(f"without a place in our layouts, taken to stay as they are: {', '.join(without)}")
    words = [name for name in sample.columns if name in placed and sample.columns[name].has_words]
    if words:
        notes.append(
            f"lists of text, in our layouts lists of int32 ids of the table items (convert --ids): {', '.join(words)}"
        )
    for name, unit in times.items():
        is_number = pa.types.is_integer(sample.columns[name].leaf.type)
        options = [f"--rename {name}={HISTORY_TS}"] if name != HISTORY_TS else []
        options += [f"--history-time-unit {unit}"] if is_number and unit != "ms" else []
        how = f" (convert {' '.join(options)})" if options else ""
        notes.append(f"{name}: times of events, counted as the whole milliseconds that they become{how}")
    for name, column in sample.columns.items():
        if column.leaf.shape is Shape.SCALAR and pa.types.is_integer(column.leaf.type):
            ends = pc.min_max(column.plain_values())
            likely = unit_of_times(ends["min"].as_py() or 0, ends["max"].as_py() or 0)
            if likely is not None:
                notes.append(
                    f"{name}: whole numbers that look like times in {likely} since 1970, counted as they are; as the "
                    f"time of the request: convert --time {name} --time-unit {likely}"
                )
    if index.null_rows:
        notes.append(
            f"{index.null_rows:,} rows have a null in a key ({index.null_rows / facts.num_rows:.2%}); they belong to "
            "no request, are in today's bytes, and in no estimate"
        )
    if requests.shared_ids:
        notes.append(
            f"{requests.shared_ids:,} request keys belong to more than one user; each user's part counts as a request "
            "of its own"
        )
    if not requests.is_exact:
        notes.append(f"requests and users are estimated from {index.rate:.2%} of the users")
    if requests.rows_per_request.max == 1:
        notes.append("every request has one row: nothing repeats within a request, and only user overlap can be saved")
        notes += _lists_of_candidates(sample)
    filled = [name for name, column in sample.columns.items() if column.null_elements]
    if filled:
        notes.append(f"null elements of lists were written as zeros: {', '.join(filled)}")
    if plan.num_users < MIN_USERS and not plan.is_whole:
        notes.append(f"only {plan.num_users} users were sampled; allow a larger sample")
    if check is not None and abs(check - 1) > CHECK_TOLERANCE:
        notes.append(
            "today's form could not be imitated from the footers, which do not show all that a writer does: it came to "
            f"{check:.2f} of the real bytes. The causes are rough then; the layouts do not depend on it"
        )
    return notes


def _lists_of_candidates(sample: Sample) -> list[str]:
    """What a table of one row a request may hold: its candidates in a list of structs."""
    lists: dict[int | str, list[str]] = {}
    for name, column in sample.columns.items():
        if column.leaf.shape is Shape.LIST and column.leaf.list_id is not None and "." in name:
            lists.setdefault(column.leaf.list_id, []).append(name)
    notes = []
    for names in lists.values():
        outer, mean = names[0].rpartition(".")[0], sample.columns[names[0]].slots.mean()
        notes.append(
            f"if {outer} has the candidates of the request, {mean:.3g} a row, convert --item with their id makes "
            f"each a row ({', '.join(names)}); the estimates here are of rows as they are"
        )
    return notes
