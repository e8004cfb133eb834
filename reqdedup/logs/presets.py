"""Mappings of public logs, each a TOML file in `preset_files` that says at its head what a request and a label are.

None keeps what only the outcome tells. A rating or a watch time is the source of a label and is not kept: as a model's
input it would give the label away. docs/mapping.md says which were tried on what.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from reqdedup.logs.mapping import LogMapping
from reqdedup.logs.mapping_toml import load_mapping

Preset = Literal[
    "amazon_reviews",
    "criteo_attribution",
    "eb_nerd",
    "kuairand",
    "kuairec",
    "lastfm",
    "mind",
    "movielens",
    "movielens_ratings",
    "open_bandit",
    "taobao",
    "yambda",
    "yelp",
]

PRESETS: tuple[str, ...] = get_args(Preset)


def load_preset(name: str) -> LogMapping:
    """The mapping of a preset; raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"preset: one of {', '.join(PRESETS)} required, found {name!r}")
    return load_mapping(Path(__file__).with_name("preset_files") / f"{name}.toml")
