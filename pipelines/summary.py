"""What a run made, in one screen: read from the metadata of its materializations."""

from __future__ import annotations

import math
from typing import Any

import dagster as dg

from assets.model_metadata import HEADLINES
from assets.training import FOUNDATION, MODELS
from pipelines.environment import Environment
from reqdedup.display import counted, format_bytes
from reqdedup.storage.iceberg.catalogs import shown_uri

RUNS_LOOKED_AT = 100
LAYOUTS = ("engagements_shuffled", "engagements_sorted", "engagements_by_request")


def asset_metadata(
    instance: dg.DagsterInstance, asset: str, namespace: str, *, run_id: str | None = None
) -> dict[str, Any]:
    """Metadata values of the asset's newest materialization in this namespace, of one run if given;
    empty if there is none. The namespace before the name of a number is left out."""
    for record in instance.fetch_materializations(dg.AssetKey(asset), limit=RUNS_LOOKED_AT).records:
        if record.asset_materialization is not None and run_id in (None, record.run_id):
            values = {name: value.value for name, value in record.asset_materialization.metadata.items()}
            if values.get("namespace") == namespace:
                return {name.removeprefix(f"{namespace}/"): value for name, value in values.items()}
    return {}


def summary_lines(instance: dg.DagsterInstance, environment: Environment, *, run_id: str, seconds: float) -> list[str]:
    """The screen, line by line; stages that did not run are left out."""
    namespace = environment.resolved_namespace

    def made(asset: str) -> dict[str, Any]:
        return asset_metadata(instance, asset, namespace, run_id=run_id)

    lines = ["", f"reqdedup: namespace {namespace}, {seconds:.0f} s", ""]
    raw = made("raw_engagements")
    if raw:
        lines.append(
            f"  log        {raw['dagster/row_count']:,} rows, {raw['requests']:,} requests, {raw['users']:,} users, "
            f"fan-out {raw['fan_out']}, {raw.get('rejected_rows', 0):,} rows rejected"
        )
    lines += _layout_lines(made("compression_report"))
    feature = made("request_features")
    if feature:
        lines.append(
            f"  feature    {feature['dagster/row_count']:,} requests backfilled with {format_bytes(feature['bytes'])} "
            f"(values alone {format_bytes(feature['minimum_bytes'])}), main table not rewritten"
        )
    sample = made("training_sample")
    if sample:
        lines.append(
            f"  join       {sample['join_matched_rows']:,} of {sample['join_left_rows']:,} rows matched, "
            f"{sample['join_missing_rows']:,} without a feature; bucket by bucket, no shuffle"
        )
        lines.append(
            f"  sample     {sample['users']:,} users, {sample['requests']:,} requests, {sample['dagster/row_count']:,} rows"
        )
    for model in (FOUNDATION, *MODELS):
        lines += _model_lines(model, made(model))
    return [
        *lines,
        "",
        f"  tables     {_place(environment)}",
        f"  next       {f'make serve NAMESPACE={namespace}':<27} both models behind HTTP",
        "             make ui                     the graph, its checks and reports",
        "             make notebooks              the compression report, drawn",
        "             make run LOGS=<path> PRESET=movielens|mind|kuairand|...  your own log",
        "",
    ]


def _place(environment: Environment) -> str:
    """Where tables and models are; a catalog's uri without its password."""
    properties = environment.catalog_properties
    if properties.get("warehouse") == f"file://{environment.data_dir / 'tables'}":
        return f"{environment.data_dir}  (catalog.db, tables/, models/)"
    return (
        f"{properties.get('warehouse', 'where the catalog puts them')}, catalog {shown_uri(properties)}; "
        f"models in {environment.data_dir / 'models'}"
    )


def _layout_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for table in LAYOUTS:
        name = table.removeprefix("engagements_")
        if f"bytes_{name}" in report:
            lines.append(
                f"  {name:<10} {format_bytes(report[f'bytes_{name}']):>8}  {report[f'ratio_{name}']:>7}x all columns, "
                f"{report[f'widest_column_ratio_{name}']:>7}x {report['widest_column']}, "
                f"{100 * report[f'fraction_of_limit_{name}']:.0f}% of the store-once limit"
            )
    return lines


def _model_lines(model: str, figures: dict[str, Any]) -> list[str]:
    if "steps" not in figures:  # not made, or a recipe without it
        return []
    metrics = [
        f"{name} {value:.3f} (chance {figures[name + '_chance']:.3f}"
        + (f", best baseline {figures[name + '_baseline']:.3f})" if name + "_baseline" in figures else ")")
        for name, value in figures.items()
        if name.startswith(HEADLINES)
        and name + "_chance" in figures
        and not math.isnan(value)  # no AUC if held-out rows have one class only
    ]
    return [
        f"  {model.removesuffix('_model'):<10} {counted(figures['ranks'], 'rank')}, {figures['steps']} steps, "
        f"{figures['rows_per_s']:,} rows/s, loss {figures['loss_first_tenth']} -> {figures['loss_last_tenth']}"
        + (f", begins with {figures['begins_with'].split()[0]}" if "begins_with" in figures else ""),
        *(f"             held out: {', '.join(metrics[i : i + 2])}" for i in range(0, len(metrics), 2)),
        *([f"             {figures['verdict']}"] if "verdict" in figures else []),
    ]


def print_summary(instance: dg.DagsterInstance, environment: Environment, *, run_id: str, seconds: float) -> None:
    """Print the screen to standard output."""
    print("\n".join(summary_lines(instance, environment, run_id=run_id, seconds=seconds)), flush=True)
