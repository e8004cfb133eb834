"""A GBM of scikit-learn, for `benchmarks.residual_rivals`: python gbm_worker.py IN.npz OUT.npz, in its own environment.

IN: feature_NF, label_N of training rows, feature_BF of others.  OUT: logit_B.
"""

import sys

import numpy as np
from sklearn.ensemble import (  # type: ignore[import-not-found,import-untyped,unused-ignore]  # of its environment
    HistGradientBoostingClassifier,
)


def main(given: str, out: str) -> None:
    with np.load(given) as arrays:
        model = HistGradientBoostingClassifier(
            max_iter=400, learning_rate=0.04, max_leaf_nodes=15, min_samples_leaf=60, l2_regularization=5.0,
            early_stopping=True, validation_fraction=0.1, n_iter_no_change=15, random_state=0,
        )  # fmt: skip
        model.fit(arrays["feature_NF"], arrays["label_N"])
        np.savez(out, logit_B=model.decision_function(arrays["feature_BF"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
