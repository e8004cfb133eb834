"""`reqdedup train` and `reqdedup evaluate`: thin over the library, with errors that name what is wrong."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup import cli
from reqdedup.cli.commands.training import _kept
from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.models import DCATConfig, Derived, TwoTowerConfig
from reqdedup.models.checkpoint import load_checkpoint
from reqdedup.storage import TableSource, open_catalog
from reqdedup.training import TrainingConfig
from reqdedup.training.loop import read_run
from reqdedup.training.metrics_file import METRICS_NAME
from reqdedup.training.written import DEFAULTS, config_for, read_values

TRAIN = ["train", "lake.t", "--task", "ranking"]
SMALL = ["--requests-per-step", "8", "--ranks", "1", "--width", "8", "--layers", "1", "--max-history", "8"]


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A folder whose lake holds lake.t: 60 requests of 30 users with two labels."""
    folder = tmp_path_factory.mktemp("lake")
    rows = [
        {"user": r // 2, "request": r, "item": r + i, "at": r, "history": [r, 7], "click": i % 2, "buy": int(i == 3)}
        for r in range(60)
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    data = folder / "data"
    data.mkdir()
    catalog = open_catalog(properties={"uri": f"sqlite:///{data}/catalog.db", "warehouse": f"file://{data}/tables"})
    mapping = ColumnMapping(
        user="user",
        request="request",
        item="item",
        time="at",
        time_unit="s",
        labels=["click", "buy"],
        rename={"history": "history_item_id"},
    )
    convert_table(folder / "rows.parquet", catalog, "lake.t", mapping, num_buckets=2)
    return folder


@pytest.fixture
def here(lake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REQDEDUP_DATA_DIR", str(lake / "data"))
    return tmp_path


def schema_of(lake):
    data = lake / "data"
    catalog = open_catalog(properties={"uri": f"sqlite:///{data}/catalog.db", "warehouse": f"file://{data}/tables"})
    return TableSource(catalog.load_table("lake.t")).schema


def test_what_is_not_said_comes_from_the_table_and_the_defaults(lake):
    schema = schema_of(lake)
    values = {"seed": 7, "model": {"width": 16, "exclude": ["buy"]}}
    expected = TrainingConfig(model=DCATConfig.from_schema(schema, width=16, exclude=["buy"]), seed=7, **DEFAULTS)
    assert config_for("ranking", schema, values, said_in="x") == expected
    retrieval = config_for("retrieval", schema, {}, said_in="x")
    assert retrieval == TrainingConfig(model=TwoTowerConfig.from_schema(schema), **DEFAULTS)


def test_a_derived_feature_is_written_as_a_table(lake, tmp_path):
    (tmp_path / "run.toml").write_text(
        "[[model.derived_request]]\nname = 'hour'\nop = 'cyclic'\ncolumns = ['request_ts']\nvalues = [3600000000]"
    )
    config = config_for("ranking", schema_of(lake), read_values(tmp_path / "run.toml"), said_in="x")
    hour = Derived(name="hour", op="cyclic", columns=("request_ts",), values=(3_600_000_000,))
    assert config.model.derived_request == (hour,)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("num_step = 3", "num_step: one of num_steps,"),
        ("num_step = 3", "did you mean num_steps?"),
        ("num_steps = 'many'", "num_steps: a whole number required, found 'many'"),
        ("num_steps = true", "num_steps: a whole number required, found True"),
        ("device = 'gpu'", "device: one of cpu, cuda required, found 'gpu'"),
        ("[model]\nwidht = 8", "model.widht: one of"),
        ("[model]\nwidth = 2.5", "model.width: a whole number required, found 2.5"),
        ("[model]\nlabels = [1]", "model.labels: a list of which each is a text required, found [1]"),
        ("[model]\nlabels = ['like']", "labels ['like'] are not in the log; it has ['click', 'buy']"),
        ("[model]\nexclude = ['clik']", "model.exclude: columns of the table required, found clik; it has"),
        (
            "[[model.derived_request]]\nname = 'x'\nop = 'hash'",
            "model.derived_request: a list of which each is a table",
        ),
        ("[[model.derived_request]]\nname = 'x'\nop = 'hsh'\ncolumns = ['a']", "op (one of vocabulary, buckets,"),
        ("rate_factors = {transformer = 'a'}", "rate_factors: a table of which each value is a number required, found"),
        ("label_maturity_s = {click = '1d'}", "label_maturity_s: a table of which each value is a number required,"),
        ("model = 3", "and a table `model` of such, required"),
        ("num_steps", "TOML (or JSON in a file that ends with .json) required"),
    ],
)
@pytest.mark.parametrize("columns", ["60", "200"])
def test_a_wrong_file_is_one_sentence_that_names_it(here, capsys, monkeypatch, columns, file, said):
    monkeypatch.setenv("COLUMNS", columns)
    (here / "run.toml").write_text(file)
    assert cli.main([*TRAIN, "--out", "runs/x", "--config", "run.toml"]) == 2
    printed = capsys.readouterr()
    assert said in " ".join(printed.err.split())
    assert [line for line in printed.err.splitlines() if len(line) > int(columns)] == []
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "lake.t", "--out", "x"], "--task ranking, retrieval or pretraining required, found none"),
        ([*TRAIN, "--out", "x", "--positive-label", "click"], "--positive-label is for another task than ranking"),
        ([*TRAIN, "--out", "x", "--exclude", "clik"], "model.exclude: columns of the table required, found clik"),
        ([*TRAIN, "--out", "x", "--config", "none.toml"], "none.toml: a file with the configuration required"),
        (["train", "lake.no", "--task", "ranking", "--out", "x"], "lake.no"),
        (["train", "lake.t", "--out", "x", "--resume"], "run.json: a run file (JSON) required, found no file"),
        (["train", "lake.t", "--out", "x", "--resume", "--steps", "3"], "leave out --steps"),
        (["evaluate", "x"], "run.json: a run file (JSON) required, found no file"),
    ],
)
def test_a_wrong_option_is_one_sentence(here, capsys, words, said):
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_a_run_is_trained_evaluated_resumed_and_not_overwritten(here, capsys):
    words = [*TRAIN, "--out", "runs/x", "--steps", "3", *SMALL]
    assert cli.main([*words, "--label", "click", "--json"]) == 0
    printed = capsys.readouterr()
    assert "inputs history_item_id; left out: request_ts" in " ".join(printed.err.split())
    said = json.loads(printed.out)
    assert {"table", "out", "task", "steps", "first_loss", "last_loss", "metrics"} <= set(said)
    assert (said["task"], said["steps"]) == ("ranking", 3)
    config, _, _, _ = read_run(here / "runs" / "x" / "run.json")
    assert (config.model.labels, config.model.width, config.world_size) == (("click",), 8, 1)
    assert cli.main(["evaluate", "runs/x", "--table", "lake.t", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == pytest.approx(said["metrics"])  # few held-out requests, so all of them both times
    assert found["snapshot_id"] == found["trained_on"]
    assert cli.main(words) == 2
    assert "--resume goes on with it, --replace trains anew" in capsys.readouterr().err
    assert cli.main(["train", "lake.t", "--out", "runs/x", "--resume"]) == 0
    assert "3 steps of lake.t" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_says_which_checkpoint_is_kept_and_a_run_that_is_replaced_stays_until_then(here, capsys, monkeypatch):
    (here / "run.toml").write_text("num_steps = 20\nmax_epochs = 0\ncheckpoint_every = 1\nbaselines = false\n")
    out = here / "runs" / "y"

    def stop(line, progress, *arguments):
        if getattr(progress, "stage", "") == "training" and progress.step > 1:
            raise KeyboardInterrupt

    def files():
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "unfinished" not in path.parts}

    with monkeypatch.context() as patch:
        patch.setattr("reqdedup.cli.output.ProgressLine.__call__", stop)
        assert cli.main([*TRAIN, "--out", "runs/y", "--config", "run.toml", *SMALL]) == 130
    assert "is kept in runs/y/checkpoint.pt; --resume goes on there" in capsys.readouterr().err
    assert cli.main(["train", "lake.t", "--out", "runs/y", "--resume"]) == 0
    before = files()
    again = [*TRAIN, "--out", "runs/y", "--config", "run.toml", "--seed", "5", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr("reqdedup.cli.output.ProgressLine.__call__", stop)
        assert cli.main([*again, "--replace"]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "is kept in runs/y/unfinished/checkpoint.pt; --resume goes on there; the run in runs/y is as it was" in said
    assert files() == before
    assert cli.main(again) == 2, "no word of --resume or --replace"
    assert cli.main(["train", "lake.t", "--out", "runs/y", "--resume"]) == 0
    assert read_run(out / "run.json")[0].seed == load_checkpoint(out / "checkpoint.pt")["config"]["seed"] == 5
    assert not (out / "unfinished").exists()
    assert (out / "bundle").is_dir()


def test_what_is_left_of_a_run_without_checkpoint_is_said(tmp_path):
    assert "no step was taken; train again" in _kept(tmp_path, None)
    (tmp_path / METRICS_NAME).write_text("step,loss\n")
    assert f"{tmp_path} has metrics of the steps alone; train again" in _kept(tmp_path, None)
