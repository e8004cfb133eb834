"""What a person sees of an asset in the UI: pictures without a click, human units, and numbers that can be followed."""

from __future__ import annotations

import base64
import re
import time
from datetime import date
from urllib.parse import unquote
from xml.etree import ElementTree

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from assets import pictures
from assets.engine import EngineName
from assets.metadata import (
    BY_COLUMN,
    CHART,
    EVENTS,
    GLANCE,
    LAG,
    PICTURE,
    column_lineage,
    compression_metadata,
    curve_metadata,
    quality_metadata,
    table_metadata,
)
from assets.model_metadata import beside_baseline, figures_table
from assets.rerank import SLATE, WEIGHTS
from assets.resources import RunRecipe, Warehouse
from assets.stages import stage
from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from reqdedup.display import format_seconds
from reqdedup.distributed import engine_for
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.rerank.scored import curve_table
from reqdedup.rerank.sweep import sweep, weight_grid
from reqdedup.storage import UserOverlap
from reqdedup.storage.measure.compression import REPORT_SCHEMA
from tests.distributed.work import Square, Squares
from warehouse import embedded_catalog, open_catalog, replace_engagement_table, write_report_table

LAYOUTS = ("engagements_shuffled", "engagements_sorted", "engagements_by_request")
IN_ORDER = ("storage", "training", "serving")


def drawn(value: dg.MetadataValue) -> ElementTree.Element:
    """The SVG of a picture, as a browser reads the address."""
    found = re.fullmatch(r"!\[chart\]\(<data:image/svg\+xml,(.*)>\)", value.value)
    assert found
    assert not set(found[1]) & set('<>#\n"')
    return ElementTree.fromstring(unquote(found[1]))


def lengths(svg: ElementTree.Element) -> list[int]:
    return [int(size) for path in svg for size in re.findall(r"h(\d+)v14", path.get("d", ""))]


def texts(svg: ElementTree.Element) -> list[str | None]:
    return [text.text for text in svg if text.tag.endswith("text")]


def test_bars_are_in_proportion_and_are_shown_without_a_click():
    picture = pictures.bars({"one": 400.0, "two": 100.0}, {"one": "a < 100%", "two": "#2"}, limits=[50.0, 50.0])
    assert len(picture.value) < pictures.SHOWN_AS_IT_IS
    svg = drawn(picture)
    assert lengths(svg) == [pictures.LENGTH, round(pictures.LENGTH / 4)]
    assert texts(svg) == ["one", "a < 100%", "two", "#2"]


def test_of_many_bars_the_first_are_shown_without_a_click():
    names = [f"a_column_of_history_{i}" for i in range(30)]
    picture = pictures.bars(dict.fromkeys(names, 1.0), dict.fromkeys(names, "1,234.5x to 999 MB"), limits=[2.0] * 30)
    assert len(picture.value) < pictures.SHOWN_AS_IT_IS
    assert 4 <= len(lengths(drawn(picture))) < 30


def test_a_figure_that_a_simple_rule_has_better_ends_before_its_line():
    """Less of a mean log-rank is better; what has no chance or no baseline is left out."""
    rows = [
        {"metric": "mean_log_rank", "value": 4.0, "chance": 6.0, "baseline": 5.0},
        {"metric": "auc_click", "value": 0.55, "chance": 0.5, "baseline": 0.6},
        {"metric": "auc_save", "value": 0.4, "chance": 0.5, "baseline": 0.45},
        {"metric": "recall_at_10_unseen", "value": 0.4, "chance": None, "baseline": 0.5},
        {"metric": "steps", "value": 9.0, "chance": None, "baseline": None},
    ]
    picture = beside_baseline(rows)
    assert picture is not None
    svg = drawn(picture)
    shown = lengths(svg)
    (lines,) = [path.get("d") for path in svg if path.get("stroke") == "crimson"]
    left = int(re.findall(r"M(\d+) 3h", "".join(path.get("d", "") for path in svg))[0])
    at = [int(x) - left for x in re.findall(r"M(\d+) ", lines)]
    assert texts(svg)[::2] == ["mean_log_rank", "auc_click", "auc_save"]
    assert (at[0], shown[1]) == (round(shown[0] / 2), round(at[1] / 2))
    assert (shown[2], at[2]) == (0, 0)
    assert beside_baseline(rows[3:]) is None


