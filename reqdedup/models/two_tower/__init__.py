"""The two-tower retrieval model: its configuration, the model, and its naive twin."""

from reqdedup.models.two_tower.config import TwoTowerConfig
from reqdedup.models.two_tower.head import UserHead, user_head
from reqdedup.models.two_tower.model import TwoTower

__all__ = ["TwoTower", "TwoTowerConfig", "UserHead", "user_head"]
