"""Two ranking stages: a DCAT, and an early ranker for thousands of candidates that learns from it.

python examples/models/early_ranker.py 200
"""

import sys

from shop import KNOWN_LATER, show, source

import reqdedup as rd
from reqdedup.models import EarlyRankerConfig


def main(steps: int) -> None:
    table = source()
    sizes = {"labels": ["click"], "exclude": KNOWN_LATER, "width": 32, "num_layers": 1, "max_history": 64}
    run = {"num_steps": steps, "requests_per_step": 32, "learning_rate": 3e-3, "world_size": 1}
    late = rd.TrainingConfig(model=rd.DCATConfig.from_schema(table.schema, **sizes), **run)
    taught = rd.train(late, table, out_dir="runs/late")
    model = EarlyRankerConfig.from_schema(table.schema, head_widths=(32,), output_width=32, **sizes)
    early = rd.TrainingConfig(model=model, teacher=str(taught.checkpoint), teacher_weight=0.5, **run)
    result = rd.train(early, table, out_dir="runs/early")
    for one in (taught, result):
        show(one, "auc_click")


if __name__ == "__main__":
    main(int(sys.argv[1]))
