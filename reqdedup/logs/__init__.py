"""Synthetic engagement logs, and ingest of a user's own logs."""

from reqdedup.logs.checks import LogError
from reqdedup.logs.mapping import LogMapping
from reqdedup.logs.mapping_toml import load_mapping
from reqdedup.logs.presets import PRESETS
from reqdedup.logs.reader import LogCounts, LogReader, read_log
from reqdedup.logs.synthetic import synthesize
from reqdedup.logs.synthetic_config import SyntheticLogConfig, synthetic_schema

__all__ = [
    "PRESETS",
    "LogCounts",
    "LogError",
    "LogMapping",
    "LogReader",
    "SyntheticLogConfig",
    "load_mapping",
    "read_log",
    "synthesize",
    "synthetic_schema",
]