def test_calibration_is_shown_without_a_click_and_tenths_without_rows_are_left_out():
    tenth = (np.arange(10) + 0.5) / 20
    holes = np.where(np.arange(10) == 3, np.nan, tenth)
    picture = pictures.calibration({"click": (tenth, tenth), "save": (holes, holes / 2), "like": (tenth, tenth)})
    assert len(picture.value) < pictures.SHOWN_AS_IT_IS
    click, save, _ = [shape.get("points").split() for shape in drawn(picture) if shape.tag.endswith("polyline")]
    assert (len(click), len(save)) == (10, 9)
    at = [tuple(map(int, point.split(","))) for point in click]
    assert all(x - pictures.NAMES == pictures.HEIGHT - y for x, y in at)  # on the line


@pytest.mark.parametrize("steps", [1, 7, 40, 100_000])
def test_a_line_is_shown_without_a_click_however_long_the_run(steps):
    picture = pictures.line(np.linspace(5, 1, steps), first="loss 5", last="0.123 at step 100,000")
    assert len(picture.value) < pictures.SHOWN_AS_IT_IS
    (points,) = [shape.get("points") for shape in drawn(picture) if shape.tag.endswith("polyline")]
    y = [int(point.split(",")[1]) for point in points.split()]
    assert len(y) == min(steps, pictures.POINTS)
    assert y == sorted(y)  # downwards on a screen


def compression() -> pa.Table:
    rows = []
    for table, size in zip(LAYOUTS, (272_108_518, 30_000_000, 11_300_000)):
        facts = {"level": "request", "rows": 90_000, "requests": 600, "fan_out": 150.0, "uncompressed_bytes": size}
        sizes = {"compressed_bytes": size, "store_once_bytes": 4_700_000, "fraction_of_limit": 4_700_000 / size}
        ratio = {"ratio_to_control": 272_108_518 / size}
        rows.append({"table": table, "column": "history", **facts, **sizes, **ratio})
    return pa.Table.from_pylist(rows, schema=REPORT_SCHEMA)


@pytest.mark.slow
def test_the_compression_report_speaks_in_human_units():
    overlap = UserOverlap(requests=600, events=1_000, repeated_events=400)
    metadata = compression_metadata(compression(), overlap)
    assert list(metadata)[:2] == [PICTURE, GLANCE]
    assert len(metadata[PICTURE].value) < pictures.SHOWN_AS_IT_IS
    cells = [
        {name: str(text).replace("\xa0", " ") for name, text in row.data.items()} for row in metadata[GLANCE].records
    ]
    assert cells[0] == {
        "layout": "shuffled",
        "stored": "272 MB",
        "smaller": "1.0x",
        "of limit": "2%",
    }
    assert cells[2]["smaller"] == "24.1x"
    assert cells[2]["of limit"] == "42%"
    assert lengths(drawn(metadata[BY_COLUMN])) == [round(pictures.LENGTH * 4_700_000 / 11_300_000)]
    assert texts(drawn(metadata[BY_COLUMN])) == ["history", "24.1x to 11.3 MB"]
    assert metadata["bytes_shuffled"] == 272_108_518
    for name in ("chart by layout", "chart by column"):
        image = base64.b64decode(metadata[name].value.partition("base64,")[2].rstrip(")"))
        assert 1_000 < len(image) < 60_000


