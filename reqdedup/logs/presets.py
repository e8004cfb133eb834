"""Mappings of public logs, each one complete configuration. Labels are binary; none uses what only the outcome tells.

A rating or a watch time is the source of a label and is not kept: as a model's input it would give the label away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from reqdedup.logs.mapping import (
    CandidateRule,
    FeatureRule,
    HistoryRule,
    IdRule,
    LabelRule,
    LogMapping,
    TimeRule,
)

Preset = Literal["movielens", "mind", "kuairand"]


def movielens() -> LogMapping:
    """MovieLens: `ratings.csv` with header, `ratings.dat` split by ::, `u.data` and `*.inter` split by tabs.

    A request is a sitting: a user's ratings without a pause of half an hour. click = rating of 4 or more. Every rating
    is an event of later histories, with action 1 if it was a click.
    """
    return LogMapping(
        user_id=IdRule(columns=("user_id", "userId", "user", "UserID")),
        item_id=IdRule(columns=("item_id", "movieId", "movie_id", "item", "MovieID")),
        time=TimeRule(columns=("timestamp", "Timestamp"), unit="s"),
        labels=(LabelRule(name="click", columns=("rating", "Rating"), at_least=4, lowest=0.5, highest=5),),
        history=HistoryRule(events="all"),
        columns=("user_id", "item_id", "rating", "timestamp"),
        files=("ratings.csv", "ratings.dat", "u.data", "*.inter"),
    )


def mind() -> LogMapping:
    """MIND: `behaviors.tsv`, no header; candidates with a click label, but in the test split; histories of clicks."""
    return LogMapping(
        user_id=IdRule(columns=("user_id",), type="string"),
        request_id=IdRule(columns=("impression_id",), type="int"),
        request_scope="file",
        time=TimeRule(columns=("time",), formats=("%m/%d/%Y %I:%M:%S %p",)),
        labels=(LabelRule(name="click"),),
        candidates=CandidateRule(columns=("impressions",), label="click"),
        candidate_id_type="string",
        history=HistoryRule(columns=("history",), action=1),
        format="tsv",
        header=False,
        columns=("impression_id", "user_id", "time", "history", "impressions"),
        files=("behaviors*.tsv",),
    )


def kuairand() -> LogMapping:
    """KuaiRand: `log_standard_*.csv`; a request is a session of a user's videos without a pause of half an hour.

    Histories hold the videos with any positive label; bit 5 of history_action is hate.
    """
    labels = {
        "click": "is_click",
        "like": "is_like",
        "follow": "is_follow",
        "comment": "is_comment",
        "forward": "is_forward",
        "hate": "is_hate",
        "long_dwell": "long_view",
    }
    return LogMapping(
        user_id=IdRule(columns=("user_id",)),
        item_id=IdRule(columns=("video_id",)),
        time=TimeRule(columns=("time_ms",), unit="ms"),
        labels=tuple(LabelRule(name=name, columns=(column,)) for name, column in labels.items()),
        item_columns=(
            FeatureRule(name="tab", columns=("tab",), dtype="int32"),
            FeatureRule(name="duration_ms", columns=("duration_ms",), dtype="int32"),
        ),
        files=("log_standard*.csv",),
    )


PRESETS: dict[str, Callable[[], LogMapping]] = {"movielens": movielens, "mind": mind, "kuairand": kuairand}


def load_preset(name: str) -> LogMapping:
    """The mapping of a preset; raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"preset: one of {', '.join(sorted(PRESETS))} required, found {name!r}")
    return PRESETS[name]()
