"""A ranking model on the table that audit_and_convert.py made.

python examples/train_on_it.py 200
"""

import sys

import reqdedup as rd


def main(steps: int) -> None:
    source = rd.open("lake").table("ads.engagements").source
    model = rd.DCATConfig.from_schema(source.schema, labels=["click"], width=32, num_layers=1, max_history=64)
    config = rd.TrainingConfig(model=model, num_steps=steps, requests_per_step=16, learning_rate=3e-3, world_size=1)
    result = rd.train(config, source, out_dir="runs/ranking")
    for name, value in result.metrics.items():  # held-out, each beside what chance would give
        print(f"{name} {value:.4g}")


if __name__ == "__main__":  # ranks are processes that import this file
    main(int(sys.argv[1]))
