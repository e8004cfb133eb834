"""`make run`: materialize the whole graph in this process, with progress, then print what came out.

python -m pipelines.run [--recipe laptop] [--logs PATH --preset movielens | --mapping FILE] [--select ASSETS]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import dagster as dg

from assets.recipes import RECIPES
from pipelines.dead_runs import fail_dead_runs
from pipelines.definitions import build_definitions
from pipelines.environment import Environment, share
from pipelines.launched import execute
from pipelines.summary import print_summary
from reqdedup.distributed.engine import named_engine
from reqdedup.environment import ENGINE_VARIABLE, variables

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if every asset was made and every check passed or only warned, 1 if one failed, 2 if the run was
    refused at its start."""
    arguments = _parse(argv)
    environment = Environment.from_os().with_arguments(
        recipe=arguments.recipe,
        logs=str(Path(arguments.logs).resolve()) if arguments.logs else "",
        preset=arguments.preset,
        mapping=str(Path(arguments.mapping).resolve()) if arguments.mapping else "",
        namespace=arguments.namespace,
        strict=arguments.strict,
        max_rejects=arguments.max_rejects,
        take_over=arguments.take_over,
    )
    if environment.logs and not (environment.preset or environment.mapping):
        print(
            "error: LOGS needs PRESET=<name> (movielens, mind, kuairand, ...) or MAPPING=<toml file>; see docs/mapping.md",
            file=sys.stderr,
        )
        return 2
    if not variables().get("DAGSTER_HOME"):
        print(
            f"error: DAGSTER_HOME: a folder for Dagster's runs required, found none; `make run` sets it, or: export "
            f"DAGSTER_HOME={ROOT / '.dagster'}",
            file=sys.stderr,
        )
        return 2
    try:
        if engine := variables().get(ENGINE_VARIABLE):
            named_engine(engine)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    definitions = build_definitions(environment)
    job = definitions.resolve_job_def("everything")
    selection = [dg.AssetKey(name.strip()) for name in arguments.select.split(",")] if arguments.select else None
    known = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    if unknown := [key.to_user_string() for key in selection or [] if key.to_user_string() not in known]:
        print(
            f"error: --select: assets among {', '.join(sorted(known))} required, found {', '.join(unknown)}",
            file=sys.stderr,
        )
        return 2
    started = time.monotonic()
    what = environment.logs or f"a synthetic log, recipe {environment.recipe}"
    print(f"reqdedup: {what} -> namespace {environment.resolved_namespace}", file=sys.stderr, flush=True)
    with dg.DagsterInstance.get() as instance:
        for dead in fail_dead_runs(instance):
            print(dead, file=sys.stderr)
        result = execute(definitions, "everything", instance, assets=selection)
        if result.success:
            print_summary(instance, environment, run_id=result.run_id, seconds=time.monotonic() - started)
    refusals = result.filter_events(lambda event: event.event_type is dg.DagsterEventType.RESOURCE_INIT_FAILURE)
    failed_checks = [
        check
        for check in result.get_asset_check_evaluations()
        if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR
    ]
    for check in failed_checks:
        print(f"check failed: {check.asset_key.to_user_string()} {check.check_name}: {check.metadata}", file=sys.stderr)
    if refusals:
        return 2
    return 0 if result.success and not failed_checks else 1


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.run", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=sorted(RECIPES), default=None, help="size of the run (default laptop)")
    parser.add_argument("--logs", default="", help="your own log: a file or a folder")
    parser.add_argument("--preset", default="", help="how to read it: movielens, mind, kuairand, ...")
    parser.add_argument("--mapping", default="", help="how to read it: a TOML file that names the columns")
    parser.add_argument("--namespace", default="", help="namespace of the tables (default: named for log or recipe)")
    parser.add_argument("--take-over", action="store_true", help="take the namespace from a run that died elsewhere")
    parser.add_argument("--strict", action="store_true", help="fail when rows of the log are rejected")
    parser.add_argument("--max-rejects", type=share, help="fail when a larger share is rejected (default 0.1)")
    parser.add_argument("--select", default="", help="only these assets, by comma")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
