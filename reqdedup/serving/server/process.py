"""One process that serves: bundles and store behind the application, one compute thread, until it is told to end."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from reqdedup.serving.scheduler import Scheduler
from reqdedup.serving.server.app import Application, Service
from reqdedup.serving.server.door import run_until_signal
from reqdedup.serving.server.loading import Loader
from reqdedup.serving.server.metrics import Metrics
from reqdedup.serving.server.settings import ServeSettings
from reqdedup.serving.server.swap import Models
from reqdedup.serving.server.watching import Watch

logger = logging.getLogger(__name__)


def serve_process(
    settings: ServeSettings,
    sockets: list[socket.socket],
    *,
    worker: int | None = None,
    answers: Callable[[], None] = lambda: None,
) -> None:
    """Serve on these sockets until SIGTERM or SIGINT; then finish what was admitted. worker: its number, for metrics.
    answers: called once it answers.

    Raises ValueError for a bundle or a store that cannot be served, before anything is answered.
    """
    torch.set_num_threads(1)
    watched = settings.bundles if settings.watch_s else ()
    watch = Watch(watched, copies=settings.copies) if worker is None and watched else None
    loader = Loader(settings, worker=worker)
    first, previous, shadow = loader.start()
    scheduler = Scheduler(settings.queue)
    models = Models(loader.put, first, scheduler, previous=previous, shadow=shadow, changed=loader.changed)
    loader.changed(models, is_start=True)
    metrics = Metrics({} if worker is None else {"worker": str(worker)})
    service = Service(
        models=models,
        scheduler=scheduler,
        limits=settings.limits,
        metrics=metrics,
        store=loader.store,
        event_columns=loader.event_columns(),
        impressions=loader.impressions,
        bundles=Path(settings.may_load_from) if settings.may_load_from else None,
        watched=watched,
        folders=settings.folders,
        needs_store=settings.on_missing_history == "refuse",
        is_ready=True,
    )
    application = Application(service)
    is_ending = threading.Event()
    if watch is not None:
        looking = threading.Thread(target=watch.run, args=[models.load, settings.watch_s, is_ending], daemon=True)
        looking.start()
    try:
        run_until_signal(
            application, settings.access, settings.limits, sockets, drain_s=settings.drain_s, answers=answers
        )
    finally:
        is_ending.set()
        application.close()
        if loader.impressions is not None:
            loader.impressions.close()
        logger.info("drained")
