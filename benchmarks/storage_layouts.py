"""What each layout costs on disk, against the shuffled control and the store-once limit.

    python -m benchmarks.storage_layouts [--case shared_16k one_request_16k short] [--scale 1.0]

Each case writes one synthetic log in every layout and reads the compression report; the correctness gate is the
order-free checksum of all rows, equal in all of them. Bytes do not depend on the machine. `--scale` makes fewer users
of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.record import write_results
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.storage import Layout, TableSource, compression_report, create_table, open_catalog, user_overlap, write
from reqdedup.storage.measure.checks import content_checksum

LAYOUTS = (Layout.SHUFFLED, Layout.SORTED, Layout.SORTED_LARGE_PAGES, Layout.BY_REQUEST)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One claim: the log, and the targets of BY_REQUEST and SORTED_LARGE_PAGES.

    of_limit: share of the store-once limit.  of_fan_out: ratio to the control over the fan-out.
    """

    name: str
    log: SyntheticLogConfig
    of_limit: float | None = None
    of_fan_out: float | None = None
    large_pages_of_fan_out: float | None = 1.0
    num_buckets: int = 8


CASES = (
    Case(
        name="shared_16k",
        log=SyntheticLogConfig(
            num_users=200, mean_requests_per_user=3, max_requests_per_user=5, mean_fan_out=150, max_fan_out=1_000
        ),
        of_limit=0.95,
        of_fan_out=3.0,
    ),
    Case(
        name="one_request_16k",
        log=SyntheticLogConfig(
            num_users=400, mean_requests_per_user=1, max_requests_per_user=1, mean_fan_out=150, max_fan_out=1_000
        ),
        of_fan_out=0.95,
    ),
    Case(
        name="short_history",
        log=SyntheticLogConfig(
            num_users=6_000,
            mean_requests_per_user=2,
            mean_fan_out=40,
            max_fan_out=200,
            history_scale=1 / 150,
            max_history=64,
        ),
        of_limit=0.95,
        large_pages_of_fan_out=None,
    ),
)


def measure(case: Case, folder: Path) -> Iterator[dict[str, Any]]:
    """Result rows of one case: sequence columns together, per layout."""
    catalog = open_catalog(
        properties={"type": "sql", "uri": f"sqlite:///{folder / 'catalog.db'}", "warehouse": f"file://{folder}"}
    )
    schema = synthetic_schema(case.log)
    raw = create_table(catalog, "bench.raw", schema, Layout.ARRIVAL)
    write(raw, synthesize(case.log))
    wanted = content_checksum(TableSource(raw))
    tables = {}
    for layout in LAYOUTS:
        table = create_table(catalog, f"bench.{layout.value}", schema, layout, num_buckets=case.num_buckets)
        written = write(table, TableSource(raw).batches())
        print(
            f"{case.name}: {layout.value} written, {written.bytes / 1e6:,.1f} MB, {written.seconds:.0f} s",
            file=sys.stderr,
        )
        if content_checksum(TableSource(table)) != wanted:
            raise ValueError(f"{case.name}: {layout.value} does not hold the rows of the log; nothing is reported")
        tables[layout.value] = table
    overlap = user_overlap(tables[Layout.BY_REQUEST.value])
    report = pl.DataFrame(compression_report(tables))
    sequences = report.filter(pl.col("column").is_in([column.name for column in schema.sequences]))
    control = int(sequences.filter(pl.col("table") == Layout.SHUFFLED.value)["compressed_bytes"].sum())
    for layout in LAYOUTS:
        columns = sequences.filter(pl.col("table") == layout.value)
        stored, limit = int(columns["compressed_bytes"].sum()), int(columns["store_once_bytes"].sum())
        fan_out = float(columns["fan_out"][0])
        yield {
            "claim": case.name,
            "variant": layout.value,
            "value": control / stored,
            "unit": "x fewer bytes than shuffled, sequence columns",
            "target": _target(case, layout, fan_out),
            "fraction_of_limit": limit / stored,
            "fraction_of_limit_target": case.of_limit if layout is Layout.BY_REQUEST else None,
            "bytes": stored,
            "store_once_bytes": limit,
            "sizes": {
                "rows": int(columns["rows"][0]),
                "requests": int(columns["requests"][0]),
                "users": case.log.num_users,
                "fan_out": round(fan_out, 2),
                "max_history": case.log.max_history,
                "events_per_request": round(overlap.events / overlap.requests),
                "user_overlap_factor": round(overlap.factor, 2),
                "buckets": case.num_buckets,
            },
        }


def _target(case: Case, layout: Layout, fan_out: float) -> float | None:
    share = {Layout.BY_REQUEST: case.of_fan_out, Layout.SORTED_LARGE_PAGES: case.large_pages_of_fan_out}.get(layout)
    return None if share is None else share * fan_out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage_layouts", description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", choices=[case.name for case in CASES], default=None)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the users; 1 is what the results hold")
    arguments = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if arguments.case is None or case.name in arguments.case:
            users = max(int(case.log.num_users * arguments.scale), 1)
            with tempfile.TemporaryDirectory() as folder:
                rows += measure(replace(case, log=replace(case.log, num_users=users)), Path(folder))
    for row in rows:
        reached = "" if row["target"] is None else f"  (target {row['target']:.1f}x)"
        print(
            f"{row['claim']:<16} {row['variant']:<20} {row['value']:>8.1f}x{reached}"
            f"  {100 * row['fraction_of_limit']:.1f}% of the limit"
        )
    if arguments.case is None and arguments.scale == 1.0:
        print(write_results("storage_layouts", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
