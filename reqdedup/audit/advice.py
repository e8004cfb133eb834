"""What to set: the cheapest step, and the exact properties, statements and arguments of each writer.

Property names and defaults: Iceberg's configuration page, spark-ddl and spark-procedures; pyiceberg 0.12
`TableProperties`; the README of parquet-hadoop; pyarrow's ParquetWriter. Iceberg for Java has
`parquet.enable.dictionary` for all columns at once only, and pyiceberg no switch at all, hence a dictionary limit: with
a small one, columns with few distinct elements keep theirs, and the others fall back to plain at once.
"""

from __future__ import annotations

from reqdedup.audit.causes import CODEC, DICTIONARY, ORDER, PAGE_SIZE, ROW_GROUPS, Diagnosis
from reqdedup.audit.estimate import Estimate
from reqdedup.audit.footers import TableFacts
from reqdedup.audit.report import RequestAudit, Step, TableAudit
from reqdedup.storage.iceberg.settings import DEFAULT_FILE_BYTES, LARGE_PAGE_BYTES, ZSTD_LEVEL

MATTERS_SHARE = 0.05
"""Of the plain table's bytes: a cause below this is not worth a change."""

WORTH_RATIO = 1.1
ROW_GROUP_BYTES = DEFAULT_FILE_BYTES


def cheapest_step(
    today_bytes: int,
    plain: float,
    one_limit: float,
    like: Estimate,
    diagnosis: Diagnosis,
    requests: RequestAudit,
) -> Step:
    """The changes whose cause matters, in the order in which a writer makes them.

    plain, one_limit: bytes after the step, with a switch per column and with one limit.  like: the layout of the same
    form, whose interval it has in proportion.
    """
    texts = {
        ORDER: f"sort by {', '.join([*requests.user_key, *requests.request_key])}",
        PAGE_SIZE: f"page size {LARGE_PAGE_BYTES // 2**20} MB",
        CODEC: f"zstd {ZSTD_LEVEL}",
        DICTIONARY: "no dictionary of list elements",
        ROW_GROUPS: "larger row groups",
    }
    matter = {cause.kind for cause in diagnosis.causes if cause.bytes >= MATTERS_SHARE * plain}
    worth = today_bytes >= WORTH_RATIO * plain
    changes = [text for kind, text in texts.items() if kind in matter] if worth else []
    if worth and not changes:
        changes = [f"rewrite sorted, page size {LARGE_PAGE_BYTES // 2**20} MB, zstd {ZSTD_LEVEL}"]
    return Step(
        changes=changes,
        bytes=plain,
        low=plain * like.low / max(like.bytes, 1.0),
        high=plain * like.high / max(like.bytes, 1.0),
        one_limit_bytes=one_limit,
        dictionary_limit_bytes=diagnosis.limit_bytes,
        is_worth_it=worth,
    )


def writer_settings(
    table: TableAudit,
    facts: TableFacts,
    requests: RequestAudit,
    diagnosis: Diagnosis,
    step: Step,
    *,
    num_buckets: int,
    row_bytes: float,
) -> dict[str, list[str]]:
    """Lines to copy, by writer; `-- ` and `# ` start remarks."""
    order = [*requests.user_key, *requests.request_key]
    partition_key = (requests.user_key or requests.request_key)[0]
    properties = {
        "write.parquet.compression-codec": "zstd",
        "write.parquet.compression-level": str(ZSTD_LEVEL),
        "write.parquet.page-size-bytes": str(LARGE_PAGE_BYTES),
        "write.parquet.dict-size-bytes": str(diagnosis.limit_bytes),
    }
    java = properties | {
        "write.parquet.row-group-size-bytes": str(ROW_GROUP_BYTES),
        "write.distribution-mode": "hash",
    }
    name = table.name if table.kind == "iceberg" else "db.table"
    quoted = ", ".join(f"'{key}'='{value}'" for key, value in java.items())
    without = diagnosis.without_dictionary
    with_dictionary = [column.path for name, column in facts.columns.items() if name in diagnosis.with_dictionary]
    group_rows = max(int(ROW_GROUP_BYTES / max(row_bytes, 1.0)), int(8 * requests.rows_per_request.mean), 1)
    remark = (
        "one dictionary limit for all columns gains nothing here: write with a switch per column, or BY_REQUEST"
        if step.one_limit_bytes * WORTH_RATIO > table.compressed_bytes
        else ""
    )
    return {
        "pyiceberg": [
            *([f"# {remark}"] if remark else []),
            f"table.transaction().set_properties({properties!r}).commit_transaction()",
            "# append never sorts",
            f"table.append(rows.sort_by([{', '.join(f'({key!r}, {chr(34)}ascending{chr(34)})' for key in order)}]))",
            "# pyiceberg 0.12 ignores write.parquet.row-group-size-bytes; its row groups are whole files",
        ],
        "spark": [
            *([f"-- {remark}"] if remark else []),
            f"ALTER TABLE {name} SET TBLPROPERTIES ({quoted});",
            f"ALTER TABLE {name} ADD PARTITION FIELD bucket({num_buckets}, {partition_key});",
            f"ALTER TABLE {name} WRITE DISTRIBUTED BY PARTITION LOCALLY ORDERED BY {', '.join(order)};",
            "-- with the table's catalog in use:",
            f"CALL system.rewrite_data_files(table => '{name}', strategy => 'sort', sort_order => "
            f"'{', '.join(f'{key} ASC NULLS FIRST' for key in order)}', options => map('rewrite-all', 'true'));",
        ],
        "pyarrow": [
            f"rows = rows.sort_by([{', '.join(f'({key!r}, {chr(34)}ascending{chr(34)})' for key in order)}])",
            f"pq.write_table(rows, path, compression='zstd', compression_level={ZSTD_LEVEL}, "
            f"data_page_size={LARGE_PAGE_BYTES}, row_group_size={group_rows}, use_dictionary={with_dictionary!r})",
        ],
        "parquet-mr": [
            "parquet.compression=ZSTD",
            f"parquet.compression.codec.zstd.level={ZSTD_LEVEL}",
            f"parquet.page.size={LARGE_PAGE_BYTES}",
            f"parquet.block.size={ROW_GROUP_BYTES}",
            *[f"parquet.enable.dictionary#{facts.columns[column].path}=false" for column in without],
        ],
    }
