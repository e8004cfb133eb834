"""Pre-train on histories alone, then let a ranking model begin with what was learned, at a tenth of its rate.

python examples/models/foundation.py 200
"""

import sys

from shop import KNOWN_LATER, show, source

import reqdedup as rd
from reqdedup.models import FoundationConfig


def main(steps: int) -> None:
    table = source()
    sizes = {"width": 32, "num_layers": 2, "max_history": 64}
    run = {"num_steps": steps, "requests_per_step": 32, "learning_rate": 3e-3, "world_size": 1}
    foundation = FoundationConfig.from_schema(table.schema, window=3, future=4, **sizes)
    pretrained = rd.train(rd.TrainingConfig(model=foundation, **run), table, out_dir="runs/foundation")
    print(f"pre-training: loss {pretrained.first_loss:.3f} to {pretrained.last_loss:.3f}")

    model = rd.DCATConfig.from_schema(
        table.schema, labels=["click"], exclude=KNOWN_LATER, random_candidates=0.1, **sizes
    )
    slowly = {"transformer": 0.1, "embedding": 0.1}  # 0: frozen
    config = rd.TrainingConfig(model=model, foundation=str(pretrained.checkpoint), rate_factors=slowly, **run)
    result = rd.train(config, table, out_dir="runs/fine_tuned")
    show(result, "auc_click")


if __name__ == "__main__":
    main(int(sys.argv[1]))
