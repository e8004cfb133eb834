"""Retrieval: an approximate index against exact search, filters, and the user's state kept against the whole tower.

    python -m benchmarks.serving_retrieval [--only index] [--items 1000000] [--bundle FOLDER] [--rounds 5]

index    1M x 64 unit vectors in clusters (`clustered_vectors`): recall@100, CPU time beside exact search by this
         library and by faiss, opening as a memory map; with --bundle also the vectors of that trained model
trained  the same of a two-tower that is trained here, briefly, on a synthetic log of as many items: its item tower
         over all of them, and as users requests of the log through its user tower
filter   1% of the items by a category and by an allow list, exact on the kept, beside the index filtered afterwards
state    a kept state and the head against the whole user tower, 64 and 512 events

Answers of all variants are compared before anything is timed; one thread, interleaved, CPU time. A run of everything
replaces `benchmarks/results/serving_retrieval.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.interleaved import interleaved, line, ratio_row
from benchmarks.record import write_results
from benchmarks.workloads import batch_of, two_tower_config, write_tables
from reqdedup.logs import SyntheticLogConfig
from reqdedup.logs.synthetic_config import make_catalogue
from reqdedup.models import TwoTower, TwoTowerConfig
from reqdedup.models.bundle import Bundle
from reqdedup.models.checkpoint import CHECKPOINT_NAME, load_model
from reqdedup.models.items import Items
from reqdedup.models.transforms import history_name
from reqdedup.models.two_tower import UserHead
from reqdedup.sequences.store import Window, events_digest
from reqdedup.serving.requests import ItemFilter
from reqdedup.serving.retrieval.approximate_index import NUM_TRIED, build_index, index_kind, open_index, recall
from reqdedup.serving.retrieval.item_index import ExactIndex, ItemIndex, nearest
from reqdedup.serving.retrieval.item_vectors import ItemVectors
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.serving.retrieval.state_cache import StateCache, StateKey
from reqdedup.storage import Layout
from reqdedup.training import RequestLoader, TrainingConfig
from reqdedup.training.export import item_vectors
from reqdedup.training.rank_run import run_rank

Row = dict[str, Any]
K, NUM_QUERIES = 100, 100
TRAINED_LOG = SyntheticLogConfig(
    num_users=6_000,
    mean_requests_per_user=2.0,
    mean_fan_out=16.0,
    max_fan_out=64,
    median_history=60.0,
    p90_history=120.0,
    max_history=64,
)
EVERYTHING = ItemFilter()


def clustered_vectors(
    num: int, width: int, *, num_clusters: int = 1000, noise: float = 1.3, seed: int = 0
) -> np.ndarray:
    """Unit vectors around centres, [num, width] float32: the k-th largest cluster holds a share like k^-0.5.

    noise: length of what is added to a centre, which has length 1. At 1.3 inverted lists find 92% of the nearest in 64
    of 4,096 lists; at 1.0 all of them, at 2.0 a third.
    """
    rng = np.random.default_rng(seed)
    centre_CD = rng.standard_normal((num_clusters, width), dtype=np.float32)
    centre_CD /= np.linalg.norm(centre_CD, axis=1, keepdims=True)
    share_C = np.arange(1, num_clusters + 1) ** -0.5
    vectors_ND = centre_CD[rng.choice(num_clusters, num, p=share_C / share_C.sum())]
    vectors_ND += noise / np.sqrt(width) * rng.standard_normal((num, width), dtype=np.float32)
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def clustered_items(num_items: int, width: int) -> tuple[ItemVectors, np.ndarray]:
    """Items with a category that each hundredth has, and users from the same clusters."""
    vectors = clustered_vectors(num_items + NUM_QUERIES, width)
    category = np.random.default_rng(1).integers(0, 100, num_items).astype(np.int32)
    return ItemVectors.of(np.arange(num_items), vectors[:num_items], {"category": category}), vectors[num_items:]


def bundle_items(folder: Path) -> tuple[ItemVectors, np.ndarray]:
    """Items of a trained retrieval model, and users of its own tower: histories of random items, random features."""
    bundle, rng = Bundle.load(folder), np.random.default_rng(0)
    retriever = Retriever.of(bundle)
    columns, users = bundle.transforms.request_columns, []
    for _ in range(NUM_QUERIES):
        length = int(rng.integers(20, bundle.transforms.cut.max_events + 1))
        history = {history_name(c.name): rng.integers(0, 8, length) for c in bundle.transforms.history_columns}
        history["item_id"] = rng.choice(retriever.items.item_id, length)
        state_D, _ = retriever.state(0, retriever.read(Window(history, 0, length, 0)))
        plain = {c.name: rng.standard_normal(c.width) if c.width else int(rng.integers(0, 5)) for c in columns}
        users.append(retriever.user_vector(state_D, bundle.transforms.requests([plain])))
    return retriever.items, np.stack(users)


def trained_items(num_items: int, folder: Path) -> tuple[ItemVectors, np.ndarray, np.ndarray]:
    """All items of a synthetic log through an item tower that was trained on it, users of its user tower, and others
    whom an index may be built with.

    The items' ids are hashed into 65,536 rows, as ids are, and a category added: no two towers of a million rows.
    """
    log = dataclasses.replace(TRAINED_LOG, num_items=num_items)
    tables, schema = write_tables(folder, log, [Layout.BY_REQUEST])
    config = TwoTowerConfig.from_schema(
        schema, width=64, num_layers=1, ffn_width=128, hidden_widths=(64,), output_width=64, max_history=log.max_history
    )
    training = TrainingConfig(
        model=config,
        num_steps=200,
        max_epochs=0,
        requests_per_step=64,
        learning_rate=0.01,
        world_size=1,
        eval_requests=64,
    )
    source = tables[Layout.BY_REQUEST]
    run_rank(lambda _: None, training, source, str(folder / "run"), source.snapshot_id)
    model = cast(TwoTower, load_model(folder / "run" / CHECKPOINT_NAME)).eval()
    item_id, none = np.arange(num_items), np.zeros(num_items, np.int64)
    columns = {"item_category": make_catalogue(log).category(item_id)}
    items = Items(item_id_V=item_id, count_V=none, first_seen_V=none, columns=columns)
    loader = RequestLoader(
        source, requests_per_batch=NUM_QUERIES + NUM_TRIED, shuffle="requests", seed=1, columns=config.columns
    )
    with torch.no_grad():
        users = model.user_tower(next(iter(loader))).numpy()
    found = ItemVectors.of(item_id, item_vectors(model, items), columns)
    return found, users[:NUM_QUERIES], users[NUM_QUERIES:]


def in_turns(
    users: np.ndarray, items: ItemVectors, index: ItemIndex, filter: ItemFilter = EVERYTHING
) -> Callable[[], object]:
    """Answers the next user at each call."""
    turns = itertools.cycle(users)
    return lambda: nearest(items, index, next(turns), K, filter)


def index_rows(
    name: str, items: ItemVectors, users: np.ndarray, rounds: int, *, others: np.ndarray | None = None
) -> Iterator[Row]:
    """Recall, time and opening of the index that is built for so many items; of few, exact search beside faiss's.

    others: users whom the index is built with; None: items in their place.
    """
    import faiss

    kind, exact = index_kind(len(items)), ExactIndex(items)
    sizes = {"items": len(items), "width": items.vectors.shape[1], "k": K, "index": kind or "exact", "threads": 1}
    flat, turns = faiss.IndexFlatIP(items.vectors.shape[1]), itertools.cycle(users)
    flat.add(items.vectors)
    by_faiss = set(flat.search(users[:1], K)[1][0].tolist())
    by_us = set(nearest(items, exact, users[0], K, EVERYTHING)[0].tolist())
    if len(by_us & by_faiss) < 0.99 * min(K, len(items)):  # ties apart
        raise AssertionError(f"{name}: exact search differs from faiss")
    variants: dict[str, Callable[[], object]] = {
        "exact": in_turns(users, items, exact),
        "faiss flat": lambda: flat.search(next(turns)[None], K),
    }
    if kind is None:  # so few that exact search is the choice
        timings = interleaved(variants, rounds=rounds, repeats={"exact": 100, "faiss flat": 100})
        claim = f"retrieval, {name}, exact beside faiss flat"
        yield ratio_row(claim, timings, baseline="faiss flat", ours="exact", sizes=sizes)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.faiss"
        started = time.process_time()
        if not build_index(items.vectors, path, users=others):
            raise AssertionError(f"{name}: no index finds enough of these vectors")
        built_s, index_bytes = time.process_time() - started, path.stat().st_size
        opened = []
        for _ in range(5):
            started = time.perf_counter()
            index = open_index(path, items)
            opened.append(1e3 * (time.perf_counter() - started))
        sizes |= {"build_cpu_s": round(built_s, 1), "index_mib": round(index_bytes / 2**20, 1)}
        yield {
            "claim": f"retrieval, {name}", "variant": "recall@100", "value": recall(items, index, users),
            "unit": "of exact search", "target": 0.95, "sizes": sizes,
        }  # fmt: skip
        yield {
            "claim": f"retrieval, {name}", "variant": "index opened", "value": float(np.median(opened)), "unit": "ms",
            "target": None, "spread": [min(opened), max(opened)], "runs": len(opened), "sizes": sizes,
        }  # fmt: skip
        timings = interleaved(
            {"approximate": in_turns(users, items, index), **variants},
            rounds=rounds,
            repeats={"approximate": 200, "exact": 10, "faiss flat": 10},
        )
    for baseline in ("exact", "faiss flat"):
        yield ratio_row(
            f"retrieval, {name}, beside {baseline}", timings, baseline=baseline, ours="approximate", sizes=sizes,
            target=15.0 if len(items) >= 1_000_000 else None,
        )  # fmt: skip


def filter_rows(items: ItemVectors, users: np.ndarray, rounds: int) -> Iterator[Row]:
    """A filter that keeps 1%: exact on the kept, beside exact search over everything."""
    allowed = np.random.default_rng(2).choice(items.item_id, len(items) // 100, replace=False)
    exact = ExactIndex(items)
    for name, filter in {
        "a category of 1%": ItemFilter(categories={"category": np.array([7])}),
        "an allow list of 1%": ItemFilter(allow=allowed),
        "categories of 50%": ItemFilter(categories={"category": np.arange(50)}),
    }.items():
        kept = items.kept(filter)
        assert kept is not None
        flat = items.vectors[kept] @ users[0]
        if set(nearest(items, exact, users[0], K, filter)[0].tolist()) != set(kept[np.argsort(-flat)[:K]].tolist()):
            raise AssertionError(f"{name}: other items than a plain search over the kept finds")
        timings = interleaved(
            {
                "exact on the kept": in_turns(users, items, exact, filter),
                "exact, no filter": in_turns(users, items, exact),
            },
            rounds=rounds,
            repeats={"exact on the kept": 20, "exact, no filter": 5},
        )
        sizes = {"items": len(items), "kept": len(kept), "k": K, "recall": 1.0, "threads": 1}
        yield ratio_row(
            f"retrieval, {name}", timings, baseline="exact, no filter", ours="exact on the kept", sizes=sizes
        )


def state_rows(rounds: int) -> Iterator[Row]:
    """The head alone, and with looking the state up, against the whole tower."""
    torch.manual_seed(0)
    model = TwoTower(two_tower_config(width=128, max_history=512)).eval()
    head = UserHead(model)
    for length, target in ((64, 20.0), (512, 300.0)):
        batch, cache = batch_of([length], [1]), StateCache(1 << 20)
        history = {name: values.numpy() for name, values in batch.history.items()}
        request = {name: batch.request[name] for name in ("device", "user_embedding")}
        key = StateKey("model", 0, 0, 0, length)
        state_D = model.user_state(batch.history).numpy()
        cache.put(key, events_digest(history), state_D)

        def kept(history: Any = history, request: Any = request, cache: Any = cache, key: Any = key) -> np.ndarray:
            found = cache.get(key, events_digest(history))
            assert found is not None
            return head(found, request)

        def whole(batch: Any = batch, request: Any = request) -> np.ndarray:
            return head(model.user_state(batch.history).numpy(), request)

        tower = model.user_tower(batch).detach()[0].numpy()
        if not (np.array_equal(kept(), whole()) and np.allclose(kept(), tower, atol=1e-5)):
            raise AssertionError("a kept state gives another user vector than the tower")
        timings = interleaved(
            {
                "head": partial(head, state_D, request),
                "state looked up, head": kept,
                "whole tower": whole,
            },
            rounds=rounds,
            repeats={"head": 500, "state looked up, head": 500, "whole tower": 10},
        )
        sizes = {"events": length, "width": 128, "num_layers": 2, "ffn_width": 256, "threads": 1}
        for ours in ("head", "state looked up, head"):
            yield ratio_row(
                f"user state kept, {length} events: {ours}", timings, baseline="whole tower", ours=ours, sizes=sizes,
                target=target if ours == "head" else None,
            )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_retrieval")
    parser.add_argument("--only", choices=("index", "trained", "filter", "state"))
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--bundle", type=Path, help="of a trained retrieval model")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    import faiss

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows: list[Row] = []

    def report(found: Iterator[Row]) -> None:
        for row in found:
            rows.append(row)
            print(line(row), flush=True)

    if args.only in (None, "index", "filter"):
        items, users = clustered_items(args.items, 64)
        if args.only != "filter":
            report(index_rows("clustered vectors", items, users, args.rounds))
            if args.bundle:
                report(index_rows("vectors of a bundle", *bundle_items(args.bundle), args.rounds))
        if args.only != "index":
            report(filter_rows(items, users, args.rounds))
    if args.only in (None, "trained"):
        with tempfile.TemporaryDirectory() as folder:
            items, users, others = trained_items(args.items, Path(folder))
        report(index_rows("trained vectors", items, users, args.rounds, others=others))
    if args.only in (None, "state"):
        report(state_rows(args.rounds))
    if not args.only and args.items == 1_000_000:
        print(write_results("serving_retrieval", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
