"""Retrieval of what will be bought: clicks as the lesser positive, misses as negatives, categories as a coarser loss.

python examples/models/conversions.py 200
"""

import sys

from shop import KNOWN_LATER, show, source

import reqdedup as rd


def main(steps: int) -> None:
    table = source()
    model = rd.TwoTowerConfig.from_schema(table.schema, exclude=KNOWN_LATER, width=32, max_history=64)
    config = rd.TrainingConfig(
        model=model,
        num_steps=steps,
        requests_per_step=32,
        learning_rate=3e-3,
        world_size=1,
        max_epochs=3,
        positive_label="buy",  # what the model is judged by
        # with heads=("buy", "click") of the model each has a user head of its own
        positives=(("buy", 1.0, "", 0.0), ("click", 0.2, "dwell_s", 30.0)),  # a click by its dwell time, up to 30 s
        hard_negative_weight=0.5,
        coarse_column="category",
        coarse_weight=0.3,
    )
    result = rd.train(config, table, out_dir="runs/conversions")
    show(result, "mean_log_rank")  # of what was bought; less is better


if __name__ == "__main__":
    main(int(sys.argv[1]))
