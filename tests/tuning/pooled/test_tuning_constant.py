"""Screening on the stream, of voxels that do not vary."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_selection import f_classif

from daskdecode.tuning.pooled.blocks import f_of_classes, sums_of_classes


@pytest.mark.parametrize("value", [0.0, 1234.567, 1e-9])
def test_constant_voxels_have_no_f_whatever_their_value(value):
    x, y = np.random.default_rng(0).standard_normal((48, 60)) + 100, np.arange(48) % 3
    x[:, :40] = value * np.arange(1, 41)
    found = f_of_classes(sums_of_classes(x, y, 3), np.bincount(y))
    assert np.isnan(found[:40]).all()
    np.testing.assert_allclose(found[40:], f_classif(x[:, 40:], y)[0])
