"""What recipe `laptop` gets from more passes over its log and from another pooling: synthetic, minutes.

    python -m benchmarks.recipe_choices [--only ranking|retrieval] [--try]

Both models of the recipe on its whole log, one rank, seed 0: ranking by its epochs, retrieval by its epochs and by what
its user tower reads of a history. --try: of 100 users, nothing recorded.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.model_variants import quiet
from benchmarks.record import write_results
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, create_table, open_catalog, write
from reqdedup.training import TrainingConfig
from reqdedup.training.rank_run import run_rank

LOG = SyntheticLogConfig(
    end_ts=datetime(2026, 11, 1, tzinfo=UTC),
    num_users=2_000,
    num_items=20_000,
    mean_requests_per_user=3,
    mean_fan_out=32,
    max_fan_out=256,
    history_scale=1 / 40,
    max_history=256,
)
SIZES: dict[str, Any] = {"width": 32, "num_layers": 1, "ffn_width": 64, "max_history": 256}
"""Of the recipe, as are those of LOG; a test compares them."""
SHOWN = {"ranking": ("auc_click", "log_loss_click"), "retrieval": ("mean_log_rank", "recall_at_10")}
CHOICES: dict[str, list[dict[str, Any]]] = {
    "ranking": [{"max_epochs": epochs} for epochs in (1, 2, 4)],
    "retrieval": [
        *({"max_epochs": epochs} for epochs in (1, 2, 4)),
        *({"max_epochs": 4, "pooling": pooling} for pooling in ("last", "both")),
    ],
}


def configuration(task: str, schema: EngagementSchema, **changes: Any) -> TrainingConfig:
    """Of the recipe, on one rank. changes: of the training, or of the model."""
    kind = DCATConfig if task == "ranking" else TwoTowerConfig
    of_model = {name: changes.pop(name) for name in list(changes) if name in kind.__dataclass_fields__}
    model = kind.from_schema(schema, **SIZES, numbers=("recent_event_count",), **of_model)
    values = {"num_steps": 300, "requests_per_step": 64, "learning_rate": 3e-3, "positive_label": "click", **changes}
    return TrainingConfig(model=model, world_size=1, **values)


def measure(log: SyntheticLogConfig, task: str, folder: Path) -> Iterator[dict[str, Any]]:
    catalog = open_catalog(properties={"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/lake"})
    catalog.create_namespace(task)
    table = create_table(catalog, f"{task}.log", synthetic_schema(log), Layout.BY_REQUEST, num_buckets=1)
    write(table, synthesize(log))
    source = TableSource(table)
    for number, changes in enumerate(CHOICES[task]):
        config = configuration(task, source.schema, baselines=False, **changes)
        result = run_rank(quiet, config, source, str(folder / task / str(number)))
        for metric in SHOWN[task]:
            yield {
                "claim": f"recipe laptop, {task}: {metric}",
                "variant": ", ".join(f"{name} = {value}" for name, value in changes.items()),
                "value": result.metrics[metric],
                "unit": metric,
                "target": None,
                "chance": result.metrics.get(f"{metric}_chance"),
                "sizes": {"steps": result.steps, "rows": result.metrics["eval_rows"]},
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SHOWN), action="append")
    parser.add_argument("--try", dest="is_trial", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, log = [], replace(LOG, num_users=100) if options.is_trial else LOG
    with tempfile.TemporaryDirectory() as folder:
        for task in options.only or SHOWN:
            for row in measure(log, task, Path(folder)):
                rows.append(row)
                print(f"{row['claim']}: {row['variant']} {row['value']:.4f} (chance {row['chance']})", flush=True)
    if not options.is_trial:
        claims = {row["claim"] for row in rows}
        print(write_results("recipe_choices", rows, replaced=tuple(claims)))


if __name__ == "__main__":
    main()
