"""A training configuration as people write it: some values in a TOML or JSON file, the rest from table and defaults.

num_steps = 2000                fields of TrainingConfig
learning_rate = 0.003
[model]
width = 128                     fields of the model's configuration
exclude = ["debug_flag"]        exclude and numbers: as of its `from_schema`
kind = "early_ranker"           if a task has several models; else its first
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from reqdedup.models.registry import MODELS
from reqdedup.schema import EngagementSchema
from reqdedup.training.config import TrainingConfig

DEFAULTS = {"num_steps": 1000, "requests_per_step": 256, "learning_rate": 3e-3}
"""Of the fields without a default: what training on a table of a few million rows begins with."""

TASKS = tuple(kind.task for kind in MODELS.values())
_OF_SCHEMA = ("exclude", "numbers")


def config_for(task: str, schema: EngagementSchema, values: Mapping[str, Any], *, said_in: str) -> TrainingConfig:
    """The configuration of a model for this task and these columns, with these values over the defaults.

    values: fields of TrainingConfig; `model` holds those of the model, and its `kind` if the task has several.
    said_in: where they were written, for messages.
    Raises ValueError for a name or a value that means nothing, naming it.
    """
    kinds = {name: kind.config for name, kind in MODELS.items() if kind.task == task}
    if not kinds:
        raise ValueError(f"a task among {', '.join(TASKS)} required, found {task!r}")
    model, given = dict(values.get("model") or {}), {name: x for name, x in values.items() if name != "model"}
    _check(given, TrainingConfig, f"{said_in}: ", without=("model",))
    kind = model.pop("kind", next(iter(kinds)))
    if kind not in kinds:
        raise ValueError(f"{said_in}: model.kind: one of {', '.join(kinds)} required for {task}, found {kind!r}")
    _check(model, kinds[kind], f"{said_in}: model.", more=_OF_SCHEMA)
    for name in _OF_SCHEMA:
        if unknown := [column for column in model.get(name, ()) if column not in schema]:
            raise ValueError(
                f"{said_in}: model.{name}: columns of the table required, found {', '.join(unknown)}; it has "
                f"{', '.join(schema.names)}"
            )
    if "positive_label" not in given:
        labels = [column.name for column in schema.labels]
        if task != "ranking" and "click" not in labels:
            given["positive_label"] = labels[0] if len(labels) == 1 else None
    # Every configuration of a kind has it, with options of its own, so that `ModelConfig` declares none.
    from_schema: Any = kinds[kind].from_schema  # type: ignore[attr-defined]
    return TrainingConfig(model=from_schema(schema, **model), **{**DEFAULTS, **given})


def read_values(path: Path) -> dict[str, Any]:
    """What a TOML or JSON file says. Raises ValueError if it is neither, or no table."""
    try:
        text = path.read_text("utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ValueError(f"{path}: a file with the configuration required, found none") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML (or JSON in a file that ends with .json)"
        raise ValueError(f"{path}: {kind} required: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("model", {}), dict):
        raise ValueError(f"{path}: names with values, and a table `model` of such, required, found another kind")
    return found


def _check(
    given: Mapping[str, Any],
    config: type[Any],
    where: str,
    *,
    more: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
) -> None:
    """Names that the dataclass has, and values of its fields' kinds."""
    hints = get_type_hints(config)
    known = [field.name for field in fields(config) if field.name not in without]
    for name, value in given.items():
        if name not in known and name not in more:
            close = difflib.get_close_matches(name, [*known, *more], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{where}{name}: one of {', '.join([*known, *more])} required, found {name}{hint}")
        wanted = hints.get(name, tuple[str, ...])
        if not _fits(value, wanted):
            raise ValueError(f"{where}{name}: {_named(wanted)} required, found {value!r}")


def _fits(value: Any, wanted: Any) -> bool:
    if get_origin(wanted) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(wanted))
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) is Mapping:
        return isinstance(value, Mapping) and all(_fits(one, get_args(wanted)[1]) for one in value.values())
    if is_dataclass(wanted):
        return _fits_table(value, wanted)
    if get_origin(wanted) is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        each = get_args(wanted)
        if each[-1] is Ellipsis:
            return all(_fits(one, each[0]) for one in value)
        return len(value) == len(each) and all(map(_fits, value, each))
    if wanted in (int, float):
        kinds: tuple[type, ...] = (int, float) if wanted is float else (int,)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, wanted) if isinstance(wanted, type) else True


def _fits_table(value: Any, wanted: Any) -> bool:
    """Whether a table of a file has the fields of a dataclass, those without a default among them."""
    if not isinstance(value, Mapping):
        return isinstance(value, wanted)
    hints = get_type_hints(wanted)
    needed = {field.name for field in fields(wanted) if field.default is MISSING}
    return needed <= value.keys() <= hints.keys() and all(_fits(one, hints[name]) for name, one in value.items())


def _named(wanted: Any) -> str:
    """The kind of a value, in words."""
    if is_dataclass(wanted):
        hints = get_type_hints(wanted)
        return f"a table with {', '.join(f'{name} ({_named(hint)})' for name, hint in hints.items())}"
    if get_origin(wanted) is Mapping:
        return f"a table of which each value is {_named(get_args(wanted)[1])}"
    if get_origin(wanted) in (Union, types.UnionType):
        return " or ".join(_named(one) for one in get_args(wanted))
    if get_origin(wanted) is Literal:
        return f"one of {', '.join(map(str, get_args(wanted)))}"
    if get_origin(wanted) is tuple:
        each = get_args(wanted)
        if each[-1] is Ellipsis:
            return f"a list of which each is {_named(each[0])}"
        return f"a list of {', '.join(map(_named, each))}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "nothing"}
    return words.get(wanted, str(wanted))
