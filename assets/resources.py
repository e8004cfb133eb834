"""What every asset is given: the recipe of this run, and the catalog with the namespace that belongs to its log."""

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import dagster as dg
import pyarrow as pa
from pydantic import Field
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

import warehouse
from assets.engine import OnEngine
from assets.metadata import table_metadata
from assets.run_recipe import RunRecipe
from reqdedup.environment import LakePlace
from reqdedup.ingest import IngestReport, ingest
from reqdedup.logs import LogReader
from reqdedup.schema import Column, EngagementSchema
from reqdedup.storage import FeatureReport, WriteReport, replace_feature_table
from reqdedup.storage.features.values import Compute
from reqdedup.storage.tasks.write import Rows
from warehouse.catalogs import DATA_DIR

LOG_EVERY_S = 2.0
PROCESS_TAG = ".dagster/reqdedup/process"
"""Tag of a run, not shown in the UI: the process that works on it, by which a run that was killed is found out."""
NAMESPACE_TAG = "namespace"


class Warehouse(OnEngine):
    """The catalog and the namespace that holds this run's tables; the embedded catalog unless a subclass knows another.

    The namespace is the one given, else that of the run's own log, so that a run launched with another log moves there.
    A run has its namespace to itself from the first asset to the last, and never writes over another log's unless it
    was given. Credentials are no field of it: Dagster shows the fields of a resource in its UI.
    """

    run_recipe: dg.ResourceDependency[RunRecipe]
    namespace: str = Field(
        default="", description="Namespace of the tables. Empty: named for the run's own log, or for its recipe."
    )
    data_dir: str = Field(default=str(DATA_DIR), description="Folder of the embedded catalog, tables and models.")
    take_over: bool = Field(
        default=False, description="Take the namespace from a run of another machine, if that run is known to be dead."
    )

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        run = context.run
        if run is None or context.instance is None:  # made for a look at the tables, not for a run
            return
        self.run_recipe.check_log()
        warehouse.check_name(self.resolved_namespace)
        instance, catalog, record = context.instance, self.catalog(), self.run_recipe.log_record()
        mine = warehouse.GraphRun.begin(run.run_id, record[warehouse.LOG])
        tag_process(context)
        instance.add_run_tags(run.run_id, {NAMESPACE_TAG: self.resolved_namespace})

        def is_finished(run_id: str) -> bool:
            other = instance.get_run_by_id(run_id)
            return other is not None and other.is_finished

        warehouse.claim(catalog, self.resolved_namespace, mine, is_finished=is_finished, take_over=self.take_over)
        try:
            if not _names_namespace(run.run_config, self.namespace):
                warehouse.check_same_log(catalog, self.resolved_namespace, record)
        except BaseException:
            warehouse.release(catalog, self.resolved_namespace, run.run_id)
            raise

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        if context.run is not None and context.instance is not None:
            warehouse.release(self.catalog(), self.resolved_namespace, context.run.run_id)

    @property
    def resolved_namespace(self) -> str:
        return self.namespace or self.run_recipe.namespace

    def identifier(self, name: str) -> str:
        """A table's full name."""
        return f"{self.resolved_namespace}.{name}"

    def place(self) -> LakePlace:
        return warehouse.embedded_catalog(self.data_dir)

    def catalog(self) -> Catalog:
        return warehouse.open_catalog(self.place())

    def result(self, table: str = "", /, **metadata: Any) -> dg.MaterializeResult:
        """The result of an asset. table: the one that it made, of which the UI is told what it can show.

        Its metadata says which namespace it speaks about, and numbers have it before their name: Dagster draws a name's
        numbers over all runs, and the runs of one log are no course of another's.
        """
        every = {**(table_metadata(self.table(table)) if table else {}), **metadata}
        numbers = {
            name for name, value in every.items() if type(value) in (int, float) and not name.startswith("dagster/")
        }
        return dg.MaterializeResult(
            metadata={
                **{name: value for name, value in metadata.items() if name not in numbers},
                "namespace": self.resolved_namespace,
                **{name: value for name, value in every.items() if name not in numbers},
                **{f"{self.resolved_namespace}/{name}": every[name] for name in every if name in numbers},
            }
        )

    def write(
        self,
        name: str,
        schema: EngagementSchema,
        batches: Rows,
        *,
        num_buckets: int,
        progress: Callable[[object], None],
        properties: Mapping[str, str] | None = None,
    ) -> WriteReport:
        """Make the table `name` hold exactly these rows, in the layout that the warehouse has for it.

        properties: of the table, set in the same commit: what its rows were made from.
        """
        return warehouse.replace_engagement_table(
            self.catalog(),
            self.resolved_namespace,
            name,
            schema,
            batches,
            num_buckets=num_buckets,
            progress=progress,
            properties=properties,
        )

    def ingest(self, name: str, log: LogReader, **options: Any) -> IngestReport:
        """The same for a log of the user's own; its rejected rows go beside it (`reqdedup.ingest`)."""
        catalog, layout = self.catalog(), warehouse.ENGAGEMENT_TABLES[name]
        warehouse.open_namespace(catalog, self.resolved_namespace)
        return ingest(catalog, self.identifier(name), log, layout, replace=True, **options)

    def write_features(self, name: str, main_table: Table, column: Column, compute: Compute) -> FeatureReport:
        """Compute the feature for every request of `main_table`, into the table `name`."""
        return replace_feature_table(self.catalog(), self.identifier(name), main_table, [column], compute)

    def table(self, name: str) -> Table:
        return warehouse.load_table(self.catalog(), self.resolved_namespace, name)

    def write_report(self, name: str, rows: pa.Table) -> Table:
        return warehouse.write_report_table(self.catalog(), self.resolved_namespace, name, rows)

    @property
    def store_path(self) -> Path:
        """The file of the store that serves the namespace's users."""
        return Path(self.data_dir) / "stores" / f"{self.resolved_namespace}.sqlite"

    @property
    def impressions_dir(self) -> Path:
        """Where servers of the namespace log what they show."""
        return Path(self.data_dir) / "impressions" / self.resolved_namespace

    def model_dir(self, name: str) -> Path:
        path = Path(self.data_dir) / "models" / self.resolved_namespace / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def serving_dir(self) -> Path:
        """What a server of this namespace reads: bundles, its store."""
        path = Path(self.data_dir) / "serving" / self.resolved_namespace
        path.mkdir(parents=True, exist_ok=True)
        return path


