"""A voxel without variance inside the classes has an infinite F; it is kept, and nothing warns."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.feature_selection import SelectPercentile

from daskdecode import Decoder
from daskdecode.engine.moments import Screening


@pytest.mark.parametrize("n_perfect", [1, 3, 5, 12])
@pytest.mark.parametrize("percentile", [10, 20, 33])
def test_voxels_are_kept_as_scikit_learn_keeps_them(n_perfect, percentile):
    scores = np.random.default_rng(n_perfect).random(40)
    scores[3 : 3 + n_perfect] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer subtracts infinities
        expected = SelectPercentile(lambda _x, _y: scores, percentile=percentile).fit(np.zeros((2, 40)), [0, 1]).get_support()
    kept = Screening(percentile=percentile).keep(scores)
    # Where scikit-learn's threshold is infinite or not a number it keeps too few or none; ours are as many as asked for.
    if expected.sum() == Screening(percentile=percentile).n_kept(40):
        np.testing.assert_array_equal(kept, expected)
    assert kept.sum() == Screening(percentile=percentile).n_kept(40)
    assert kept[3 : 3 + n_perfect].sum() == min(n_perfect, kept.sum())


def test_a_perfect_voxel_is_decoded_without_a_warning():
    rng = np.random.default_rng(0)
    y, runs = np.tile(["a", "b"], 12), np.repeat(np.arange(4), 6)
    x = rng.standard_normal((24, 200))
    x[:, 7] = np.where(y == "a", 1.0, -1.0)
    decoder = Decoder("ridge_classifier", standardize=None, screening_percentile=10).fit(x, y, runs)
    assert decoder.coef_[0, 7] != 0
