from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectPercentile, f_classif

from daskdecode import Decoder
from daskdecode.errors import MemoryBudgetError

RUNS = np.repeat(["1", "2", "3"], [14, 18, 16])


def data(n_classes=2, p=250):
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.permutation(np.arange(n) % n_classes) for n in (14, 18, 16)])
    x = rng.standard_normal((48, p)) * rng.uniform(0.5, 2, p) + rng.standard_normal(p)
    for c in range(n_classes):
        x[y == c, 10 * c : 10 * c + 10] += 0.8
    return x, np.array(["a", "b", "c"])[y]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("screening", [None, 40])
@pytest.mark.parametrize(
    ("options", "route"), [({}, "direct"), ({"shrinkage": 0.2}, "gram"), ({"solver": "eigen", "shrinkage": 1.0}, "gram")]
)
def test_a_decode_equals_scikit_learn_on_voxels(options, route, screening, n_classes):
    x, y = data(n_classes)
    decoder = Decoder("lda", estimator_args=options, screening_percentile=screening, standardize=None).fit(x, y, RUNS)
    assert decoder.plan_.route == route
    problems = ["b"] if n_classes == 2 else ["a", "b", "c"]
    coef = np.zeros((len(problems), 250))
    intercept = np.zeros(len(problems))
    for train, test in decoder.cv_:
        for c, name in enumerate(problems):
            labels = np.where(y == name, 1, -1)
            kept = np.ones(250, dtype=bool)
            if screening is not None:
                kept = SelectPercentile(f_classif, percentile=screening).fit(x[train], labels[train]).get_support()
            theirs = LinearDiscriminantAnalysis(**({"solver": "lsqr", "shrinkage": "auto"} | options)).fit(x[train][:, kept], labels[train])
            coef[c, kept] += theirs.coef_[0] / 3
            intercept[c] += theirs.intercept_[0] / 3
            table = decoder.cv_predictions_.set_index("sample").loc[test]
            said = theirs.decision_function(x[test][:, kept])
            np.testing.assert_allclose(table[f"decision_{name}"], said, rtol=0, atol=1e-9 * np.abs(said).max())
    np.testing.assert_allclose(decoder.coef_, coef, rtol=0, atol=1e-9 * np.abs(coef).max())
    np.testing.assert_allclose(decoder.intercept_, intercept, rtol=1e-9)


def test_an_object_of_the_users_is_the_same_decoder():
    x, y = data()
    ours = Decoder("lda", estimator_args={"shrinkage": 0.2}, screening_percentile=None).fit(x, y, RUNS)
    given = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2)
    theirs = Decoder(given, screening_percentile=None).fit(x, y, RUNS)
    assert theirs.plan_.route == "gram"
    np.testing.assert_array_equal(theirs.coef_, ours.coef_)
    assert clone(theirs).estimator.get_params() == given.get_params()


def test_a_grid_of_shrinkages_is_tuned():
    x, y = data()
    decoder = Decoder("lda", param_grid={"shrinkage": [0.01, 0.3, 0.99]}, screening_percentile=None).fit(x, y, RUNS)
    assert decoder.plan_.route == "gram"
    assert set(decoder.cv_params_["b"]["shrinkage"]) <= {0.01, 0.3, 0.99}
    mixed = Decoder("lda", param_grid={"shrinkage": [0.01, "auto"]}, screening_percentile=None)
    assert mixed.explain(x, y, RUNS).route == "direct"


def test_a_covariance_of_too_many_voxels_is_refused_before_anything_runs():
    _, y = data()
    lazy = da.zeros((48, 60_000), chunks=(48, 6_000))
    decoder = Decoder("lda", screening_percentile=None, memory_budget="8GB")
    assert decoder.explain(lazy, y, RUNS).peak_nbytes < 2**30
    for options in ({"shrinkage": None}, {"shrinkage": 0.1, "priors": [0.5, 0.5]}):
        with pytest.raises(MemoryBudgetError, match=r"1\d\d\.\d\d GiB inside the solver"):
            clone(decoder).set_params(estimator_args=options).explain(lazy, y, RUNS)


def test_a_whole_brain_runs_with_ledoit_wolf():
    rng = np.random.default_rng(0)
    y = np.tile(["a", "b"], 24)
    x = rng.standard_normal((48, 20_000), dtype=np.float32)
    x[:, :2000] += np.float32(0.3) * (y == "b")[:, None]
    decoder = Decoder("lda", screening_percentile=None).fit(x, y, np.repeat(["1", "2", "3"], 16))
    assert np.mean(decoder.cv_scores_["b"]) > 0.9
