"""Result rows as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.study.run import FIGURES

Row = Mapping[str, Any]
TITLES = {
    "auc_click": "AUC",
    "log_loss_click": "log loss",
    "mean_log_rank": "mean log-rank",
    "recall_at_10": "recall@10",
    "recall_at_50": "recall@50",
    "recall_at_100": "recall@100",
}
DIGITS = {"auc_click": 4, "mean_log_rank": 3}


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
    names = FIGURES[rows[0]["task"]]
    names = (names[0], names[-2] if len(names) > 2 else names[-1]) if short else names
    main, others = names[0], names[1:]
    header = [
        "arm",
        "seeds",
        *(("user-tower passes", "item-tower passes") if work else ()),
        TITLES[main],
        f"against reference, {unit(main)}",
        *(f"{TITLES[name]}, %" for name in others),
    ]
    lines = []
    for row in rows:
        is_reference = row["variant"] == row["reference"]
        cells = [f"**{row['variant']}**" if is_reference else row["variant"], str(row["runs"])]
        cells += [f"{row['meters']['passes']:,.0f}", f"{row['meters']['rows']:,.0f}"] if work else []
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
    header = ["arm", "steps", "rows per step", "user-tower passes", "users", "effective users"]
    header += ["of a rank's negatives, the row's own user's"] if is_retrieval else []
    lines = []
    for row in rows:
        meters = row["meters"]
        cells = [row["variant"], f"{row['steps']:,}", f"{meters['rows']:,.0f}", f"{meters['passes']:,.0f}"]
        cells += [f"{meters['users']:,.0f}", f"{meters['effective_users']:,.0f}"]
        cells += [f"{100 * meters['false_negatives']:.1f}%"] if is_retrieval else []
        lines.append(cells)
    return markdown(header, lines)


def of_gradients(rows: Iterable[Row], task: str) -> list[Row]:
    """The gradient rows of a task."""
    return [row for row in rows if "effective_rows" in row and row["task"] == task]


def gradients(rows: Sequence[Row]) -> str:
    """Bias and noise of the gradient, arm by arm."""
    lines = []
    for row in rows:
        low, high = row["bias_spread"]
        bias = f"{row['bias']:.2f}" + (f" ({low:.2f} to {high:.2f})" if row["runs"] > 1 else "")
        lines.append([row["variant"], bias, f"{row['value']:.2f}x", f"{row['effective_rows']:,}"])
    return markdown(["arm", "bias", "noise", "effective rows"], lines)


def mean(row: Row, name: str) -> float:
    values = row["figures"][name]
    return sum(values) / len(values)


def unit(name: str) -> str:
    """Of differences of a figure."""
    return "nats" if name == "mean_log_rank" else "%"


def difference(row: Row, name: str) -> str:
    """Mean and half width of the 95% interval; bold where the interval leaves out 0."""
    found = row["differences"][name]
    low, high = found["ci95"]
    if low is None:
        return f"{found['mean']:+.3g} (one seed)"
    digits = 3 if name in ("auc_click", "mean_log_rank") else 2
    text = f"{found['mean']:+.{digits}f} ± {(high - low) / 2:.{digits}f}"
    return f"**{text}**" if low > 0 or high < 0 else text
