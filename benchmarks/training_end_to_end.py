"""Training from tables on disk: our table and loader against row-wise reading of the sorted list table.

The baseline reads what people store today: the same rows in the same order, every row with plain lists, batches of rows
taken as they come, whole columns at a time, no loop over rows; then the duplicated model. Both read only the columns
that the model names. Seconds are per row; ours runs a whole epoch with shuffling, the baseline one batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import operations
from benchmarks.interleaved import interleaved, ratio_row
from benchmarks.workloads import ITEM_TABLE_ROWS, LABEL, check_equal, twins, write_tables
from reqdedup.batch import RequestBatch
from reqdedup.logs import SyntheticLogConfig
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.schema import HISTORY_END, ITEM_ID, REQUEST_ID, USER_ID, EngagementSchema, Kind, Level
from reqdedup.storage import Layout, TableSource
from reqdedup.training import RequestLoader

Row = dict[str, Any]
HISTORY = 512


def log_of(*, fan_out: int, num_requests: int, history: int = HISTORY) -> SyntheticLogConfig:
    """Long timelines cut by anchored windows, 7/8 of `history` on average; heavy-tailed fan-out."""
    return SyntheticLogConfig(
        num_users=num_requests // 2,
        mean_requests_per_user=2,
        max_requests_per_user=8,
        mean_fan_out=fan_out,
        max_fan_out=4 * fan_out,
        median_history=4_000,
        p90_history=9_000,
        max_history=history,
        new_user_share=0.0,
    )


def end_to_end() -> Iterator[Row]:
    yield _end_to_end("retrieval", fan_out=64, num_requests=96, rows_per_batch=512, target=10.0)
    yield _end_to_end("ranking", fan_out=10, num_requests=200, rows_per_batch=256, target=5.1)
    yield _end_to_end("ranking", fan_out=128, num_requests=64, rows_per_batch=256, target=40.0)


def _end_to_end(task: str, *, fan_out: int, num_requests: int, rows_per_batch: int, target: float) -> Row:
    """The baseline trains on one batch a round, ours on the whole table."""
    with tempfile.TemporaryDirectory() as folder:
        log = log_of(fan_out=fan_out, num_requests=num_requests)
        tables, schema = write_tables(Path(folder), log, (Layout.BY_REQUEST, Layout.SORTED))
        ours, theirs = tables[Layout.BY_REQUEST], tables[Layout.SORTED]
        config = config_of(task, schema)
        check_same_training(config, ours, theirs, rows_per_batch)
        our_trainer, their_trainer = twins(config)
        loader = loader_of(config, ours, rows_per_batch)
        batches = list(loader)
        num_rows = sum(batch.num_rows for batch in batches)

        def their_step() -> None:
            their_trainer.step(next(row_wise_batches(theirs, config, rows_per_batch)))

        timings = interleaved(
            {"reqdedup": lambda: [our_trainer.step(batch) for batch in loader], "row-wise": their_step},
            rounds=3,
            units={"reqdedup": num_rows, "row-wise": rows_per_batch},
        )
    counts = [_operations(config, batch) for batch in batches]
    return ratio_row(
        f"{task} end to end, fan-out {fan_out}",
        timings,
        baseline="row-wise",
        target=target,
        predicted=sum(theirs for _, theirs in counts) / sum(ours for ours, _ in counts),
        published={"retrieval": "4x end to end", "ranking": "2.8x end to end"}[task] + " (the article)",
        sizes={
            "rows": num_rows,
            "fan_out": round(num_rows / sum(batch.num_requests for batch in batches), 1),
            "rows_per_batch": rows_per_batch,
            "max_history": HISTORY,
            "width": config.width,
            "num_layers": config.num_layers,
            "threads": torch.get_num_threads(),
        },
    )


def loader_against_appetite() -> Iterator[Row]:
    """What is left of the trainer's throughput when batches come from the table, and how fast the loader is by itself.

    A whole epoch from a cold start, in windows of an eighth of the table. Wall time, since the loader's thread works
    beside the trainer; in CPU time its work comes on top. Retrieval at fan-out 256 and history 64 is the hungriest step
    here.
    """
    yield from _loader("retrieval", fan_out=256, history=64, num_requests=800, rows_per_batch=8192)
    yield from _loader("ranking", fan_out=10, history=HISTORY, num_requests=400, rows_per_batch=256)


def _loader(task: str, *, fan_out: int, history: int, num_requests: int, rows_per_batch: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        log = log_of(fan_out=fan_out, num_requests=num_requests, history=history)
        tables, schema = write_tables(Path(folder), log, (Layout.BY_REQUEST,))
        config = config_of(task, schema)
        trainer, _ = twins(config)
        loader = loader_of(config, tables[Layout.BY_REQUEST], rows_per_batch, buffer_requests=num_requests // 8)
        batches = list(loader)
        variants = {
            "with the loader": lambda: [trainer.step(batch) for batch in loader],
            "trainer alone": lambda: [trainer.step(batch) for batch in batches],
            "loader alone": lambda: sum(1 for _ in loader),
        }
        repeats = {"loader alone": 2}
        wall = interleaved(variants, rounds=7, repeats=repeats, clock=time.perf_counter)
        cpu = interleaved(variants, rounds=5, repeats=repeats, warm_up=False)
    num_rows = sum(batch.num_rows for batch in batches)
    sizes = {
        "rows": num_rows,
        "fan_out": round(num_rows / sum(batch.num_requests for batch in batches), 1),
        "rows_per_batch": rows_per_batch,
        "batches": len(batches),
        "max_history": history,
        "threads": torch.get_num_threads(),
    }
    for clock, timings, target in (("wall", wall, 0.95), ("CPU", cpu, None)):
        beside = ratio_row(
            f"loader beside {task} training, {clock} time",
            timings,
            ours="with the loader",
            baseline="trainer alone",
            target=target,
            sizes=sizes,
        )
        yield beside | {"unit": f"of the trainer-only throughput, {clock} time"}
    alone = ratio_row(f"loader alone, {task} columns", cpu, ours="loader alone", baseline="trainer alone", sizes=sizes)
    rows_per_s = num_rows / cpu.median("loader alone")
    yield alone | {"unit": "x the rows that the trainer takes, CPU time", "rows_per_s": rows_per_s}


def config_of(task: str, schema: EngagementSchema) -> DCATConfig | TwoTowerConfig:
    sizes: dict[str, Any] = {"width": 64, "ffn_width": 128, "max_history": HISTORY, "item_table_rows": ITEM_TABLE_ROWS}
    if task == "ranking":
        return DCATConfig.from_schema(schema, labels=[LABEL], **sizes)
    return TwoTowerConfig.from_schema(schema, **sizes)


def loader_of(
    config: DCATConfig | TwoTowerConfig, source: TableSource, rows_per_batch: int, **options: Any
) -> RequestLoader:
    """Shuffling whole requests, unless the options say otherwise."""
    return RequestLoader(
        source, rows_per_batch=rows_per_batch, columns=columns_of(config), **{"shuffle": "requests", **options}
    )


def columns_of(config: DCATConfig | TwoTowerConfig) -> tuple[str, ...]:
    return (*config.columns, LABEL)


def row_wise_batches(
    source: TableSource, config: DCATConfig | TwoTowerConfig, rows_per_batch: int
) -> Iterator[RequestBatch]:
    """Batches of rows as a table of plain lists gives them: each row is a request of its own."""
    names = [USER_ID, REQUEST_ID, ITEM_ID, *columns_of(config)]
    schema = source.schema
    for path in source.paths:
        file = pq.ParquetFile(path.removeprefix("file://"))
        for rows in file.iter_batches(batch_size=rows_per_batch, columns=names):
            yield _batch_of_rows(rows, schema, names)


def _batch_of_rows(rows: pa.RecordBatch, schema: EngagementSchema, names: list[str]) -> RequestBatch:
    arrays = {name: rows.column(name) for name in names}
    request, row, history = {}, {}, {}
    row_B1 = torch.arange(rows.num_rows + 1)
    offsets_B1 = row_B1
    for name in names:
        column, array = schema[name], arrays[name]
        if column.kind is Kind.SEQUENCE:
            offsets_B1 = torch.from_numpy(np.asarray(array.offsets).astype(np.int64))
            history[name.removeprefix("history_")] = torch.from_numpy(array.flatten().to_numpy().copy())
            offsets_B1 = offsets_B1 - offsets_B1[0]
        elif column.kind is Kind.VECTOR:
            request[name] = torch.from_numpy(array.flatten().to_numpy().copy()).view(-1, column.width)
        elif column.level is Level.LABEL:
            row[name] = torch.from_numpy(array.cast(pa.float32()).to_numpy(zero_copy_only=False).copy())
        elif column.level is Level.ITEM:
            row[name] = torch.from_numpy(array.to_numpy().copy())
        elif column.level is Level.REQUEST and name != HISTORY_END:
            request[name] = torch.from_numpy(array.to_numpy().copy())
    return RequestBatch(
        user_id_R=torch.from_numpy(arrays[USER_ID].to_numpy().copy()),
        item_id_B=torch.from_numpy(arrays[ITEM_ID].to_numpy().copy()),
        request_of_row_B=row_B1[:-1],
        row_offsets_R1=row_B1,
        history_offsets_R1=offsets_B1,
        request=request,
        row=row,
        history=history,
    )


def check_same_training(
    config: DCATConfig | TwoTowerConfig, ours: TableSource, theirs: TableSource, rows_per_batch: int
) -> None:
    """The correctness gate: the first rows of both tables are the same, and so are the loss and the
    gradients on them."""
    batch = next(iter(loader_of(config, ours, rows_per_batch // 4, shuffle="none")))
    rows = next(row_wise_batches(theirs, config, batch.num_rows))
    if not torch.equal(rows.item_id_B, batch.item_id_B):
        raise ValueError("gate: the tables do not begin with the same rows; nothing is measured")
    check_equal(*twins(config), batch, rows)


def _operations(config: DCATConfig | TwoTowerConfig, batch: RequestBatch) -> tuple[float, float]:
    lengths, rows = batch.history_offsets_R1.diff().tolist(), batch.row_offsets_R1.diff().tolist()
    if isinstance(config, DCATConfig):
        return operations.dcat_step(config, lengths, rows)
    return operations.two_tower_step(config, lengths, rows)
