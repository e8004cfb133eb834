"""A table of pointers gives the batches of the same table with blobs."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow.compute as pc
import pytest

from reqdedup.logs.synthetic_events import (
    EVENT_COLUMNS,
    EVENT_TYPES,
    SyntheticEventsConfig,
    synthetic_events,
    synthetic_requests,
)
from reqdedup.sequences.batch import advance
from reqdedup.sequences.definition import EventLog, EventType, SequenceDefinition
from reqdedup.sequences.intake import append_events
from reqdedup.sequences.pointers import PointerSource
from reqdedup.sequences.training_table import write_training_table
from reqdedup.storage import TableSource, open_catalog
from reqdedup.storage.maintenance.served_rows import delete_served

CONFIG = SyntheticEventsConfig(num_users=40, num_items=80, num_days=6)
LOG = EventLog(types=EVENT_TYPES, columns=EVENT_COLUMNS)
CLICKED = SequenceDefinition(
    name="clicked",
    owner="tests",
    events=[EventType("click"), EventType("view")],
    columns=["item_id", "event_ts"],
    last_n=15,
    window="2d",
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Tables in both forms, written at the fourth day; two days of events have come since."""
    folder = tmp_path_factory.mktemp("pointers")
    catalog = open_catalog(properties={"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/tables"})
    days = list(synthetic_events(CONFIG))
    rows = synthetic_requests(CONFIG, num_requests=120, fan_out=3)
    append_events(catalog, "lake", LOG, days[:5], source="first")
    advance(catalog, "lake", [CLICKED], num_buckets=3)
    for table, pointers in (("lake.blobs", False), ("lake.pointers", True)):
        write_training_table(
            catalog, table, "lake", "clicked", rows, labels=["click"], pointers=pointers, num_buckets=3
        )  # fmt: skip
    append_events(catalog, "lake", LOG, days[5:], source="since")
    advance(catalog, "lake", [CLICKED])
    return catalog


@pytest.mark.slow
@pytest.mark.parametrize("columns", [None, ["user_id", "request_id", "item_id", "request_ts", "history_item_id"]])
def test_pointers_and_blobs_give_the_same_rows(lake, columns):
    blobs = TableSource(lake.load_table("lake.blobs"))
    pointers = PointerSource(TableSource(lake.load_table("lake.pointers")), lake, "lake", "clicked")
    assert "history_item_id" not in TableSource(lake.load_table("lake.pointers")).schema.names
    assert set(pointers.schema.names) == set(blobs.schema.names)
    found, wanted = (
        [row for batch in source.batches(columns) for row in batch.to_pylist()] for source in (pointers, blobs)
    )
    assert found == wanted
    assert len({row["history_item_id"] for row in found}) > 20


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["none", "requests", "users"])
def test_the_loader_gives_the_same_batches(lake, shuffle):
    torch = pytest.importorskip("torch")
    from reqdedup.training import RequestLoader

    blobs = TableSource(lake.load_table("lake.blobs"))
    pointers = PointerSource(TableSource(lake.load_table("lake.pointers")), lake, "lake", "clicked")

    class Plain:
        """Read as any source is, and not by its row groups, which a loader shuffles."""

        schema, batches = blobs.schema, blobs.batches

    num = 0
    options = {"requests_per_batch": 16, "shuffle": shuffle, "seed": 3}
    for found, wanted in zip(RequestLoader(pointers, **options), RequestLoader(Plain(), **options), strict=True):
        assert found.history.keys() == wanted.history.keys() != set()
        for name, values in wanted.history.items():
            assert torch.equal(found.history[name], values)
        assert torch.equal(found.history_offsets_R1, wanted.history_offsets_R1)
        num += 1
    assert num > 5


@pytest.mark.slow
def test_a_model_learns_the_same_from_pointers_step_by_step(lake):
    """Also of a source that another process has opened, as the ranks of a training do."""
    torch = pytest.importorskip("torch")
    from reqdedup.models import DCATConfig
    from reqdedup.models.registry import build_model
    from reqdedup.training import RequestLoader, TrainingConfig
    from reqdedup.training.tasks import Ranking

    blobs = TableSource(lake.load_table("lake.blobs"))
    pointers = PointerSource(TableSource(lake.load_table("lake.pointers")), lake, "lake", "clicked")
    sizes = {"width": 8, "num_layers": 1, "ffn_width": 16, "max_history": 16}
    model = DCATConfig.from_schema(blobs.schema, **sizes)
    config = TrainingConfig(model=model, num_steps=8, requests_per_step=16, learning_rate=0.01)
    losses = []
    for source in (blobs, pickle.loads(pickle.dumps(pointers))):
        torch.manual_seed(0)
        model, task = build_model(config.model), Ranking(config)
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        losses.append([])
        for batch in RequestLoader(source, requests_per_batch=16, shuffle="none", columns=task.columns):
            total, num_terms = task.loss(model(batch), batch)
            optimiser.zero_grad()
            (total / num_terms).backward()
            optimiser.step()
            losses[-1].append(total.item())
    assert losses[0] == losses[1]
    assert len(losses[0]) > 5


def test_a_version_that_is_gone_is_refused(lake):
    with pytest.raises(ValueError, match="a version of the timeline required"):
        PointerSource(TableSource(lake.load_table("lake.pointers")), lake, "lake", "clicked", version=7)


def test_a_row_of_a_user_whose_events_are_gone_is_refused_and_gets_none_of_others(tmp_path):
    catalog = open_catalog(properties={"uri": f"sqlite:///{tmp_path}/c.db", "warehouse": f"file://{tmp_path}/tables"})
    append_events(catalog, "lake", LOG, list(synthetic_events(CONFIG))[:3], source="first")
    advance(catalog, "lake", [CLICKED], num_buckets=1)
    rows = synthetic_requests(CONFIG, num_requests=40, fan_out=1)
    write_training_table(
        catalog, "lake.pointers", "lake", "clicked", rows, labels=["click"], pointers=True, num_buckets=1
    )  # fmt: skip
    table = TableSource(catalog.load_table("lake.pointers"))
    user = pc.min(rows["user_id"]).as_py()
    delete_served(catalog.load_table("lake.user_events"), np.array([user]), np.array([], np.int64))
    with pytest.raises(ValueError, match=f"history_end of user {user}: at most 0, .* of a user who was deleted"):
        list(PointerSource(table, catalog, "lake", "clicked").batches())
