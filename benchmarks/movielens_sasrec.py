"""An independent SASRec beside the library's two-tower: RecTools', in its own environment, on the protocol of
`benchmarks.movielens_quality`: the same split, histories, items and positives, seen items left out.

    python -m venv sasrec && sasrec/bin/pip install 'rectools[torch]==0.19.0' 'torch==2.13.0' scikit-learn
    python -m benchmarks.movielens_sasrec ml-100k --python sasrec/bin/python [--by time|user] [--epochs 10 20 40 80]
        [--our-epochs 5 10 30] [--try]

SASRec sees each training user's sequence once an epoch and predicts every next item by a softmax over all, from all
ratings or from those of 3 and more; requests whose history is empty it cannot answer, and there popularity ranks. Its
learning rate and sizes are its package's and the two-tower's, not tuned; epochs are shown, not chosen: one training is
judged on its way. A two-tower is trained anew for each number, since its rate falls to the end. CPU is that of
training, one thread each, without judging; ours includes reading the table. --try: one epoch of either, nothing is
recorded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.movielens_quality import EPOCHS, SHOWN, configuration, given, table
from benchmarks.record import write_results
from reqdedup.models.baselines import Histories, Interactions
from reqdedup.models.baselines.interactions import broken_by_popularity
from reqdedup.storage import TableSource
from reqdedup.training.judgement.baselines import splits_of
from reqdedup.training.judgement.judge import judge
from reqdedup.training.judgement.outcomes import Outcomes, Ranked
from reqdedup.training.judgement.retrieval_baselines import retrieval_baselines
from reqdedup.training.progress import TrainingProgress
from reqdedup.training.rank_run import run_rank
from reqdedup.training.split import SplitBy

WORKER = Path(__file__).with_name("sasrec_worker.py")
CLAIM = "MovieLens-100K, beside an independent SASRec"


@dataclass(kw_only=True)
class SasRec:
    """A rule as those of `reqdedup.models.baselines`: fitted on interactions, then `scores` of histories.

    python: of the environment that has RecTools.  cpu_s: of the training up to so many epochs.
    """

    python: Path
    folder: Path
    seed: int = 0
    learning_rate: float = 1e-3
    cpu_s: dict[int, float] = field(default_factory=dict)

    def fit_until(self, epochs: int, interactions: Interactions) -> SasRec:
        """Trained for so many epochs in all, going on from an earlier call with the same interactions."""
        if not self.cpu_s:
            self._num_items, self._popularity_V = interactions.num_items, interactions.popularity
            self._worker = subprocess.Popen(
                [self.python, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self.folder
            )
            start = {"fit": self._saved(interactions.histories), "seed": self.seed, "learning_rate": self.learning_rate}
            self._ask(start)
        before = max(self.cpu_s, default=0)
        spent = self._ask({"epochs": epochs - before})["cpu_s"]
        self.cpu_s[epochs] = self.cpu_s.get(before, 0.0) + spent
        return self

    def scores(self, histories: Histories) -> np.ndarray:
        out = str(self.folder / "scores.npz")
        self._ask({"score": self._saved(histories), "out": out, "num_items": self._num_items})
        with np.load(out) as arrays:
            return broken_by_popularity(arrays["score_RV"].clip(min=-1e3), self._popularity_V)

    def end(self) -> None:
        self._worker.communicate()

    def _saved(self, histories: Histories) -> str:
        path = self.folder / "histories.npz"
        np.savez(path, item_T=histories.item_T, offsets_R1=histories.offsets_R1)
        return str(path)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(json.dumps(question) + "\n")
        self._worker.stdin.flush()
        answer = self._worker.stdout.readline()
        if not answer:
            raise RuntimeError(f"{WORKER.name} under {self.python}: an answer required, found its end; see above")
        return json.loads(answer)


def rows_of(by: str, name: str, outcomes: Outcomes, cpu_s: float, epochs: int) -> Iterator[dict[str, Any]]:
    judgement = judge(outcomes)
    for row in judgement["figures"]:
        if row["metric"] in SHOWN["retrieval"] and row["slice"] in ("all", "history under 5"):
            yield {
                "claim": f"{CLAIM}, split by {by}, {row['slice']}: {row['metric']}",
                "variant": name,
                "value": row["value"],
                "unit": row["metric"],
                "target": None,
                "spread": [row["low"], row["high"]],
                "cpu_s": cpu_s,
                "epochs": epochs,
                "sizes": {"rows": judgement["rows"], "users": judgement["users"]},
            }


def measure(
    source: TableSource, by: SplitBy, python: Path, epochs: list[int], our_epochs: list[int], folder: Path
) -> Iterator[dict[str, Any]]:
    ours: Outcomes | None = None
    for number in our_epochs:
        config = configuration(source, "retrieval", by, 0, max_epochs=number)
        started, spent = time.process_time(), dict[str, float]()

        def tell(event: TrainingProgress, started: float = started, spent: dict[str, float] = spent) -> None:
            spent[event.stage] = time.process_time() - started

        ours = run_rank(tell, config, source, str(folder / f"two-tower-{by}-{number}")).outcomes
        assert isinstance(ours, Ranked)
        yield from rows_of(by, f"two-tower, {number} epochs", ours, spent["evaluating"], number)
    assert isinstance(ours, Ranked)
    train = splits_of(config, source).train
    for least, of in (("", "all ratings"), ("fair", "ratings of 3 and more")):
        rule = SasRec(python=python.absolute(), folder=folder)
        methods = {str(number): partial(rule.fit_until, number) for number in sorted(epochs)}
        found = retrieval_baselines(config, source, ours, train, methods, **given(source, least))
        rule.end()
        for number, cpu_s in rule.cpu_s.items():
            yield from rows_of(by, f"SASRec, {of}, {number} epochs", found[str(number)], cpu_s, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--by", choices=("time", "user"), action="append")
    parser.add_argument("--epochs", type=int, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--our-epochs", type=int, nargs="+", default=[5, 10, EPOCHS["retrieval"]])
    parser.add_argument("--try", dest="is_trial", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = table(options.folder, Path(folder))
        for by in options.by or ("time", "user"):
            epochs, ours = ([1], [1]) if options.is_trial else (options.epochs, options.our_epochs)
            rows = []
            for row in measure(source, by, options.python, epochs, ours, Path(folder)):
                rows.append(row)
                low, high = row["spread"]
                print(f"{row['claim']}: {row['variant']} {row['value']:.4f} ({low:.4f} to {high:.4f})", end="")
                print(f", {row['cpu_s']:.0f} s of CPU", flush=True)
            if not options.is_trial:
                print(write_results("movielens_sasrec", rows, replaced=(f"{CLAIM}, split by {by}, ",)))


if __name__ == "__main__":
    main()
