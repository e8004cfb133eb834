"""The early ranker: thousands of candidates by a user vector, item vectors and a small MLP."""

from reqdedup.models.early.config import EarlyRankerConfig
from reqdedup.models.early.model import EarlyRanker

__all__ = ["EarlyRanker", "EarlyRankerConfig"]
