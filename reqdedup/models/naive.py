"""The models computed once per row, under one roof: `naive.DCAT(config)` is the twin of `DCAT(config)`."""

from reqdedup.models.dcat.naive import DCAT
from reqdedup.models.duplicated import duplicate
from reqdedup.models.early.naive import EarlyRanker
from reqdedup.models.foundation.naive import Foundation
from reqdedup.models.two_tower.naive import TwoTower

__all__ = ["DCAT", "EarlyRanker", "Foundation", "TwoTower", "duplicate"]
