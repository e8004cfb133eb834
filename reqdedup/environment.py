"""Where the lake is: one answer for notebooks (`rd.open()`), the command line and the pipeline.

    1  an argument                           rd.open("folder"), --catalog-uri, --catalog
    2  REQDEDUP_* variables                  REQDEDUP_CATALOG__URI, REQDEDUP_CATALOG__S3__ENDPOINT, REQDEDUP_DATA_DIR
    3  reqdedup.toml                         in this folder or at the root of the project around it; no secrets
    4  pyiceberg's own configuration         catalog `reqdedup`: ~/.pyiceberg.yaml, PYICEBERG_CATALOG__REQDEDUP__*
    5  SQLite, files under the data folder   warehouse/data in a checkout of the repository, else ./reqdedup-lake

The first that names a lake decides. Properties that name none (an S3 key, say) are added to what a later one names,
from 2 to 4; an argument stands alone, so that no credential reaches a server that it is not for. This is the library's
only reader of the environment and of the working folder. It opens nothing; `reqdedup.lake` does.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reqdedup.masking import SECRET_NAMES, has_credentials, mask, refuse_credentials

CATALOG_PREFIX, DATA_DIR_VARIABLE = "REQDEDUP_CATALOG__", "REQDEDUP_DATA_DIR"
ENGINE_VARIABLE, DEADLINE_VARIABLE = "REQDEDUP_ENGINE", "REQDEDUP_DEADLINE_S"
"""Where the tasks of an operation run, and how long one may take; see `reqdedup.distributed`."""

CONFIG_FILE, CATALOG_NAME = "reqdedup.toml", "reqdedup"
_NAMING = ("uri", "type", "name", "py-catalog-impl")
"""Properties that name a lake; `name` is that of a catalog of pyiceberg's configuration, or in a SQL catalog."""


@dataclass(frozen=True, kw_only=True)
class LakePlace:
    """Where tables are.

    properties: pyiceberg catalog properties; they may hold credentials and stay out of `repr`.
    catalog_name: name that the catalog is opened by, and under which a SQL catalog keeps its tables.
    said_by: what decided, for people.
    data_dir: folder of the embedded catalog, its tables and models; None if the lake is elsewhere.
    """

    properties: dict[str, str] = field(repr=False)
    said_by: str
    catalog_name: str = CATALOG_NAME
    data_dir: Path | None = None

    @property
    def database(self) -> Path | None:
        """File of a SQLite catalog, None for any other."""
        uri = self.properties.get("uri", "")
        return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None

    @property
    def options(self) -> str:
        """Options of the command line that open the same lake from any folder, without a password."""
        uri, warehouse = self.properties.get("uri"), self.properties.get("warehouse")
        if not uri:
            return f"--catalog {self.catalog_name}"
        if self.database is not None:
            uri = f"sqlite:///{self.database}"
            warehouse = None if warehouse == f"file://{self.database.parent / 'tables'}" else warehouse
        return f"--catalog-uri {mask(uri.partition('?')[0])}" + (f" --warehouse {warehouse}" if warehouse else "")


def variables() -> Mapping[str, str]:
    """The environment of this process."""
    return os.environ


@contextlib.contextmanager
def engine_named(name: str) -> Iterator[None]:
    """Within it REQDEDUP_ENGINE is `name`; as it was if that is empty."""
    if not name:
        yield
        return
    before = os.environ.get(ENGINE_VARIABLE)
    os.environ[ENGINE_VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENGINE_VARIABLE]
        else:
            os.environ[ENGINE_VARIABLE] = before


def catalog_properties(found: Mapping[str, str]) -> dict[str, str]:
    """Properties that REQDEDUP_CATALOG__* variables set: `__` is a dot, `_` a hyphen."""
    return {
        name.removeprefix(CATALOG_PREFIX).lower().replace("__", ".").replace("_", "-"): value
        for name, value in found.items()
        if name.startswith(CATALOG_PREFIX) and value
    }


