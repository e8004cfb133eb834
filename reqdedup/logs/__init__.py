"""Synthetic engagement logs, and ingest of a user's own logs."""

from reqdedup.logs.synthetic import synthesize
from reqdedup.logs.synthetic_config import SyntheticLogConfig, synthetic_schema

__all__ = ["SyntheticLogConfig", "synthesize", "synthetic_schema"]
