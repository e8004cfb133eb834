"""DCAT of HSTU layers in place of softmax attention.

python examples/models/hstu.py 200
"""

import sys

from shop import KNOWN_LATER, show, source

import reqdedup as rd


def main(steps: int) -> None:
    table = source()
    model = rd.DCATConfig.from_schema(
        table.schema, labels=["click"], exclude=KNOWN_LATER, layer="hstu", width=32, num_layers=2, max_history=64
    )
    config = rd.TrainingConfig(model=model, num_steps=steps, requests_per_step=32, learning_rate=3e-3, world_size=1)
    result = rd.train(config, table, out_dir="runs/hstu")
    show(result, "auc_click", "request_auc_click", "log_loss_click")


if __name__ == "__main__":
    main(int(sys.argv[1]))
