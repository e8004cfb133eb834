"""The console line of a run: seconds since its start, the asset, what it does.

Dagster's own console logger prints every engine event with run and process ids; a person who waits wants to see what
runs, how far it is and how long it took.
"""

from __future__ import annotations

import logging
import re
import sys
import time

import dagster as dg
from dagster import DagsterEventType
from dagster._core.execution import context_creation_job
from dagster_shared.error import SerializableErrorInfo


class ProgressFormatter(logging.Formatter):
    """Formats the events that a person waits for; everything else comes out empty and is dropped by the handler."""

    def __init__(self, *, min_level: int = logging.INFO) -> None:
        super().__init__()
        self.min_level = min_level
        self.started = time.monotonic()
        self.step_started: dict[str, float] = {}
        self.checks: set[str] = set()

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", None) or {}
        event = meta.get("dagster_event")
        step = meta.get("step_key") or ""
        if event is not None:
            text = self._event_text(event, step)
        else:
            text = meta.get("orig_message") if record.levelno >= self.min_level else None
            if text and text.startswith("Dependencies for step "):  # what follows from a failure that was said before
                text = None
        if not text:
            return ""
        return f"{time.monotonic() - self.started:7.1f} s  {step:<44} {text}"

    def _event_text(self, event: dg.DagsterEvent, step: str) -> str | None:
        match event.event_type:
            case DagsterEventType.STEP_START:
                self.step_started[step] = time.monotonic()
                return "starts"
            case DagsterEventType.STEP_SUCCESS if step not in self.checks:
                return f"done in {time.monotonic() - self.step_started.get(step, time.monotonic()):.1f} s"
            case DagsterEventType.ASSET_CHECK_EVALUATION:
                self.checks.add(step)
                found = event.asset_check_evaluation_data
                if found.passed:
                    return "passed"
                detail = found.metadata.get("detail")
                said = f": {detail.value}" if detail is not None else ", its metadata says what was found"
                return f"{'WARNS' if found.severity is dg.AssetCheckSeverity.WARN else 'FAILED'}{said}"
            case DagsterEventType.STEP_FAILURE:
                error = getattr(event.event_specific_data, "error", None)
                return f"FAILED: {reason(error) or event.message}"
            case DagsterEventType.RESOURCE_INIT_FAILURE:
                return None  # the run's failure follows, with the reason
            case DagsterEventType.RUN_FAILURE:
                return f"run failed: {_reason_of_run(event)}"
        return None


def reason(error: SerializableErrorInfo | None) -> str:
    """What went wrong, without Dagster's wrapping and without its traceback; empty if there is no error.

    What an error of ours was raised from says less than the error itself.
    """
    while error is not None and error.cause is not None and (error.cls_name or "").startswith("Dagster"):
        error = error.cause
    if error is None:
        return ""
    if error.cls_name == "ValidationError":
        return _of_fields(error.message)
    return re.sub(r"^(\w+\.)+(?=\w+: )", "", error.message.strip())


def _reason_of_run(event: dg.DagsterEvent) -> str:
    data = event.job_failure_data
    first = data.first_step_failure_event
    if first is not None:
        return f"{first.step_key}: {reason(first.step_failure_data.error)}"
    return reason(data.error) or event.message or "no reason was given"


def _of_fields(message: str) -> str:
    """What pydantic says of a configuration's fields, on one line."""
    head, *lines = message.strip().splitlines()
    said = [line for line in lines if "For further information" not in line]
    text = re.sub(r" \[type=\w+, input_value=(.*), input_type=\w+\]", r", found \1;", " ".join(map(str.strip, said)))
    return f"{head.rpartition(' ')[2]}: {text.rstrip(';')}"


class _DropEmpty(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if text:
            self.stream.write(text + self.terminator)
            self.flush()


@dg.logger({"log_level": dg.Field(str, is_required=False, default_value="INFO")}, description="One line per step.")
def progress_logger(init_context: dg.InitLoggerContext) -> logging.Logger:
    """Readable progress on standard error."""
    level = init_context.logger_config["log_level"]
    logger = logging.Logger("reqdedup.progress", level=logging.DEBUG)  # Dagster's events come at DEBUG
    handler = _DropEmpty(sys.stderr)
    handler.setFormatter(ProgressFormatter(min_level=logging.getLevelName(level)))
    logger.addHandler(handler)
    return logger


def log_readably() -> None:
    """Make `progress_logger` that of every run in this process whose configuration names none.

    Dagster 1.13 takes its own logger then, whatever loggers the definitions have, and its instance's settings can only
    silence it together with what the UI shows. So the function that it asks is replaced (decision 56); that ends once
    definitions can name a default logger.
    """
    context_creation_job.default_system_loggers = lambda instance: [(progress_logger, {"log_level": "INFO"})]
