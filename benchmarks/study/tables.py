"""Result rows as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
TITLES = {
    "auc": "AUC",
    "log_loss": "log loss",
    "log_rank": "mean log-rank",
    "recall_at_10": "recall@10",
    "recall_at_50": "recall@50",
    "recall_at_100": "recall@100",
}
SHOWN = {"ranking": ("auc", "log_loss"), "retrieval": ("log_rank", "recall_at_10", "recall_at_50", "recall_at_100")}
DIGITS = {"auc": 4, "log_loss": 4, "log_rank": 3}


def select(rows: Iterable[Row], log: str, block: str) -> list[Row]:
    """The rows of one comparison, in the order of its arms."""
    return [row for row in rows if row["claim"] == f"{log}: {block}"]


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    table = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table) + "\n"


def comparison(rows: Sequence[Row], *, short: bool = False, work: bool = False) -> str:
    """Figures of a comparison beside its reference: the mean over seeds, differences with their 95% interval.

    short: the main figure and one other.  work: passes of both towers per step.
    """
    names = SHOWN[rows[0]["task"]]
    names = (names[0], names[-2] if len(names) > 2 else names[-1]) if short else names
    main, others = names[0], names[1:]
    unit = "%" if main == "auc" else "nats"
    header = [
        "arm",
        "seeds",
        *(("user-tower passes", "item-tower passes") if work else ()),
        TITLES[main],
        f"against reference, {unit}",
        *(f"{TITLES[name]}, %" for name in others),
    ]
    lines = []
    for row in rows:
        is_reference = row["variant"] == row["reference"]
        cells = [f"**{row['variant']}**" if is_reference else row["variant"], str(row["runs"])]
        cells += [f"{row['meters']['passes']:,.0f}", f"{row['sizes']['rows_per_step']:,}"] if work else []
        cells.append(f"{mean(row, main):.{DIGITS[main]}f}")
        if is_reference:
            cells += ["reference"] + [f"({mean(row, name):.4f})" for name in others]
        else:
            cells += [difference(row, name) for name in names]
        lines.append(cells)
    return markdown(header, lines)


def batches(rows: Sequence[Row]) -> str:
    """What the steps of a comparison's arms hold."""
    is_retrieval = rows[0]["task"] == "retrieval"
    header = ["arm", "rows per step", "user-tower passes", "users", "effective users"]
    header += ["false negatives", "after the user mask"] if is_retrieval else []
    lines = []
    for row in rows:
        meters = row["meters"]
        cells = [row["variant"], f"{row['sizes']['rows_per_step']:,}", f"{meters['passes']:,.0f}"]
        cells += [f"{meters['users']:,.0f}", f"{meters['effective_users']:,.0f}"]
        if is_retrieval:
            cells += [f"{100 * meters['false_negatives']:.2f}%", f"{100 * meters['after_mask']:.2f}%"]
        lines.append(cells)
    return markdown(header, lines)


def sweep(with_norm: Sequence[Row]) -> str:
    """Ever smaller pieces: users, differences, rows per pass."""
    names = SHOWN[with_norm[0]["task"]]
    main, second = names[0], names[1] if len(names) == 2 else "recall_at_50"
    header = ["pieces", "users", "effective users", "rows per pass"]
    header += [f"{TITLES[main]}, {'%' if main == 'auc' else 'nats'}", f"{TITLES[second]}, %"]
    lines = []
    for row in sorted(with_norm, key=lambda row: row["meters"]["effective_users"]):
        meters = row["meters"]
        is_reference = row["variant"] == row["reference"]
        lines.append(
            [
                row["variant"],
                f"{meters['users']:.0f}",
                f"{meters['effective_users']:.0f}",
                f"{row['sizes']['rows_per_step'] / meters['passes']:.1f}",
                "reference" if is_reference else difference(row, main),
                "reference" if is_reference else difference(row, second),
            ]
        )
    return markdown(header, lines)


def negatives(rows: Sequence[Row]) -> str:
    """How many negatives a row has, of how many users, and the mean log-rank."""
    header = ["arm", "negatives of a row", "of effective users", f"{TITLES['log_rank']}, nats"]
    lines = []
    for row in rows:
        meters = row["meters"]
        cells = [row["variant"], f"{meters['negatives']:.0f}", f"{meters['negative_users']:.1f}"]
        lines.append([*cells, "reference" if row["variant"] == row["reference"] else difference(row, "log_rank")])
    return markdown(header, lines)


def of_gradients(rows: Iterable[Row], task: str) -> list[Row]:
    """The gradient rows of a task."""
    return [row for row in rows if "group" in row and row["task"] == task]


def gradients(rows: Sequence[Row]) -> str:
    """Bias and noise of the network's and the item table's gradient, arm by arm."""
    header = ["arm", "bias, network", "noise, network", "effective rows", "bias, items", "noise, items"]
    of_arm: dict[str, dict[str, Row]] = {}
    for row in rows:
        of_arm.setdefault(row["variant"], {})[row["group"]] = row
    lines = []
    for arm, groups in of_arm.items():
        network, items = groups["network"], groups["items"]
        low, high = network["bias_spread"]
        lines.append(
            [
                arm,
                f"{network['bias']:.2f} ({low:.2f} to {high:.2f})",
                f"{network['value']:.2f}x",
                f"{network['effective_rows']:,}",
                f"{items['bias']:.2f}",
                f"{items['value']:.2f}x",
            ]
        )
    return markdown(header, lines)


def mean(row: Row, name: str) -> float:
    values = row["figures"][name]
    return sum(values) / len(values)


def difference(row: Row, name: str) -> str:
    """Mean and half width of the 95% interval; bold where the interval leaves out 0."""
    found = row["differences"][name]
    low, high = found["ci95"]
    if low is None:
        return f"{found['mean']:+.3g} (one seed)"
    digits = 3 if name in ("auc", "log_rank") else 2
    text = f"{found['mean']:+.{digits}f} ± {(high - low) / 2:.{digits}f}"
    return f"**{text}**" if low > 0 or high < 0 else text
