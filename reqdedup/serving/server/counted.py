"""Which metrics a serving process has."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping

from reqdedup.serving.impressions.log import ImpressionLog
from reqdedup.serving.scheduler import Scheduler
from reqdedup.serving.server.metrics import Labels, Metrics
from reqdedup.serving.server.swap import Models


def describe_metrics(
    metrics: Metrics, scheduler: Scheduler, models: Models, impressions: ImpressionLog | None = None
) -> None:
    counts = scheduler.counts
    metrics.describe("reqdedup_requests_total", "counter", "Requests answered, by path and status.")
    metrics.describe("reqdedup_request_seconds", "histogram", "Seconds from the head of a request to its answer.")
    metrics.describe("reqdedup_contexts_total", "counter", "Answers by where their context came from.")
    metrics.describe("reqdedup_marked_answers_total", "counter", "Answers that had to do without something.")
    metrics.describe("reqdedup_dropped_columns_total", "counter", "Columns sent that the model does not read.")
    metrics.describe("reqdedup_unknown_keys_total", "counter", "Keys in filters that no item has.")
    read = metrics.read
    read("reqdedup_queue_requests", "gauge", "Requests that wait.", lambda: scheduler.waiting[0])
    read("reqdedup_queue_rows", "gauge", "Candidates of the requests that wait.", lambda: scheduler.waiting[1])
    read("reqdedup_expected_wait_seconds", "gauge", "What a request that comes would wait.", lambda: scheduler.wait_s)
    read("reqdedup_refused_total", "counter", "Requests refused because the queue was full.", lambda: counts.refused)
    read("reqdedup_expired_total", "counter", "Requests whose deadline passed in the queue.", lambda: counts.expired)
    read("reqdedup_abandoned_total", "counter", "Requests whose sender left the queue.", lambda: counts.abandoned)
    read("reqdedup_steps_total", "counter", "Steps computed.", lambda: counts.steps)
    read("reqdedup_step_requests_total", "counter", "Requests of all steps.", lambda: counts.step_requests)
    read("reqdedup_step_rows_total", "counter", "Candidates of all steps.", lambda: counts.step_rows)
    read("reqdedup_step_seconds_total", "counter", "Seconds inside steps.", lambda: counts.busy_s)
    read("reqdedup_step_cpu_seconds_total", "counter", "CPU seconds of steps.", lambda: counts.cpu_s)
    read("reqdedup_waited_seconds_total", "counter", "Seconds in the queue, of all requests.", lambda: counts.waited_s)
    read("reqdedup_model_swaps_total", "counter", "Changes of what serves.", lambda: models.swaps)
    read("reqdedup_shadow_requests_total", "counter", "Requests scored by the shadow.", lambda: models.report.requests)
    read("reqdedup_shadow_equal_total", "counter", "Of those, with all bits equal.", lambda: models.report.equal)
    read("reqdedup_shadow_failed_total", "counter", "Of those, failed.", lambda: models.report.failed)
    read(
        "reqdedup_shadow_max_difference",
        "gauge",
        "Largest difference of a logit.",
        lambda: models.report.max_difference,
    )

    if impressions is not None:
        log = impressions
        read("reqdedup_impressions_written_total", "counter", "Records logged.", lambda: log.counts().written)
        read("reqdedup_impressions_dropped_total", "counter", "Records lost.", lambda: log.counts().dropped)

    def served() -> Mapping[Labels, float]:
        parts = models.current.parts.values()
        return {(("task", part.task), ("version", part.fingerprint)): 1.0 for part in parts}

    def caches() -> Mapping[Labels, float]:
        return {
            (("task", part.task), ("name", name)): value
            for part in models.current.parts.values()
            for name, value in part.gauges().items()
        }

    read("reqdedup_model", "gauge", "The models that serve now.", served)
    read("reqdedup_cache", "gauge", "Caches of the models that serve now: entries, bytes, hits, misses.", caches)
    read("process_cpu_seconds_total", "counter", "CPU seconds of the process.", time.process_time)
    read("process_resident_memory_bytes", "gauge", "Memory of the process.", _resident_bytes)


def _resident_bytes() -> float:
    try:
        with open("/proc/self/statm") as file:
            return float(int(file.read().split()[1]) * resource.getpagesize())
    except OSError:  # no Linux: the most that it ever was, in kilobytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
