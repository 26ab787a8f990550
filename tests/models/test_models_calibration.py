"""On noise, nested scores lie at chance, and a 5% permutation test rejects 5%."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from daskdecode import Decoder, permutation_test

N_SUBJECTS = 200
GROUPS = np.repeat(["1", "2", "3", "4"], 8)


def noise(seed):
    rng = np.random.default_rng([7, seed])
    return rng.standard_normal((32, 40)), np.tile(["a", "b"], 16)


@pytest.mark.slow
def test_two_hundred_subjects_of_noise():
    """Independent volumes: labels exchanged within runs, C tuned inside the training runs."""
    decoder = Decoder(param_grid={"C": [1e-3, 1e-1]}, screening_percentile=None)
    tests = [permutation_test(decoder, *noise(seed), GROUPS, n_permutations=39, random_state=seed) for seed in range(N_SUBJECTS)]
    scores = np.array([test.score for test in tests])
    # Chance of the same folds, scaling and tuning, as the permuted labels have it.
    chance = np.mean([test.null.mean() for test in tests])
    assert abs(scores.mean() - chance) < 2 * scores.std(ddof=1) / np.sqrt(N_SUBJECTS)
    assert binomtest(sum(test.pvalue <= 0.05 for test in tests), N_SUBJECTS, 0.05).pvalue > 0.01
