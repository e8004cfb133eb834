"""`make run` executes the graph as a run that `make ui` knows as its own.

Dagster 1.13 shows on its first page only runs that say which code location their job is of, and `execute_in_process`
has no way to say it: after `make run`, `make ui` opened with "No runs". So the run is recorded as one that was launched
from the code location of `workspace.yaml`, and executed here as a launched run is executed in its own process. That
ends once `execute_in_process` takes the origin of a job.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.workspace.load_target import WorkspaceFileTarget

WORKSPACE = Path(__file__).with_name("workspace.yaml")
LOCATION = "reqdedup"


def execute(
    definitions: dg.Definitions, job_name: str, instance: dg.DagsterInstance, *, assets: Sequence[dg.AssetKey] | None
) -> dg.JobExecutionResult:
    """Run the job in this process, with these assets alone if any are named; what fails is in the result."""
    repository = definitions.get_repository_def()
    job, selection = definitions.resolve_job_def(job_name), frozenset(assets or ())
    chosen = job.get_subset(asset_selection=selection) if selection else job
    run = instance.create_run_for_job(
        chosen,
        tags=chosen.run_tags,
        asset_selection=selection or None,
        remote_job_origin=origin(repository.name, job_name),
    )
    return execute_run(InMemoryJob(job), run, instance)


def origin(repository_name: str, job_name: str) -> RemoteJobOrigin:
    """Where the UI has this job from."""
    locations = WorkspaceFileTarget([str(WORKSPACE)]).create_origins()
    (location,) = [one for one in locations if one.location_name == LOCATION]
    return RemoteRepositoryOrigin(location, repository_name).get_job_origin(job_name)
