"""User sequences: events as they are delivered, the timeline, and how good it is. They advance from a watermark, so
that nothing here is partitioned."""

from itertools import islice

import dagster as dg

import warehouse
from assets.metadata import GLANCE, quality_metadata
from assets.pictures import facts
from assets.recipes import Recipe
from assets.resources import RunRecipe, Warehouse
from assets.stages import LOG, REPORT, STORAGE, TABLE, WHEN_INPUTS_CHANGE, stage
from reqdedup.display import format_bytes
from reqdedup.logs.synthetic_events import EVENT_COLUMNS, EVENT_TYPES, synthetic_events, synthetic_items
from reqdedup.sequences.batch import advance, check_timeline
from reqdedup.sequences.definition import Enrichment, EventLog, EventType, SequenceDefinition
from reqdedup.sequences.intake import append_events
from reqdedup.sequences.predicate import col
from reqdedup.sequences.published import DefinitionFile, publish_definitions, read_definitions
from reqdedup.sequences.quality import QUALITY_TABLE, check_quality, sequence_quality, waiting_events
from reqdedup.sequences.sources import EventSource, IteratorSource, event_files
from reqdedup.sequences.timeline import open_timeline

ITEMS = "event_items"
NO_EVENTS = "no events: this run is of a log of your own; name its events in run_recipe.events"


def synthetic_definitions(namespace: str) -> DefinitionFile:
    """What the synthetic stream is read by: what users engaged with, and the clicks alone."""
    item = Enrichment("item", f"{namespace}.{ITEMS}", "item_id", ["category"])
    long_views = EventType("view", where=col("duration_s") >= 10)
    engaged = SequenceDefinition(
        name="engaged",
        owner="graph",
        events=[EventType("click"), EventType("save"), long_views],
        enrichments=[item],
        columns=["item_id", "event_type", "event_ts", "category"],
        last_n=200,
        stage="production",
    )
    clicked = SequenceDefinition(
        name="clicked", owner="graph", events=[EventType("click")], columns=["item_id"], last_n=50, stage="production"
    )
    return DefinitionFile(EventLog(types=EVENT_TYPES, columns=EVENT_COLUMNS), (engaged, clicked))


def definitions_of(run_recipe: RunRecipe, store: Warehouse) -> DefinitionFile:
    return (
        read_definitions(run_recipe.sequences)
        if run_recipe.sequences
        else synthetic_definitions(store.resolved_namespace)
    )