def test_the_days_of_sequences_are_shown_without_a_click():
    rows = [
        {"day": date(2026, 1, day), "event_type": kind, "figure": figure, "of": "", "value": value * day}
        for day in range(1, 31)
        for kind in ("click", "view")
        for figure, value in (("kept", 500.0), ("lag_p50_s", 2.0), ("lag_p99_s", 60.0))
    ]
    metadata = quality_metadata(pa.Table.from_pylist(rows))
    for name, said in ((EVENTS, ["1,000", "30,000 at last"]), (LAG, ["60.0 s", "30.0 min (99%)"])):
        assert len(metadata[name].value) < pictures.SHOWN_AS_IT_IS
        assert texts(drawn(metadata[name])) == said


def test_the_curve_shows_relevance_beside_variety():
    figures = {"scores alone": (1.0, 0.4), "volume 4": (0.97, 0.6)}
    rows = [
        {"point": point, "requests": 3, "figure": name, "value": value}
        for point, values in figures.items()
        for name, value in zip(("dcg_ratio", "mean_distance"), values)
    ]
    metadata = curve_metadata(pa.Table.from_pylist(rows))
    assert len(metadata[PICTURE].value) < pictures.SHOWN_AS_IT_IS
    assert metadata[GLANCE].records[1].data["relevance kept"] == "97.0%"
    assert CHART in metadata


def test_the_curve_of_requests_with_one_candidate_each_says_that_there_is_none():
    candidates = {"item_id": np.arange(3), "row_offsets": np.arange(4)}
    points = sweep(weight_grid(SLATE, "volume", WEIGHTS), np.array([0.5, -1.0, 2.0]), **candidates, vectors=np.eye(3))
    metadata = curve_metadata(curve_table(points))
    assert "none" in str(metadata[GLANCE])
    assert metadata["dagster/row_count"] > 0
    assert CHART not in metadata


@pytest.mark.slow
def test_a_table_tells_the_ui_its_name_columns_rows_and_snapshot(tmp_path):
    catalog = open_catalog(embedded_catalog(tmp_path))
    config = SyntheticLogConfig(seed=3, num_users=8, num_items=200, mean_fan_out=4, max_fan_out=8, max_history=16)
    rows = synthetic_schema(config), synthesize(config)
    replace_engagement_table(catalog, "small", "engagements_by_request", *rows, num_buckets=2)
    table = catalog.load_table("small.engagements_by_request")
    metadata = table_metadata(table)
    assert metadata["dagster/table_name"] == "small.engagements_by_request"
    assert metadata["dagster/row_count"] == table.scan().count()
    assert metadata["bytes"] == sum(task.file.file_size_in_bytes for task in table.scan().plan_files())
    assert metadata["snapshot_id"] == str(table.current_snapshot().snapshot_id)
    columns = {column.name: column for column in metadata["dagster/column_schema"].columns}
    assert list(columns) == table.schema().column_names
    assert columns["history_item_id"].description == table.schema().find_field("history_item_id").doc
    report = write_report_table(catalog, "small", "report", pa.table({"n": [1, 2]}))
    assert "dagster/column_schema" not in table_metadata(report)


def test_columns_come_from_those_of_the_same_name_or_from_what_they_are_computed_of(catalog):
    catalog.create_namespace("ns")
    main, side = (
        catalog.create_table(f"ns.{name}", pa.schema([(column, pa.int64()) for column in columns]))
        for name, columns in (("main", ("user_id", "item_id")), ("side", ("user_id", "count")))
    )
    sample = catalog.create_table("ns.sample", pa.schema([(c, pa.int64()) for c in ("user_id", "count", "x", "y")]))
    (lineage,) = column_lineage(sample, main, side, made={"x": "main.item_id"}).values()
    found = {
        name: [(dep.asset_key.to_user_string(), dep.column_name) for dep in deps]
        for name, deps in lineage.deps_by_column.items()
    }
    assert found == {"user_id": [("main", "user_id")], "count": [("side", "count")], "x": [("main", "item_id")]}


