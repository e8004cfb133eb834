"""The curve is the mean of the slates' figures, and the command line prints it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from reqdedup import cli
from reqdedup.rerank import SlateConfig, rerank, slate_measures
from reqdedup.rerank.config import Mmr, Volume
from reqdedup.rerank.scored import ScoredCandidates
from reqdedup.rerank.sweep import SCORES_ALONE, sweep, weight_grid
from reqdedup.storage import open_catalog
from tests.rerank.candidates import scored

CONFIG = SlateConfig(length=6, window=3, terms=(Mmr(weight=0.1), Volume(weight=0.3)))


def test_a_point_is_the_mean_of_its_slates_figures():
    candidates = ScoredCandidates.of(scored())
    points = sweep(weight_grid(CONFIG, "volume", [0.0, 2.0]), **candidates.arguments(), measured=["topic"])
    assert [point.name for point in points] == [SCORES_ALONE, "volume 0", "volume 2"]
    config = SlateConfig(length=6, window=3, terms=(Mmr(weight=0.1), Volume(weight=2.0)))
    found = []
    for start, end in zip(candidates.row_offsets[:-1], candidates.row_offsets[1:]):
        scores, vectors = candidates.scores[start:end], candidates.vectors[start:end]
        slate = rerank(config, scores, item_id=candidates.item_id[start:end], vectors=vectors)
        gains = scores - min(scores.min(), 0)
        columns = {"topic": candidates.columns["topic"][start:end]}
        found.append(slate_measures(gains, slate.row, window=3, vectors=vectors, columns=columns))
    for name in ("mean_score", "dcg_ratio", "mean_distance", "distinct_topic"):
        assert points[2].figures[name] == pytest.approx(np.mean([one[name] for one in found if name in one]))
    assert points[0].figures["dcg_ratio"] == pytest.approx(1.0)
    assert points[2].figures["mean_distance"] > points[0].figures["mean_distance"]


def test_scored_candidates_are_the_table_s_rows_request_by_request():
    table = scored()
    candidates = ScoredCandidates.of(table)
    assert np.diff(candidates.row_offsets).tolist() == [9, 1, 14]
    rows = sorted(table.to_pylist(), key=lambda row: (row["request_id"], row["item_id"]))
    assert candidates.item_id.tolist() == [row["item_id"] for row in rows]
    assert candidates.scores.tolist() == [row["score"] for row in rows]
    assert candidates.vectors.tolist() == [row["vector"] for row in rows]
    assert candidates.columns["topic"].tolist() == [row["topic"] or "" for row in rows]
    assert len(ScoredCandidates.of(table.slice(0, 0)).row_offsets) == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="columns score required"):
        ScoredCandidates.of(scored().drop_columns("score"))
    uneven = scored((2,)).set_column(4, "vector", pa.array([[1.0], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="vectors of one length required"):
        ScoredCandidates.of(uneven)
    with pytest.raises(ValueError, match=r"a term of the configuration .mmr, volume. required, found soft_spacing"):
        weight_grid(CONFIG, "soft_spacing", [1.0])
    with pytest.raises(ValueError, match="at least one configuration"):
        sweep({}, **ScoredCandidates.of(scored()).arguments())


def test_the_command_line_prints_the_curve(tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/catalog.db"
    catalog = open_catalog(properties={"uri": uri, "warehouse": f"file://{tmp_path}/tables"})
    catalog.create_namespace("logs")
    table = scored()
    catalog.create_table("logs.scored", table.schema).append(table)
    slate = tmp_path / "slate.toml"
    slate.write_text('format = 1\nlength = 6\nwindow = 3\n[[terms]]\nkind = "volume"\nweight = 1\n')
    words = ["rerank", "sweep", "--table", "logs.scored", "--slate", str(slate), "--catalog-uri", uri]
    assert cli.main([*words, "--weight", "0", "1", "--measure", "topic", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    points = sweep(
        weight_grid(SlateConfig(length=6, window=3, terms=(Volume(weight=1),)), "volume", [0, 1]),
        **ScoredCandidates.of(table).arguments(), measured=["topic"],
    )  # fmt: skip
    assert [point["name"] for point in printed["points"]] == [point.name for point in points]
    assert printed["points"][2]["figures"] == pytest.approx(points[2].figures)
    assert cli.main(words) == 0
    assert "volume 0.5" in capsys.readouterr().out
    assert cli.main([*words, "--term", "mmr"]) == 2
    assert "required, found mmr" in capsys.readouterr().err


def test_a_measured_column_that_is_not_there_is_named():
    config = SlateConfig(length=1)
    with pytest.raises(ValueError, match=r"candidates \(category\) to measure required, found nope"):
        sweep(
            {"one": config},
            np.ones(2),
            item_id=np.arange(2),
            columns={"category": np.arange(2)},
            row_offsets=np.array([0, 2]),
            measured=["nope"],
        )
