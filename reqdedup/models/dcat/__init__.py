"""DCAT, the ranking model: its configuration, the model, and its naive twin."""

from reqdedup.models.dcat.block_context import BlockContext, BlockContexts, Blocks
from reqdedup.models.dcat.config import DCATConfig
from reqdedup.models.dcat.model import DCAT, Context

__all__ = ["DCAT", "BlockContext", "BlockContexts", "Blocks", "Context", "DCATConfig"]
