"""The only reader of the environment: where tables live, which recipe and which log.

| variable | meaning | default |
|---|---|---|
| REQDEDUP_RECIPE | smoke, laptop or full | laptop |
| REQDEDUP_LOGS | path of the user's own log; empty makes a synthetic one | |
| REQDEDUP_PRESET / REQDEDUP_MAPPING | how to read it: movielens, mind, kuairand, or a TOML mapping | |
| REQDEDUP_STRICT | 1: rejected rows fail the run | 0 |
| REQDEDUP_NAMESPACE | namespace of the tables | the preset's or log's name, else the recipe's |
| REQDEDUP_DATA_DIR | folder of the embedded catalog, tables and models | warehouse/data |
| REQDEDUP_CATALOG__<PROPERTY> | any pyiceberg catalog property, `__` for `.` and `_` for `-`: REQDEDUP_CATALOG__S3__ENDPOINT | embedded SQLite |
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from warehouse.catalogs import DATA_DIR

CATALOG_PREFIX = "REQDEDUP_CATALOG__"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One run's surroundings; catalog properties may hold credentials and stay out of `repr`."""

    recipe: str = "laptop"
    logs: str = ""
    preset: str = ""
    mapping: str = ""
    strict: bool = False
    namespace: str = ""
    data_dir: Path = DATA_DIR
    catalog_properties: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_os(cls, variables: Mapping[str, str] | None = None) -> Environment:
        variables = os.environ if variables is None else variables
        catalog_properties = {
            name.removeprefix(CATALOG_PREFIX).lower().replace("__", ".").replace("_", "-"): value
            for name, value in variables.items()
            if name.startswith(CATALOG_PREFIX)
        }
        return cls(
            recipe=variables.get("REQDEDUP_RECIPE") or "laptop",
            logs=variables.get("REQDEDUP_LOGS", ""),
            preset=variables.get("REQDEDUP_PRESET", ""),
            mapping=variables.get("REQDEDUP_MAPPING", ""),
            strict=variables.get("REQDEDUP_STRICT", "") in ("1", "true", "yes"),
            namespace=variables.get("REQDEDUP_NAMESPACE", ""),
            data_dir=Path(variables.get("REQDEDUP_DATA_DIR") or DATA_DIR).resolve(),
            catalog_properties=catalog_properties,
        )

    def with_arguments(self, **arguments: object) -> Environment:
        """The same surroundings with every argument that is not None or empty put in its place."""
        return replace(self, **{name: value for name, value in arguments.items() if value})  # type: ignore[arg-type]

    @property
    def resolved_namespace(self) -> str:
        """The namespace given, else one named for the log, else for the recipe."""
        if self.namespace:
            return self.namespace
        if self.logs:
            name = self.preset or Path(self.logs).resolve().stem
            return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "log"
        return self.recipe
