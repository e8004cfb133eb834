"""A report with a value in every field, none of them measured."""

from __future__ import annotations

from reqdedup.audit.estimate import Estimate
from reqdedup.audit.report import (
    AuditReport,
    Cause,
    ColumnAudit,
    LayoutAudit,
    RequestAudit,
    SampleAudit,
    Spread,
    Step,
    TableAudit,
)

SPREAD = Spread(mean=2.5, p50=2.0, p90=4.0, p99=4.0, max=4.0)

REPORT = AuditReport(
    verdict=["10 kB today, 2 kB as BY_REQUEST (5x, 95% interval 4-6.67)."],
    table=TableAudit(
        name="ads.impressions",
        kind="iceberg",
        rows=1000,
        rows_without_key=3,
        files=2,
        row_groups=4,
        file_bytes=10_500,
        compressed_bytes=10_000,
        uncompressed_bytes=80_000,
        median_row_group_rows=250,
        median_row_group_bytes=2_500,
        written_by=["parquet-cpp-arrow version 26.0.1"],
    ),
    requests=RequestAudit(
        request_key=["session"],
        user_key=["member"],
        requests=400,
        users=150,
        is_exact=True,
        requests_per_user=400 / 150,
        single_row_requests=0.25,
        rows_per_request=SPREAD,
        runs_per_request=SPREAD,
        row_groups_per_request=SPREAD,
        files_per_request=SPREAD,
        user_runs=1.0,
        order="grouped",
        shared_ids=0,
    ),
    sample=SampleAudit(users=60, requests=160, rows=410, single_rows=500, fat_bytes=123_456, is_whole_table=False),
    layouts=[
        LayoutAudit(
            layout="BY_REQUEST", bytes=2000.4, low=1500.0, high=2500.0, ratio=5.0, ratio_low=4.0, ratio_high=20 / 3
        )
    ],
    user_overlap=1 / 3,
    columns=[
        ColumnAudit(
            name="history.item",
            type="list<int64>",
            level="nearly_request",
            is_constant=False,
            repeat_ratio=0.99,
            checked_requests=300,
            broken_requests=1,
            example="session 7: a list of 3 elements, but one of 2 in 1 of 4 rows",
            user_overlap=None,
            compressed_bytes=9000,
            uncompressed_bytes=70_000,
            codec="zstd",
            encodings=["PLAIN", "RLE"],
            page_bytes=1_048_576,
            rows_per_page=12.5,
            dictionary_share=0.0,
            estimates={"BY_REQUEST": Estimate(1800.0, 1400.0, 2200.0)},
        )
    ],
    causes=[Cause(kind="page_size", bytes=4000.0, columns=["history.item"], text="small pages")],
    step=Step(
        changes=["page size 128 MB"],
        bytes=3000.0,
        low=2500.0,
        high=3500.0,
        one_limit_bytes=3200.0,
        dictionary_limit_bytes=4096,
        is_worth_it=True,
    ),
    model_check=1.01234567,
    settings={"pyarrow": ["pq.write_table(rows, path)"]},
    notes=["a note"],
    seconds=1.5,
)
