"""`reqdedup.audit` by its name of 0.1.0; goes with version 0.3."""

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    warnings.warn(f"{__name__} is reqdedup.audit now", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module("reqdedup.audit"), name)
