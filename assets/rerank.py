"""Stage 7, re-ranking: what variety costs in relevance, over the candidates of held-out requests."""

import dagster as dg
import pyarrow.compute as pc

from assets.metadata import GLANCE, curve_metadata
from assets.pictures import facts
from assets.resources import Warehouse
from assets.stages import REPORT, SERVING, TABLE, WHEN_INPUTS_CHANGE, stage
from assets.training import MODELS, check_one_sample
from reqdedup.models.checkpoint import CHECKPOINT_NAME
from reqdedup.rerank import SlateConfig
from reqdedup.rerank.config import Volume
from reqdedup.rerank.scored import ScoredCandidates, curve_table
from reqdedup.rerank.sweep import SCORES_ALONE, sweep, weight_grid
from reqdedup.storage import TableSource
from reqdedup.training.scored import scored_candidates as scored

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
SLATE = SlateConfig(length=10, window=5, standardise=True, terms=(Volume(weight=1.0),))


@stage(**SERVING, deps=["training_sample", *MODELS], tags=TABLE, kinds={"iceberg", "torch"})
def scored_candidates(store: Warehouse) -> dg.MaterializeResult:
    """Candidates of held-out requests with the ranking model's score and the retrieval model's item vector.

    What re-ranking sees; kept as a table so that its settings can be tried without a model (`rerank_report`).
    """
    sample = store.table("training_sample")
    folders = {name: store.model_dir(name) for name in MODELS}
    check_one_sample(folders, sample)
    retrieval, ranking = (folders[name] / CHECKPOINT_NAME for name in MODELS)
    rows = scored(ranking, retrieval, TableSource(sample))
    store.write_report("scored_candidates", rows)
    requests = pc.count_distinct(rows["request_id"]).as_py()
    glance = facts(candidates=f"{len(rows):,}", requests=f"{requests:,}")
    return store.result("scored_candidates", **{GLANCE: glance, "dagster/row_count": len(rows), "requests": requests})


@stage(**SERVING, deps=["scored_candidates"], tags=REPORT, automation_condition=WHEN_INPUTS_CHANGE, kinds={"iceberg"})
def rerank_report(store: Warehouse) -> dg.MaterializeResult:
    """What variety costs: how much of the relevance a slate keeps as the weight of the term for variety grows.

    Look at: the weight from which on more loss buys little more variety; that is the one to set.
    """
    candidates = ScoredCandidates.of(store.table("scored_candidates").scan().to_arrow())
    points = sweep(weight_grid(SLATE, "volume", WEIGHTS), **candidates.arguments(), measured=list(candidates.columns))
    report = curve_table(points)
    store.write_report("rerank_report", report)
    return store.result("rerank_report", **curve_metadata(report))


@dg.asset_check(
    asset=rerank_report,
    description="The largest weight gives slates whose picks lie further apart than those of the scores alone, and "
    "the scores alone give up nothing. Where every request has one candidate there is nothing to compare.",
)
def variety_rises(store: Warehouse) -> dg.AssetCheckResult:
    rows = store.table("rerank_report").scan().to_arrow().to_pylist()
    found = {(row["point"], row["figure"]): row["value"] for row in rows}
    alone, most = (found.get((point, "mean_distance")) for point in (SCORES_ALONE, f"volume {WEIGHTS[-1]:g}"))
    if alone is None or most is None:
        return dg.AssetCheckResult(passed=True, metadata={"slates_of_two_or_more": 0})
    passed = most > alone and abs(found[SCORES_ALONE, "dcg_ratio"] - 1) < 1e-9
    return dg.AssetCheckResult(passed=passed, metadata={"scores_alone": alone, "largest_weight": most})