def test_numbers_of_one_namespace_share_no_name_with_those_of_another():
    """Dagster draws all numbers of a name on one axis; row counts have a name that it prescribes."""
    labels = []
    for namespace in ("one", "two"):
        store = Warehouse(run_recipe=RunRecipe(), namespace=namespace)
        result = store.result(**{"bytes": 5, "share": 0.5, "is_whole": True, "text": "7", "dagster/row_count": 3})
        labels.append({name for name, value in result.metadata.items() if type(value) in (int, float)})
        assert result.metadata["text"] == "7"
    assert labels[0] & labels[1] == {"dagster/row_count"}
    assert labels[0] == {"one/bytes", "one/share", "dagster/row_count"}


def test_every_stage_says_what_it_took():
    @stage(name="busy")
    def busy() -> dg.MaterializeResult:
        """Burns a little CPU, holds 80 MB."""
        held, until = np.ones(10_000_000), time.process_time() + 0.05
        while time.process_time() < until:
            held[0] += 1
        return dg.MaterializeResult(metadata={"namespace": "ns", "ns/rows": 3})

    metadata = []
    for _ in range(2):  # the peak is of the stage, not of the process
        done = dg.materialize([busy], instance=dg.DagsterInstance.ephemeral())
        (event,) = done.get_asset_materialization_events()
        metadata.append({name: value.value for name, value in event.materialization.metadata.items()})
    took = metadata[-1]
    assert took["ns/rows"] == 3
    assert took["ns/wall_s"] >= took["ns/cpu_s"] - 0.02 >= 0.03
    assert took["ns/peak_memory_bytes"] > 80_000_000
    graph = build_definitions(Environment()).get_repository_def().assets_defs_by_key
    plain = [key for key, made in graph.items() if not hasattr(made.op.compute_fn.decorated_fn, "__wrapped__")]
    assert plain == []


@pytest.mark.slow
def test_a_stage_says_the_engine_tasks_repetitions_and_bytes(tmp_path):
    @stage(name="asks")
    def asks(store: Warehouse) -> dg.MaterializeResult:
        """Squares two numbers, one of them with a process that dies."""
        engine = engine_for(None, None, num_tasks=2)
        (tmp_path / "marks").mkdir()
        assert len(list(engine.run(Squares(tmp_path / "marks"), [Square(2), Square(3, "kill", once=True)]))) == 2
        return dg.MaterializeResult(metadata={"namespace": "ns"})

    store = Warehouse(
        run_recipe=RunRecipe(), namespace="ns", data_dir=str(tmp_path), engine=EngineName.processes, num_processes=1
    )
    done = dg.materialize([asks], resources={"store": store}, instance=dg.DagsterInstance.ephemeral())
    (event,) = done.get_asset_materialization_events()
    found = {name: value.value for name, value in event.materialization.metadata.items()}
    wanted = {"engine": "processes:1", "ns/tasks": 2, "ns/retries": 1, "ns/bytes_moved": 0}
    assert {name: found.get(name) for name in wanted} == wanted


def test_every_asset_says_what_it_is_and_whose_and_its_group_reads_in_order():
    graph = build_definitions(Environment()).get_repository_def().asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert len(node.description) > 120, key
        assert node.owners, key
        assert node.tags["role"], key
        assert node.group_name in IN_ORDER, key
        for parent in node.parent_keys:
            assert IN_ORDER.index(graph.get(parent).group_name) <= IN_ORDER.index(node.group_name), (parent, key)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (119.94, "119.9 s"), (120, "2.0 min"), (29_568.8, "8.2 h"), (172_800, "2.0 days")],
)
def test_a_time_is_in_the_largest_unit_of_which_there_are_two(seconds, text):
    assert format_seconds(seconds) == text


def test_the_table_of_intervals_holds_judgements_alone():
    nothing = {"low": None, "high": None, "chance": None, "baseline": None, "best_baseline": None}
    judged = {"metric": "auc_click", "value": 0.6, "low": 0.5, "high": 0.7, "chance": 0.5}
    rows = [{"metric": "steps", "value": 269.0, **nothing}, {**nothing, **judged}]
    for shown in figures_table(rows).values():
        assert [record.data["figure"] for record in shown.records] == ["auc_click"]
