"""The README's chart, drawn from `benchmarks/results`, so that no figure in it is typed by hand.

python -m benchmarks.picture --write   draws docs/images/storage.svg anew
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.claim import results_of
from benchmarks.record import RESULTS
from reqdedup import plots
from reqdedup.display import format_bytes

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "storage.svg"
CLAIM = "shared_16k"
NAMES = {
    "shuffled": "shuffled, as most store it",
    "sorted": "sorted, the published layout",
    "sorted_large_pages": "sorted, large pages, any engine",
    "by_request": "BY_REQUEST",
}


def storage(folder: Path = RESULTS) -> plots.Chart:
    """Bytes of the sequence columns of one log in each layout, with the store-once limit. folder: of the results."""
    found = {
        NAMES[variant]: row for (claim, variant), row in results_of("storage_layouts", folder).items() if claim == CLAIM
    }
    first = next(iter(found.values()))
    sizes = first["sizes"]
    return plots.bars(
        {name: row["bytes"] for name, row in found.items()},
        title=f"sequence columns of {sizes['rows']:,} rows, {sizes['fan_out']:.0f} per request, "
        f"histories of up to {sizes['max_history']:,} events",
        text={
            name: format_bytes(row["bytes"])
            + (
                f", {row['value']:.3g}x smaller, {row['fraction_of_limit']:.0%} of the limit"
                if row is not first
                else ""
            )
            for name, row in found.items()
        },
        limits={name: row["store_once_bytes"] for name, row in found.items()},
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", required=True, help=f"{PICTURE.name} in docs/images")
    parser.parse_args(argv)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(storage().svg())
    return 0


if __name__ == "__main__":
    sys.exit(main())