def tag_process(context: dg.InitResourceContext) -> None:
    """Say of a run which process works on it; one that does not say it is failed as dead (`pipelines.dead_runs`)."""
    if context.run is not None and context.instance is not None:
        context.instance.add_run_tags(context.run.run_id, {PROCESS_TAG: warehouse.Process.own().to_json()})


def _names_namespace(run_config: Mapping[str, Any], namespace: str) -> bool:
    """Whether somebody chose the namespace for this log: in the run's configuration, or where the graph was loaded.

    What was chosen there was chosen for the log that was named there, and not for one that the run's configuration
    names.
    """
    resources = run_config.get("resources", {})
    if "namespace" in (store := resources.get("store", {}).get("config", {})):
        return bool(store["namespace"])
    return bool(namespace) and not {"logs", "recipe", "seed"} & set(resources.get("run_recipe", {}).get("config", {}))


def progress_log(context: dg.AssetExecutionContext) -> Callable[[object], None]:
    """A callback that logs what it is given, at most once in LOG_EVERY_S seconds, and the last step of a training."""
    last = monotonic()

    def report(progress: object) -> None:
        nonlocal last
        if monotonic() - last >= LOG_EVERY_S or getattr(progress, "is_last", False):
            last = monotonic()
            context.log.info(str(progress))

    return report
