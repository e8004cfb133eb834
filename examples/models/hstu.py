"""DCAT of HSTU layers in place of softmax attention.

python examples/models/hstu.py 200
"""

import sys

from shop import source

import reqdedup as rd


def main(steps: int) -> None:
    table = source()
    model = rd.DCATConfig.from_schema(
        table.schema, labels=["click"], layer="hstu", width=32, num_layers=2, max_history=64
    )
    config = rd.TrainingConfig(model=model, num_steps=steps, requests_per_step=32, learning_rate=3e-3, world_size=1)
    result = rd.train(config, table, out_dir="runs/hstu")
    for name, value in result.metrics.items():  # held-out, each beside what chance would give
        print(f"{name} {value:.4g}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
