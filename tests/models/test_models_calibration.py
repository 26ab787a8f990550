"""On noise, nested scores lie at chance, and a 5% permutation test rejects 5%."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from daskdecode import Decoder, permutation_test

pytestmark = pytest.mark.slow

N_SUBJECTS = 200
N_RUNS, LENGTH, P = 4, 8, 40


def noise(seed, autocorrelation=0.0, block=1, p=P):
    """Runs of blocks whose conditions are drawn anew for each subject: data, labels, runs."""
    rng = np.random.default_rng([7, seed])
    x = rng.standard_normal((N_RUNS, LENGTH * block, p))
    for t in range(1, x.shape[1]):
        x[:, t] = autocorrelation * x[:, t - 1] + np.sqrt(1 - autocorrelation**2) * x[:, t]
    order = rng.permuted(np.tile(["a", "b"], (N_RUNS, LENGTH // 2)), axis=1)
    y = np.repeat(order, block, axis=1)
    return x.reshape(-1, p), y.ravel(), np.repeat(["1", "2", "3", "4"], y.shape[1])


def rejected(tests):
    return binomtest(sum(test.pvalue <= 0.05 for test in tests), len(tests), 0.05)


def standard_errors_from_chance(scores):
    return (np.mean(scores) - 0.5) / (np.std(scores, ddof=1) / np.sqrt(len(scores)))


@pytest.mark.parametrize(("scoring", "p", "screening"), [("roc_auc", 120, 20), ("accuracy", P, None)])
def test_nested_scores_of_noise_lie_at_chance(scoring, p, screening):
    """Leaving a run out, chance is one half and nothing less: given the other runs, a run's noise is as likely in any order.

    Also after z-scoring by run, which treats all its samples alike. (Leaving out single samples would take the test sample's class from the
    training set, and pooling decision values of several folds in one AUC would compare what was trained apart: both end below chance.)
    """
    decoder = Decoder(param_grid={"C": [1e-3, 1e-1]}, screening_percentile=screening, scoring=scoring)
    scores = [np.mean(decoder.fit(*noise(seed, p=p)).cv_scores_["a"]) for seed in range(N_SUBJECTS)]
    assert abs(standard_errors_from_chance(scores)) < 2


def test_labels_exchanged_within_runs():
    """Independent volumes, C tuned inside the training runs."""
    decoder = Decoder(param_grid={"C": [1e-3, 1e-1]}, screening_percentile=None)
    tests = [permutation_test(decoder, *noise(seed), n_permutations=39, random_state=seed) for seed in range(N_SUBJECTS)]
    assert abs(standard_errors_from_chance([test.score for test in tests])) < 2
    assert abs(standard_errors_from_chance(np.concatenate([test.null for test in tests]))) < 3
    assert rejected(tests).pvalue > 0.01


def test_autocorrelated_noise_needs_blocks_to_be_exchanged():
    """Noise that lasts, AR(1) at 0.9, and blocks of four volumes: volumes that change places forget that, and their test is no test."""
    decoder, found = Decoder("ridge_classifier", screening_percentile=None), {}
    for exchange in ("blocks", "within_run"):
        found[exchange] = []
        for seed in range(N_SUBJECTS):
            x, y, runs = noise(seed, 0.9, block=4)
            blocks = np.arange(y.size) // 4 if exchange == "blocks" else None
            how = {"exchange": exchange, "blocks": blocks, "n_permutations": 39, "random_state": seed}
            found[exchange].append(permutation_test(decoder, x, y, runs, **how))
    assert rejected(found["blocks"]).pvalue > 0.01
    wrong = rejected(found["within_run"])
    assert wrong.statistic > 0.1
    assert wrong.pvalue < 1e-3
