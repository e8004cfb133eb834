"""The foundation model of user sequences: pre-trained on histories, then the beginning of other models."""

from reqdedup.models.foundation.config import FoundationConfig
from reqdedup.models.foundation.model import Foundation
from reqdedup.models.foundation.pairs import Pairs

__all__ = ["Foundation", "FoundationConfig", "Pairs"]
