"""Screening keeps candidates or sums of cells, whichever is less; both choose the same voxels."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from daskdecode import Decoder, DecoderRegressor
from daskdecode.engine import crossval
from daskdecode.engine.ranking import sums_are_less


@pytest.mark.parametrize("how", [{"screening_percentile": 30}, {"screening_percentile": None, "screening_n_features": 90}])
@pytest.mark.parametrize("kind", ["two classes", "three classes", "regression"])
def test_candidates_and_sums_choose_the_same_voxels(monkeypatch, how, kind):
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(4), 9)
    x = np.round(rng.standard_normal((36, 211)), 1)  # rounded: there are ties
    x[:, 40:80] = x[:, :40]
    if kind == "regression":
        decoder, y = DecoderRegressor("ridge", **how), rng.standard_normal(36)
    else:
        decoder, y = Decoder("ridge_classifier", **how), np.tile(["a", "b", "b" if kind == "two classes" else "c"], 12)
    lazy = da.from_array(x, chunks=(36, 50))
    found = {}
    for less in (True, False):
        monkeypatch.setattr(crossval, "sums_are_less", lambda *_, less=less: less)
        decoder.fit(lazy, y, groups)
        found[less] = decoder.coef_, decoder.cv_scores_
    np.testing.assert_array_equal(found[True][0] != 0, found[False][0] != 0)
    np.testing.assert_allclose(found[True][0], found[False][0], rtol=1e-9, atol=1e-12)
    assert 60 < (found[True][0][0] != 0).sum() < 211


def test_many_selections_of_few_cells_are_kept_as_sums():
    # Nested in 48 runs of two classes: 1,176 training sets of 96 cells. 12 folds of 8 classes: 96 selections of as many cells.
    assert sums_are_less(1176, 8_000, 2 * 96, 40_000)
    assert not sums_are_less(96, 8_000, 2 * 96, 40_000)
