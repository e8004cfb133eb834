"""What the columns of a table are: request-level or item-level, vectors or sequences; from a sample of whole users.

The audit's own sample and measure. A column counts as request-level where it never differs inside a request of the
sample; the conversion itself looks at every row, so a wrong guess ends in an error and not in a wrong table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from reqdedup.audit.audit import DEFAULT_READ_BYTES
from reqdedup.audit.footers import TableFacts, read_facts
from reqdedup.audit.repeats import NEARLY_REQUEST, REQUEST, UNKNOWN, RequestRows, measure_repeats
from reqdedup.audit.sample import SamplePlan, gather, plan_sample
from reqdedup.audit.scan import KeyColumns, RequestIndex, check_keys, scan_keys
from reqdedup.audit.values import SampleColumn
from reqdedup.convert.candidates import CandidateSource
from reqdedup.convert.mapping import ALWAYS_SEQUENCES, ColumnMapping
from reqdedup.dedup.stored import is_text
from reqdedup.display import counted
from reqdedup.schema import Kind, Level
from reqdedup.storage.foreign.leaves import Shape
from reqdedup.storage.foreign.source import RowSource

SAMPLE_BYTES = 256 * 2**20

SAMPLE_ROWS, MAX_GROUPS = 65_536, 16
"""Of a source whose requests are together, and row groups that they are read from: a level shows in a few requests, and
a column that has another one later is refused by name."""

MAX_RUNS = 1.5
"""Of rows of a request, in the mean, if requests are together."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Found:
    """levels: of every leaf that was asked for.  widths: of lists that are vectors.  notes: what was close to the line.

    sequences: lists of the request that have as many elements each as the history has, or else as most elements have.
    num_requests: about how many requests the table has.
    """

    levels: dict[str, Level]
    widths: dict[str, int]
    notes: tuple[str, ...]
    num_requests: int
    sequences: frozenset[str]


def find_levels(
    source: RowSource, mapping: ColumnMapping, *, progress: Progress, temp_dir: str | Path | None = None
) -> Found:
    """Levels of all columns that are neither keys nor excluded, those given ones first.

    Raises ValueError for lists that nearly always repeat, naming an example: they cannot be stored per request.
    """
    levels: dict[str, Level] = {name: column.level for name, column in source.known.items()} | dict(mapping.levels)
    widths = _fixed_widths(source) if mapping.vectors is None else dict(mapping.vectors)
    # Without request ids, what a user's rows all share is of the request whatever the sessions are.
    keys = KeyColumns(request=mapping.request_names or (mapping.user,), user=(mapping.user,))
    if isinstance(source, CandidateSource):
        levels = dict.fromkeys(source.exploded, Level.ITEM) | levels
    wanted = [name for name in source.leaves if name not in mapping.exclude and name not in mapping.labels]
    check_keys(source.files, keys)
    facts = read_facts(source.files)
    index = scan_keys(source.files, facts, keys, lambda done, total: progress("keys", done, total))
    plan = plan_sample(source.files, facts, index, sample_bytes=SAMPLE_BYTES, read_bytes=DEFAULT_READ_BYTES)
    facts, plan, first_rows = _fewer_rows(facts, plan, index)
    notes = []
    lists: dict[bytes, list[SampleColumn]] = {}
    with tempfile.TemporaryDirectory(prefix="reqdedup-convert-", dir=temp_dir) as directory:
        sample = gather(
            source.files,
            facts,
            keys,
            plan,
            Path(directory),
            first_rows=first_rows,
            progress=lambda done, total: progress("sample", done, total),
        )
        rows = RequestRows(sample, is_whole=plan.is_whole)
        for name in wanted:
            values = sample.columns.get(name)
            if values is None:  # in no file, but in the partition: a request may have two values where days meet
                is_list = source.leaves[name].shape is Shape.LIST
                levels.setdefault(name, Level.REQUEST if is_list else Level.ITEM)
                continue
            found = measure_repeats(values, rows, is_key=False, has_users=False, request_name=keys.request[0])
            is_fraction = values.is_list and pa.types.is_floating(values.leaf.type)
            if mapping.vectors is None and is_fraction and name not in widths:
                lengths = np.unique(values.slots[values.ids >= 0])
                if len(lengths) == 1 and lengths[0] > 1:
                    widths[name] = int(lengths[0])
            if values.is_list and not values.null_elements and name not in widths:
                lengths = values.lengths(np.arange(len(values.ids)))
                lists.setdefault(lengths.tobytes(), []).append(values)
            if name in levels:
                continue
            if found.level == NEARLY_REQUEST:
                if values.is_list:
                    raise ValueError(
                        f"{source.name}: column {name}: lists that are the same on all rows of a request required, "
                        f"found ones that differ in {found.broken_requests} of {found.checked_requests} requests "
                        f"({found.example}); are {mapping.user} the user (--user), {', '.join(keys.request)} "
                        f"the request (--request) and {mapping.item} the item (--item)? Otherwise put it right in the "
                        f"source, exclude it (--exclude {name}), or keep it per row (--level {name}=item)"
                    )
                notes.append(
                    f"{name} is kept per row: it differs in {counted(found.broken_requests, 'request')} of the sample"
                )
            is_request = found.level in (REQUEST, UNKNOWN) and not (found.is_constant and not values.is_list)
            levels[name] = Level.REQUEST if is_request else Level.ITEM
        ours = frozenset(name for name, column in source.known.items() if column.kind is Kind.SEQUENCE)
        sequences = ours or _sequences(lists, levels, mapping)
    return Found(levels, widths, tuple(notes), index.num_requests, sequences)


