"""Checks in tests that tensors are what their names say: user_RD is [R, D], row_offsets_R1 is [R + 1], request_of_row_B is [B].

`check_library` wraps the public functions of the tensor half. One letter is one size in all arguments of a call, those of
dataclasses (a RequestBatch, say) included. `1` behind a letter is one more than it, or an axis of its own if the tensor has
one; a name of one letter says the first axis alone.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch

ROOMS = ("reqdedup.batch", "reqdedup.ops", "reqdedup.models", "reqdedup.training")
_NAME = re.compile(r".+_([A-Z][A-Z1]*)$")
_WRAPPED = "_shapes_are_checked"


def axes(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """(letter, size) that a tensor of this name and shape claims; ("", size) if the name fits no such shape."""
    suffix = _NAME.match(name)[1]  # type: ignore[index]
    letters = suffix.replace("1", "")
    if len(shape) == len(suffix):
        for letter, size in zip(suffix, shape):
            if letter != "1" or size != 1:
                yield ("" if letter == "1" else letter), size
    elif len(letters) == 1 and shape:
        yield letters, shape[0] - (len(suffix) - 1)
    elif len(shape) == len(letters):
        pieces = re.findall(r"[A-Z]1?", suffix)
        yield from ((piece[0], size - (len(piece) - 1)) for piece, size in zip(pieces, shape))
    else:
        yield "", len(shape)


def sizes(arguments: Mapping[str, Any], where: str) -> dict[str, int]:
    """The size of each letter. Raises AssertionError if two arguments differ."""
    found: dict[str, tuple[int, str]] = {}
    for name, value in _tensors(arguments):
        for letter, size in axes(name.rpartition(".")[2], tuple(value.shape)):
            first = found.setdefault(letter, (size, name))
            if not letter or first[0] != size:
                other = f", and {first[1]} has {letter} = {first[0]}" if letter else ""
                raise AssertionError(f"{where}: {name} has shape {tuple(value.shape)}{other}")
    return {letter: size for letter, (size, _) in found.items()}


def _tensors(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _tensors({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, f"{prefix}{name}.")
        elif _NAME.match(name) and hasattr(value, "shape"):
            yield prefix + name, value


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose arguments are checked once it has returned: what it refuses itself it says better."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        sizes(signature.bind(*args, **kwargs).arguments, function.__qualname__)
        return result

    setattr(call, _WRAPPED, True)
    return call


def check_library() -> list[str]:
    """Wrap every public function with such a parameter, wherever it was imported; the names of all that are wrapped."""
    replaced: dict[int, Callable[..., Any]] = {}
    names = []
    for module in _modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value.__module__ == module.__name__ and _is_checked(name, value):
                replaced[id(value)] = (getattr(value, _WRAPPED, None) and value) or checked(value)
                names.append(f"{module.__name__}.{name}")
            elif isinstance(value, type) and value.__module__ == module.__name__:
                names += [f"{module.__name__}.{value.__name__}.{method}" for method in _check_class(value)]
    for module in [m for name, m in sys.modules.items() if name.startswith("reqdedup")]:
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and id(value) in replaced:
                setattr(module, name, replaced[id(value)])
    return names


def _modules() -> Iterator[ModuleType]:
    for room in ROOMS:
        package = importlib.import_module(room)
        yield package
        for found in pkgutil.walk_packages(getattr(package, "__path__", []), room + "."):
            if not re.search("triton|kernels|__main__", found.name):
                yield importlib.import_module(found.name)


def _check_class(cls: type) -> Iterator[str]:
    if issubclass(cls, torch.autograd.Function) or getattr(cls, "_is_protocol", False):
        return
    for name, value in list(vars(cls).items()):
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if isinstance(function, FunctionType) and _is_checked(name, function):
            if not hasattr(function, _WRAPPED):
                wrapped = checked(function)
                setattr(cls, name, wrapped if function is value else type(value)(wrapped))
            yield name


def _is_checked(name: str, function: FunctionType) -> bool:
    if name.startswith("_"):
        return False
    parameters = inspect.signature(function).parameters
    return any(_NAME.match(parameter) or parameter == "batch" for parameter in parameters)
