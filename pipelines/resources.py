"""What the code locations give their assets and jobs, as the environment says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assets.own_tables import OwnLake
from assets.resources import Warehouse
from assets.run_recipe import RunRecipe
from pipelines.environment import Environment
from reqdedup.environment import LakePlace


class DeployedWarehouse(Warehouse):
    """Where a run's tables go: the lake that the environment names, a namespace of it; and on which engine.

    The environment is read when the lake is opened, so that Dagster never holds a credential.

    Another data_dir, given at launch, is an argument: it stands alone beside an embedded lake.
    """

    def place(self) -> LakePlace:
        lake = Environment.from_os().lake
        given = lake.data_dir is not None and lake.data_dir.resolve() != Path(self.data_dir).resolve()
        return super().place() if given else lake


class DeployedLake(OwnLake):
    """The same lake for the jobs on tables of one's own."""

    def default_place(self) -> LakePlace:
        return Environment.from_os().lake


def deployed(environment: Environment) -> dict[str, Any]:
    """The resources of a code location.

    At launch, so that a run's configuration of one field leaves the others as they are here, not at their class's
    defaults.
    """
    run_recipe = RunRecipe.configure_at_launch(
        recipe=environment.recipe,
        logs=environment.logs,
        preset=environment.preset or None,
        mapping=environment.mapping,
        events=environment.events,
        sequences=environment.sequences,
        histories=environment.histories,
        strict=environment.strict,
        max_rejects=environment.max_rejects,
    )
    return {
        "store": DeployedWarehouse.configure_at_launch(
            run_recipe=run_recipe,
            namespace=environment.namespace,
            data_dir=str(environment.data_dir),
            take_over=environment.take_over,
        ),
        "run_recipe": run_recipe,
        "own_lake": DeployedLake.configure_at_launch(),
    }
