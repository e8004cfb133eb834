"""Models on deduplicated batches, one folder each, and their duplicated twins (`naive`); `registry` lists them."""

from reqdedup.models import naive
from reqdedup.models.bundle import Bundle
from reqdedup.models.checkpoint import load_model
from reqdedup.models.dcat import DCAT, Context, DCATConfig
from reqdedup.models.derived import Derived
from reqdedup.models.early import EarlyRanker, EarlyRankerConfig
from reqdedup.models.foundation import Foundation, FoundationConfig
from reqdedup.models.two_tower import TwoTower, TwoTowerConfig

__all__ = [
    "DCAT",
    "Bundle",
    "Context",
    "DCATConfig",
    "Derived",
    "EarlyRanker",
    "EarlyRankerConfig",
    "Foundation",
    "FoundationConfig",
    "TwoTower",
    "TwoTowerConfig",
    "load_model",
    "naive",
]
