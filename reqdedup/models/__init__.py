"""Two-tower retrieval and DCAT ranking on deduplicated batches, and their duplicated twins (`naive`)."""

from reqdedup.models import naive
from reqdedup.models.config import DCATConfig, TwoTowerConfig
from reqdedup.models.dcat import DCAT, Context
from reqdedup.models.two_tower import TwoTower

__all__ = ["DCAT", "Context", "DCATConfig", "TwoTower", "TwoTowerConfig", "naive"]
