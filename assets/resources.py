"""What every asset is given: the catalog with its namespace, and the recipe of this run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import dagster as dg
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

import warehouse
from assets.recipes import RECIPES, Recipe
from reqdedup.schema import Column, EngagementSchema
from reqdedup.storage import create_feature_table
from warehouse.catalogs import DATA_DIR


class Warehouse(dg.ConfigurableResource):
    """The catalog and the namespace that holds this log's tables; the embedded catalog unless a subclass knows another.

    Credentials are no field of it: Dagster shows the fields of a resource in its UI.
    """

    namespace: str
    data_dir: str = str(DATA_DIR)

    def catalog_config(self) -> warehouse.CatalogConfig:
        return warehouse.embedded_catalog(self.data_dir)

    def catalog(self) -> Catalog:
        return warehouse.open_catalog(self.catalog_config())

    def result(self, **metadata: Any) -> dg.MaterializeResult:
        """The result of an asset; its metadata says which namespace it speaks about."""
        return dg.MaterializeResult(metadata={"namespace": self.namespace, **metadata})

    def create(self, name: str, schema: EngagementSchema, *, num_buckets: int) -> Table:
        return warehouse.create_engagement_table(self.catalog(), self.namespace, name, schema, num_buckets=num_buckets)

    def create_feature_table(self, name: str, main_table: Table, columns: Sequence[Column]) -> Table:
        return create_feature_table(self.catalog(), f"{self.namespace}.{name}", main_table, columns)

    def table(self, name: str) -> Table:
        return warehouse.load_table(self.catalog(), self.namespace, name)

    def write_report(self, name: str, rows: pa.Table) -> Table:
        return warehouse.write_report_table(self.catalog(), self.namespace, name, rows)

    def model_dir(self, name: str) -> Path:
        path = Path(self.data_dir) / "models" / self.namespace / name
        path.mkdir(parents=True, exist_ok=True)
        return path


class RunRecipe(dg.ConfigurableResource):
    """The size of a run, and the log: synthetic where `logs` is empty, else the user's own at that path."""

    recipe: str = "laptop"
    logs: str = ""
    preset: str = ""
    mapping: str = ""
    strict: bool = False

    def get(self) -> Recipe:
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, found {self.recipe!r}")
        return RECIPES[self.recipe]()


def progress_log(context: dg.AssetExecutionContext, *, every_s: float = 2.0) -> Callable[[object], None]:
    """A callback that logs what it is given, at most once in `every_s` seconds."""
    last = monotonic()

    def report(progress: object) -> None:
        nonlocal last
        if monotonic() - last >= every_s:
            last = monotonic()
            context.log.info(str(progress))

    return report
