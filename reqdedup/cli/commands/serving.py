"""`reqdedup serve`: bundles behind HTTP."""

from __future__ import annotations

import dataclasses
import gc
import logging
import sys
from pathlib import Path

import click

from reqdedup.cli.options import BYTES, NUMBER, POSITIVE, OneOf, Options, option, subcommand
from reqdedup.cli.output import print_json, say


@subcommand(
    help="answer ranking, retrieval and recommendation over HTTP",
    description="Serves exported models (docs/serving.md). BUNDLE is a bundle, or a place where both were published "
    "(the asset serving_bundle); s3://... too. With a ranking and a retrieval bundle it answers the whole funnel. "
    "Histories and request features come from the store, or with the requests. Ends on SIGTERM or Ctrl-C once what it "
    "admitted is answered.",
    examples=[
        "reqdedup serve bundles/ranking bundles/retrieval --store store.db",
        "reqdedup serve place --store store.db --workers 2 --port 8080 --watch 5",
        "reqdedup serve place --host 0.0.0.0 --token token.txt --tls-certificate cert.pem --tls-key key.pem",
    ],
)
@click.argument("bundle", nargs=-1, required=True)
@option("--copies", metavar="DIR", help="folder for copies of bundles of an object store; unused ones are removed")
@option("--store", metavar="FILE", help="the store (`reqdedup store fill`), or valkey://HOST")
@option("--user-states", metavar="FILE", help="states computed ahead, by the asset user_states; read at the start")
@option("--impressions", metavar="DIR", help="log what /v1/recommend shows there (`reqdedup impressions`)")
@option("--funnel", metavar="FILE", help="TOML of /v1/recommend: how many items each step passes on, re-ranking")
@option(
    "--on-missing-history",
    type=OneOf(["refuse", "empty"]),
    default="refuse",
    help="if a history cannot be read: an error, or an empty one, marked in the answer (default: refuse)",
)
@option(
    "--max-feature-age",
    type=NUMBER,
    default=172_800.0,
    metavar="SECONDS",
    help="mark answers whose stored request features are older (default: 172800, two days)",
)
@option(
    "--deterministic/--fast",
    default=True,
    help="the same bits whatever cache and step held, or faster (default: deterministic)",
)
@option("--device", default="cpu", metavar="NAME", help="cpu (default) or cuda")
@option(
    "--cache-bytes",
    type=BYTES,
    metavar="N",
    help="kept contexts of a process, 0: none are kept (default: 268435456)",
)
@option(
    "--kv-type",
    type=OneOf(["full", "float16", "int8"]),
    default="full",
    help="keys and values of kept contexts: as computed, or rounded to half or a quarter of the bytes (default: full)",
)
@option("--workers", type=POSITIVE, default=1, metavar="N", help="processes, each with its own users (default: 1)")
@option("--host", default="127.0.0.1", help="another than a loopback one needs --token (default: 127.0.0.1)")
@option(
    "--port",
    type=int,
    default=8080,
    metavar="N",
    help="0: a free one; the URL is printed once it answers (default: 8080)",
)
@option("--token", metavar="FILE", help="a file with the bearer token that requests must carry")
@option("--tls-certificate", metavar="FILE", help="PEM")
@option("--tls-key", metavar="FILE", help="PEM")
@option("--max-candidates", type=POSITIVE, metavar="N", help="of a request (default: 4096)")
@option(
    "--max-wait",
    type=NUMBER,
    metavar="MS",
    help="of a request for its turn, as expected when it comes; who would wait longer is refused (default: 100)",
)
@option("--max-waiting", type=POSITIVE, metavar="N", help="requests in the queue of a process (default: 64)")
@option(
    "--watch",
    type=NUMBER,
    default=0.0,
    metavar="SECONDS",
    help="load a bundle again when it changes, looking this often",
)
@option("--load-from", metavar="DIR", help="folder from which POST /v1/models may load bundles (default: none)")
@option("--drain", type=NUMBER, default=30.0, metavar="SECONDS", help="for what was admitted, at the end (default: 30)")
def serve(arguments: Options) -> int:
    """Serve until a signal."""
    from reqdedup.serving.limits import CACHE_BYTES, Limits
    from reqdedup.serving.scheduler import SchedulerLimits
    from reqdedup.serving.server.door import Access, listen
    from reqdedup.serving.server.settings import ServeSettings

    token = None
    if arguments.token:
        token = Path(arguments.token).read_text().strip()
        if not token:
            raise ValueError(f"{arguments.token}: a token required, found an empty file")
    access = Access(
        host=arguments.host,
        port=arguments.port,
        token=token,
        certificate=arguments.tls_certificate,
        key=arguments.tls_key,
    )
    limits, queue = Limits(), SchedulerLimits()
    if arguments.max_candidates:
        limits = dataclasses.replace(limits, max_candidates=arguments.max_candidates)
    if arguments.max_wait is not None:
        queue = dataclasses.replace(queue, max_wait_ms=arguments.max_wait)
    if arguments.max_waiting:
        queue = dataclasses.replace(queue, max_waiting=arguments.max_waiting)
    settings = ServeSettings(
        bundles=tuple(arguments.bundle),
        copies=arguments.copies,
        store=arguments.store,
        user_states=arguments.user_states,
        impressions=arguments.impressions,
        funnel=arguments.funnel,
        may_load_from=arguments.load_from,
        watch_s=arguments.watch,
        on_missing_history=arguments.on_missing_history,
        max_feature_age_s=arguments.max_feature_age,
        deterministic=arguments.deterministic,
        device=arguments.device,
        cache_bytes=CACHE_BYTES if arguments.cache_bytes is None else arguments.cache_bytes,
        kv_type=arguments.kv_type,
        workers=arguments.workers,
        drain_s=arguments.drain,
        access=access,
        limits=limits,
        queue=queue,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    door = listen(access)
    access = dataclasses.replace(access, port=door.getsockname()[1])
    settings = dataclasses.replace(settings, access=access)

    def answers() -> None:
        if arguments.json:
            print_json({"url": access.url, "bundles": settings.bundles, "workers": settings.workers})
        else:
            say(f"{access.url}/docs  ({', '.join(settings.bundles)})")
        sys.stdout.flush()

    gc.disable()  # until the door opens: what libraries make as they are loaded stays
    try:
        if settings.workers > 1:
            from reqdedup.serving.server.workers import serve_workers

            serve_workers(settings, [door], answers=answers)
        else:
            from reqdedup.serving.server.process import serve_process

            serve_process(settings, [door], answers=answers)
    finally:
        gc.enable()
    return 0


COMMANDS = (serve,)
