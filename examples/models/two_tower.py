"""A two-tower with cross layers beside the MLPs and a context: the category that a request is about.

python examples/models/two_tower.py 200
"""

import sys

from shop import KNOWN_LATER, show, source

import reqdedup as rd


def main(steps: int) -> None:
    table = source()
    model = rd.TwoTowerConfig.from_schema(
        table.schema,
        exclude=KNOWN_LATER,
        tower="parallel",
        context_categories=(("subject", "", "category"),),  # in a request; of items
        context_from="logged",  # or "positive": of each positive's own item, where no context was logged
        pooling="both",
        fusion="attention",
        width=32,
        max_history=64,
    )
    config = rd.TrainingConfig(
        model=model, num_steps=steps, requests_per_step=32, learning_rate=3e-3, world_size=1, max_epochs=3
    )
    result = rd.train(config, table, out_dir="runs/two_tower")
    show(result, "mean_log_rank", "recall_at_10")
    for row in result.judgement["figures"]:  # the model must be better than "no context" and "shuffled context"
        if (row["metric"], row["slice"]) == ("mean_log_rank", "all"):
            print(row["baselines"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