def find_lake(
    where: str | Path | None = None,
    *,
    warehouse: str | None = None,
    catalog: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> LakePlace:
    """The lake that is meant; the head of this module says how that is decided.

    where: a folder, or a catalog's uri (sqlite:///, postgresql+psycopg2://, http://).
    warehouse: folder or location of the files of a new table; needed beside the uri of a SQL server.
    catalog: name of a catalog of pyiceberg's configuration, in place of both.
    environment: variables, by default those of this process.  folder: the working folder, by default this process's.
    """
    environment = variables() if environment is None else environment
    folder = Path.cwd() if folder is None else folder
    if catalog:
        if where is not None or warehouse:
            raise ValueError("a catalog's name, or its uri and warehouse, required, found both; leave one out")
        return LakePlace(properties={}, catalog_name=catalog, said_by=f"the catalog {catalog!r} that was named")
    if where is not None:
        text = str(where).removeprefix("file://")
        if not text.strip():
            raise ValueError("a folder or a catalog's uri required, found an empty text")
        if "://" not in text:
            return _embedded(folder / Path(text).expanduser(), {}, warehouse, "the folder that was named")
        if not (warehouse or text.startswith("sqlite:///")):
            raise ValueError(
                "the uri of a server needs a warehouse (--warehouse), the folder or s3:// location of the tables' files"
            )
        return _named({"uri": text}, warehouse, folder, "the uri that was named")
    if warehouse:
        found = find_lake(environment=environment, folder=folder)
        return replace(_named(found.properties, warehouse, folder, found.said_by), catalog_name=found.catalog_name)
    said = catalog_properties(environment)
    data_dir = environment.get(DATA_DIR_VARIABLE, "")
    if _names_a_lake(said):
        return _named(said, None, folder, f"the variables {CATALOG_PREFIX}*")
    if data_dir:
        return _embedded(folder / Path(data_dir).expanduser(), said, None, f"the variable {DATA_DIR_VARIABLE}")
    root = project_root(folder)
    for path in dict.fromkeys([folder / CONFIG_FILE, root / CONFIG_FILE]):
        if path.is_file():
            written, data_dir = read_config(path)
            if _names_a_lake(written):
                return _named({**written, **said}, None, path.parent, str(path))
            if data_dir:
                return _embedded(path.parent / Path(data_dir).expanduser(), {**written, **said}, None, str(path))
            said = {**written, **said}
            break
    if _pyiceberg_knows(CATALOG_NAME):
        return LakePlace(properties=said, said_by=f"pyiceberg's configuration of the catalog {CATALOG_NAME!r}")
    return _embedded(default_data_dir(folder), said, None, "the default")


def default_data_dir(folder: Path) -> Path:
    """warehouse/data of the checkout around this folder, or as version 0.1.0 made it here; else ./reqdedup-lake."""
    root = project_root(folder)
    if (root / "warehouse" / "catalogs.py").is_file() and (root / "reqdedup").is_dir():
        return root / "warehouse" / "data"
    before = folder / "warehouse" / "data"
    return before if (before / "catalog.db").is_file() else folder / "reqdedup-lake"


def project_root(folder: Path) -> Path:
    """The first folder from here upwards with a pyproject.toml or .git; this one if there is none."""
    marked = ((one / "pyproject.toml").is_file() or (one / ".git").exists() for one in (folder, *folder.parents))
    return next((one for one, is_root in zip((folder, *folder.parents), marked) if is_root), folder)


def read_config(path: Path) -> tuple[dict[str, str], str]:
    """Catalog properties and data folder of a reqdedup.toml. Raises ValueError for secrets and for unknown keys."""
    try:
        said = tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: TOML required: {error}") from None
    unknown = sorted(set(said) - {"data_dir", "catalog"})
    if unknown:
        raise ValueError(f"{path}: keys data_dir and [catalog] required, found {', '.join(unknown)}")
    data_dir, catalog = said.get("data_dir", ""), said.get("catalog", {})
    if not isinstance(data_dir, str) or not isinstance(catalog, dict):
        raise ValueError(f"{path}: data_dir as text and [catalog] as a table required, found another kind")
    properties = _flat(catalog)
    secret = sorted(name for name, value in properties.items() if SECRET_NAMES.search(name) or has_credentials(value))
    if secret:
        variable = CATALOG_PREFIX + secret[0].upper().replace(".", "__").replace("-", "_")
        raise ValueError(
            f"{path}: a file without credentials required, found {', '.join(secret)}; set the variable {variable} "
            "instead"
        )
    code = sorted(name for name in properties if name.startswith("py-"))
    if code:
        raise ValueError(f"{path}: no names of code required, found {', '.join(code)}; set them as variables")
    return properties, data_dir


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat


def _names_a_lake(properties: Mapping[str, str]) -> bool:
    return any(properties.get(name) for name in _NAMING)


def _named(said: dict[str, str], warehouse: str | None, folder: Path, said_by: str) -> LakePlace:
    """A place by its properties; the files of a SQLite catalog lie beside it unless `warehouse` says otherwise."""
    properties = {**said, **({"warehouse": warehouse} if warehouse else {})}
    name, uri = properties.pop("name", CATALOG_NAME), properties.get("uri", "")
    if uri.startswith("sqlite:///"):
        database = (folder / Path(uri.removeprefix("sqlite:///")).expanduser()).absolute()
        properties["uri"] = f"sqlite:///{database}"
        properties.setdefault("warehouse", str(database.parent / "tables"))
    keys = f"set {CATALOG_PREFIX}S3__ACCESS_KEY_ID and S3__SECRET_ACCESS_KEY"
    refuse_credentials("warehouse", properties.get("warehouse", ""), instead=keys)
    is_path = "://" not in properties.get("warehouse", "://")
    if is_path and uri.startswith(("sqlite", "postgresql")):  # a REST catalog has names of its own for warehouses
        properties["warehouse"] = f"file://{(folder / properties['warehouse']).absolute()}"
    return LakePlace(properties=properties, catalog_name=name, said_by=said_by)


def _embedded(data_dir: Path, said: dict[str, str], warehouse: str | None, said_by: str) -> LakePlace:
    data_dir = Path(os.path.normpath(data_dir.absolute()))
    properties = {**said, "type": "sql", "uri": f"sqlite:///{data_dir / 'catalog.db'}"}
    return replace(_named(properties, warehouse, data_dir, said_by), data_dir=data_dir)


def _pyiceberg_knows(catalog: str) -> bool:
    from pyiceberg.utils.config import Config

    return bool(Config().get_catalog_config(catalog))
