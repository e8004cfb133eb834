"""What the parts of serving are tried on: two models, trained once a session in this process, as bundles."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.table import Table

from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.bundle import Bundle
from reqdedup.models.checkpoint import CHECKPOINT_NAME
from reqdedup.storage import Layout, TableSource, bucket_join, recent_event_counts, replace_feature_table, replace_table
from reqdedup.training import TrainingConfig
from reqdedup.training.export import export_checkpoint
from reqdedup.training.rank_run import run_rank

LOG = SyntheticLogConfig(
    num_days=3,
    num_users=60,
    num_items=300,
    mean_requests_per_user=3,
    mean_fan_out=8,
    max_fan_out=24,
    median_history=40,
    p90_history=150,
    max_history=160,
    user_embedding_width=4,
    users_per_block=32,
    seed=5,
)
MAX_HISTORY = 96
"""Of the models: over one block of 64 events, and less than the log's longest histories."""

SIZES = {
    "width": 16,
    "num_layers": 2,
    "ffn_width": 32,
    "item_table_rows": 512,
    "category_table_rows": 32,
    "max_history": MAX_HISTORY,
    "hidden_widths": (16, 8),
    "numbers": ("recent_event_count",),
}


@dataclass(frozen=True)
class TrainedBundles:
    """Folders of two bundles, and the tables that they come from.

    main: engagements_by_request.  features: request_features, with recent_event_count.  sample: both joined, which the
    models were trained on.  checkpoints: of the runs, by task.
    """

    ranking: Path
    retrieval: Path
    main: Table
    features: Table
    sample: Table
    checkpoints: dict[str, Path]

    @property
    def source(self) -> TableSource:
        return TableSource(self.sample)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These tensors are tiny, and test processes share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained_bundles(tmp_path_factory: pytest.TempPathFactory) -> TrainedBundles:
    """Treat them as read-only; copy a folder that a test changes. Trained once for all processes of the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as a server's; on a busy machine ten times faster too
            _train(folder)
            torch.set_num_threads(threads)
            (folder / "done").touch()
    return _trained(folder)


def _catalog(folder: Path) -> Catalog:
    return load_catalog("test", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")


def _trained(folder: Path) -> TrainedBundles:
    catalog = _catalog(folder)
    main, features, sample = (catalog.load_table(f"lake.{name}") for name in ("main", "features", "sample"))
    bundles = {task: folder / "bundles" / task for task in ("ranking", "retrieval")}
    checkpoints = {task: folder / task / CHECKPOINT_NAME for task in bundles}
    return TrainedBundles(bundles["ranking"], bundles["retrieval"], main, features, sample, checkpoints)


def _train(folder: Path) -> None:
    catalog = _catalog(folder)
    layout = Layout.BY_REQUEST
    replace_table(catalog, "lake.main", synthetic_schema(LOG), layout, synthesize(LOG), num_buckets=4)
    main = catalog.load_table("lake.main")
    feature = recent_event_counts(24 * 3600)
    replace_feature_table(catalog, "lake.features", main, [feature.column], feature)
    joined = bucket_join(main, catalog.load_table("lake.features"))
    replace_table(catalog, "lake.sample", joined.schema, layout, joined.batches(), num_buckets=4)
    source = TableSource(catalog.load_table("lake.sample"))
    models = {
        "ranking": DCATConfig.from_schema(source.schema, **SIZES),
        "retrieval": TwoTowerConfig.from_schema(source.schema, output_width=8, **SIZES),
    }
    for task, model in models.items():
        training = TrainingConfig(
            model=model,
            num_steps=12,
            max_epochs=0,
            requests_per_step=16,
            learning_rate=0.02,
            world_size=1,
            eval_requests=32,
        )
        run_rank(lambda _: None, training, source, str(folder / task), source.snapshot_id)
        bundle = export_checkpoint(folder / task / CHECKPOINT_NAME, source, folder / "bundles" / task)
        Bundle.load(bundle)
