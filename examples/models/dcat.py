"""DCAT over two labels, and what it says of one request: the history is read once for all its candidates.

python examples/models/dcat.py 200
"""

import sys

from shop import KNOWN_LATER, show, source

import reqdedup as rd
from reqdedup.models import load_model
from reqdedup.training import RequestLoader


def main(steps: int) -> None:
    table = source()
    model = rd.DCATConfig.from_schema(
        table.schema, labels=["click", "buy"], exclude=KNOWN_LATER, width=32, num_layers=2, max_history=64
    )
    config = rd.TrainingConfig(model=model, num_steps=steps, requests_per_step=32, learning_rate=3e-3, world_size=1)
    result = rd.train(config, table, out_dir="runs/dcat")
    show(result, "auc_click", "auc_buy")
    trained = load_model(result.checkpoint)
    batch = next(iter(RequestLoader(table, requests_per_batch=1, columns=trained.config.columns)))
    context = trained.encode_blocks(batch.history)  # kept by a server, and extended by what happens next
    for item, logits in zip(batch.item_id_B.tolist(), trained.predict_exact(batch, [context]).tolist(), strict=True):
        print(item, [f"{logit:+.2f}" for logit in logits])


if __name__ == "__main__":
    main(int(sys.argv[1]))
