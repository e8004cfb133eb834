"""What the parts of serving are tried on: two models, trained once a session in this process, as bundles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pyiceberg.catalog import load_catalog
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
def trained_bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedBundles]:
    """Treat them as read-only; copy a folder that a test changes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a server's; on a busy machine ten times faster too
    try:
        yield _trained(tmp_path_factory.mktemp("trained"))
    finally:
        torch.set_num_threads(threads)


def _trained(folder: Path) -> TrainedBundles:
    catalog = load_catalog("test", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")
    layout = Layout.BY_REQUEST
    replace_table(catalog, "lake.main", synthetic_schema(LOG), layout, synthesize(LOG), num_buckets=4)
    main = catalog.load_table("lake.main")
    feature = recent_event_counts(24 * 3600)
    replace_feature_table(catalog, "lake.features", main, [feature.column], feature)
    features = catalog.load_table("lake.features")
    joined = bucket_join(main, features)
    replace_table(catalog, "lake.sample", joined.schema, layout, joined.batches(), num_buckets=4)
    sample = catalog.load_table("lake.sample")
    source = TableSource(sample)
    models = {
        "ranking": DCATConfig.from_schema(source.schema, **SIZES),
        "retrieval": TwoTowerConfig.from_schema(source.schema, output_width=8, **SIZES),
    }
    checkpoints, bundles = {}, {}
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
        checkpoints[task] = folder / task / CHECKPOINT_NAME
        bundles[task] = export_checkpoint(checkpoints[task], source, folder / "bundles" / task)
        Bundle.load(bundles[task])
    return TrainedBundles(bundles["ranking"], bundles["retrieval"], main, features, sample, checkpoints)
