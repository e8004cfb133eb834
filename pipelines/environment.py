"""What the environment says of a run: which recipe, which log, and where tables live (`reqdedup.environment` decides).

| variable | meaning | default |
|---|---|---|
| REQDEDUP_RECIPE | smoke, laptop, full or events | laptop |
| REQDEDUP_LOGS | path of the user's own log; empty makes a synthetic one | |
| REQDEDUP_PRESET / REQDEDUP_MAPPING | how to read it: a preset of docs/mapping.md, or a TOML mapping | |
| REQDEDUP_EVENTS | path of the user's own events, a file or a folder; empty makes a synthetic stream | |
| REQDEDUP_SEQUENCES | Python file that defines these events and sequences of them (docs/sequences.md) | |
| REQDEDUP_HISTORIES | sequence of these events that gives the requests of the log their histories | the log's own |
| REQDEDUP_STRICT | 1: rejected rows fail the run | 0 |
| REQDEDUP_MAX_REJECTS | share of rejected rows above which the run fails | 0.1 |
| REQDEDUP_NAMESPACE | namespace of the tables | preset and log's name, else the recipe's |
| REQDEDUP_FIRST_DAY | first day of a log that arrives by days (`pipelines.daily`) | 2026-01-01 |
| REQDEDUP_DATA_DIR | folder of the embedded catalog, tables and models | warehouse/data |
| REQDEDUP_CATALOG__<PROPERTY> | any pyiceberg catalog property, `__` for `.` and `_` for `-`: REQDEDUP_CATALOG__S3__ENDPOINT | embedded SQLite |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from assets.run_recipe import LogPreset, Size
from reqdedup.environment import DATA_DIR_VARIABLE, LakePlace, find_lake, variables
from warehouse.catalogs import DATA_DIR, embedded_catalog
from warehouse.namespaces import namespace_of

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One run's surroundings.

    data_dir: folder of models and, if the lake is embedded, of its tables.
    lake: where the tables are.
    first_day: of the log that arrives by days.
    """

    recipe: str = "laptop"
    logs: str = ""
    preset: str = ""
    mapping: str = ""
    events: str = ""
    sequences: str = ""
    histories: str = ""
    strict: bool = False
    max_rejects: float = 0.1
    namespace: str = ""
    take_over: bool = False
    first_day: date = date(2026, 1, 1)
    data_dir: Path = DATA_DIR
    lake: LakePlace = field(default_factory=embedded_catalog)

    @classmethod
    def from_os(cls, found: Mapping[str, str] | None = None) -> Environment:
        found = variables() if found is None else found
        lake = find_lake(environment=found, folder=ROOT)
        return cls(
            recipe=found.get("REQDEDUP_RECIPE") or "laptop",
            logs=found.get("REQDEDUP_LOGS", ""),
            preset=found.get("REQDEDUP_PRESET", ""),
            mapping=found.get("REQDEDUP_MAPPING", ""),
            events=found.get("REQDEDUP_EVENTS", ""),
            sequences=found.get("REQDEDUP_SEQUENCES", ""),
            histories=found.get("REQDEDUP_HISTORIES", ""),
            strict=found.get("REQDEDUP_STRICT", "") in ("1", "true", "yes"),
            max_rejects=share(found.get("REQDEDUP_MAX_REJECTS") or "0.1"),
            namespace=found.get("REQDEDUP_NAMESPACE", ""),
            first_day=_day(found.get("REQDEDUP_FIRST_DAY") or "2026-01-01"),
            data_dir=(lake.data_dir or Path(found.get(DATA_DIR_VARIABLE) or DATA_DIR)).resolve(),
            lake=lake,
        )

    def __post_init__(self) -> None:
        for variable, value, known in (
            ("REQDEDUP_RECIPE", self.recipe, [*Size]),
            ("REQDEDUP_PRESET", self.preset, [*LogPreset, ""]),
        ):
            if value not in known:
                raise ValueError(f"{variable}: one of {', '.join(filter(None, known))} required, found {value!r}")

    @property
    def catalog_properties(self) -> dict[str, str]:
        """Properties of the catalog, credentials among them."""
        return self.lake.properties

    def with_arguments(self, **arguments: object) -> Environment:
        """The same surroundings with every argument that is not None, False or empty put in its place."""
        given = {name: value for name, value in arguments.items() if value not in ("", None) and value is not False}
        return replace(self, **given)  # type: ignore[arg-type]

    @property
    def resolved_namespace(self) -> str:
        """The namespace given, else one named for the log, else for the recipe."""
        return self.namespace or namespace_of(recipe=self.recipe, logs=self.logs, preset=self.preset)


def share(text: str) -> float:
    """The number that a share of rejected rows is written as. Raises ValueError for anything else."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"REQDEDUP_MAX_REJECTS: a share of the rows, 0 to 1, required, found {text!r}")
    return number


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"REQDEDUP_FIRST_DAY: a day like 2026-11-03 required, found {text!r}") from None