def _sequences(
    lists: Mapping[bytes, list[SampleColumn]], levels: Mapping[str, Level], mapping: ColumnMapping
) -> frozenset[str]:
    """Of lists by their lengths on all rows: those with the lengths of the history, if one is named, else the longest.

    All sequences of a request have one length: other lists are no columns of the same events.
    """
    groups = [[one for one in group if levels.get(one.leaf.name) is Level.REQUEST] for group in lists.values()]
    groups = [[one for one in group if not is_text(one.leaf.type) or one.leaf.name in mapping.ids] for group in groups]
    names = [[one.leaf.name for one in group] for group in groups]
    for group in names:
        if any(mapping.target_name(name) in ALWAYS_SEQUENCES for name in group):
            return frozenset(group)
    longest = max(zip(groups, names), key=lambda one: int(one[0][0].slots.sum()) if one[0] else 0, default=([], []))
    return frozenset(longest[1])


def _fewer_rows(facts: TableFacts, plan: SamplePlan, index: RequestIndex) -> tuple[TableFacts, SamplePlan, int | None]:
    """Row groups evenly over the source, and of how many rows their first, if requests lie in one run of rows each.

    Else all: a row group of a shuffled source may hold no two rows of one request.
    """
    plan = replace(plan, row_rate=0.0, stretches={})  # rows of whole users alone
    groups = facts.row_groups
    if not groups or int(index.runs.sum()) > MAX_RUNS * len(index.runs):
        return facts, plan, None
    share = plan.num_users / max(len(np.unique(index.user)), 1)
    at = np.unique(np.linspace(0, len(groups) - 1, MAX_GROUPS).astype(int))
    return (
        replace(facts, row_groups=tuple(groups[number] for number in at)),
        replace(plan, is_whole=plan.is_whole and len(at) == len(groups)),
        max(int(SAMPLE_ROWS / len(at) / share), 1),
    )


def _fixed_widths(source: RowSource) -> dict[str, int]:
    """Lists whose type, or whose table of ours, says how long they are."""
    known = {name: column.width for name, column in source.known.items() if column.width}
    fixed = [field for field in source.files.schema if pa.types.is_fixed_size_list(field.type)]
    return known | {field.name: field.type.list_size for field in fixed}