@stage(**STORAGE, tags=LOG, kinds={"iceberg"})
def raw_events(store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """What users did, as it was delivered: late, delivered twice, by day of arrival. Sequences are made from it.

    Of files of your own (`events`, with `sequences`), those that were not delivered before; else a synthetic stream.
    What is no event goes to `rejected_events` with the reason. Look at: how many were rejected.
    """
    if run_recipe.logs and not run_recipe.events:
        return store.result(note=NO_EVENTS)
    catalog, namespace = store.catalog(), store.resolved_namespace
    warehouse.open_namespace(catalog, namespace)
    log = definitions_of(run_recipe, store).log
    if run_recipe.events:
        sources: list[EventSource] = [*event_files(run_recipe.events_path)]
    else:
        sources = [_synthetic(store, run_recipe.get())]
    reports = [append_events(catalog, namespace, log, one.batches(log), source=one.name) for one in sources]
    new = sum(one.num_events for one in reports)
    rejected = sum(one.num_rejected for one in reports)
    known = sum(one.is_known for one in reports)
    return store.result(
        "raw_events",
        **{GLANCE: facts(new_sources=f"{len(reports) - known:,}", events=f"{new:,}", rejected=f"{rejected:,}")},
        new_sources=len(reports) - known,
        new_events=new,
        rejected_rows=rejected,
        arrived_backwards=sum(one.num_backwards for one in reports),
    )


def _synthetic(store: Warehouse, recipe: Recipe) -> EventSource:
    """The stream of a recipe up to the end of its days: what arrives after it has not arrived yet."""
    config = recipe.events
    store.write_report(ITEMS, synthetic_items(config, width=4))
    name = f"synthetic, seed {config.seed}, from {config.start_us}"
    return IteratorSource(name, islice(synthetic_events(config), config.num_days))


@stage(**STORAGE, deps=["raw_events"], tags=TABLE, kinds={"iceberg"})
def user_events(store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """The timeline: each user's events in the order of arrival, once, filtered and enriched by the definitions.

    Appends what was delivered since the last run, in one commit; a run that is repeated finds nothing to do. Look at:
    what was dropped as delivered twice, and what had no row of an enrichment.
    """
    if run_recipe.logs and not run_recipe.events:
        return store.result(note=NO_EVENTS)
    catalog, namespace, found = store.catalog(), store.resolved_namespace, definitions_of(run_recipe, store)
    publish_definitions(catalog, namespace, found.log, found.definitions)
    report = advance(catalog, namespace, num_buckets=run_recipe.get().num_buckets)
    counts = dict(vars(report.counts))
    unmatched = {f"without_{name}": count for name, count in counts.pop("unmatched").items()}
    glance = facts(
        delivered=f"{report.counts.num_delivered:,}",
        kept=f"{report.counts.num_kept:,}",
        delivered_twice=f"{report.counts.num_duplicates:,}",
        late=f"{report.counts.num_late:,}",
        written=format_bytes(report.num_bytes),
    )
    return store.result(
        "user_events", **{GLANCE: glance}, version=str(report.version), new_files=report.num_files,
        new_bytes=report.num_bytes,
        **{name.removeprefix("num_"): count for name, count in counts.items()}, **unmatched,
    )  # fmt: skip


@stage(**STORAGE, deps=["user_events"], tags=REPORT, automation_condition=WHEN_INPUTS_CHANGE, kinds={"iceberg"})
def sequence_report(store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """How good the sequences are, by day and event type: lag, late, delivered twice, rejected, coverage, nulls.

    In the table `sequence_quality`. Look at: the checks, of the last day against limits and the days before.
    """
    if run_recipe.logs and not run_recipe.events:
        return store.result(note=NO_EVENTS)
    report = sequence_quality(store.catalog(), store.resolved_namespace)
    store.write_report(QUALITY_TABLE, report)
    return store.result(QUALITY_TABLE, **quality_metadata(report))


@dg.asset_check(
    asset=user_events,
    description="Each user's events are numbered without a gap, in the order of arrival; ranks rise by one at most.",
    blocking=True,
)
def numbered_by_arrival(store: Warehouse) -> dg.AssetCheckResult:
    if not store.catalog().table_exists(store.identifier("user_events")):
        return dg.AssetCheckResult(passed=True, metadata={"note": NO_EVENTS})
    num_events = check_timeline(open_timeline(store.catalog(), store.resolved_namespace))
    return dg.AssetCheckResult(passed=True, metadata={"checked": num_events})


@dg.asset_check(
    asset=user_events,
    additional_deps=["raw_events"],
    description="Every delivered event has been taken into the timeline or left out for a reason: none waits.",
)
def fresh(store: Warehouse) -> dg.AssetCheckResult:
    if not store.catalog().table_exists(store.identifier("user_events")):
        return dg.AssetCheckResult(passed=True, metadata={"note": NO_EVENTS})
    waiting = waiting_events(store.catalog(), store.resolved_namespace)
    return dg.AssetCheckResult(
        passed=waiting == 0, severity=dg.AssetCheckSeverity.WARN, metadata={"waiting_events": waiting}
    )


def _quality_check(name: str, description: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=sequence_report, name=name, description=description)
    def quality_check(store: Warehouse) -> dg.AssetCheckResult:
        if not store.catalog().table_exists(store.identifier(QUALITY_TABLE)):
            return dg.AssetCheckResult(passed=True, metadata={"note": NO_EVENTS})
        report = store.table(QUALITY_TABLE).scan().to_arrow()
        (found,) = [one for one in check_quality(report) if one.name == name]
        return dg.AssetCheckResult(
            passed=found.ok,
            severity=dg.AssetCheckSeverity.WARN,  # of who delivers, more than of what is here
            metadata={"checked": found.checked, "detail": "\n".join(found.wrong) or "within the limits"},
        )

    return quality_check


lag = _quality_check("lag", "Events of the last day arrived within a minute in the median, few of them late.")
coverage = _quality_check("coverage", "Nearly all events of the last day have a value of every enrichment.")
null_drift = _quality_check("null_drift", "Shares of nulls on the last day are those of the days before.")
