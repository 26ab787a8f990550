"""Permutation tests of every kind of solver: each permutation equals a whole decode of the permuted labels or values."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import KFold, StratifiedKFold

from daskdecode import Decoder, DecoderRegressor, permutation_test
from daskdecode.models.exchange import exchangeable

RUNS = np.repeat(["1", "2", "3"], [8, 10, 9])


def classes(n_classes=2, p=130, seed=0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([rng.permutation(np.arange(n) % n_classes) for n in (8, 10, 9)])
    x = rng.standard_normal((27, p)) + 2 * rng.standard_normal(p)
    for c in range(n_classes):
        x[y == c, 10 * c : 10 * c + 10] += 0.6
    return x, np.array(["a", "b", "c"])[y]


def values(p=130, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal(27) + 3
    x = rng.standard_normal((27, p))
    x[:, :40] += 1.5 * y[:, None]
    return x, y


def check(decoder, x, y, groups, n_permutations=2):
    """The test's scores are those of whole decodes."""
    test = permutation_test(decoder, x, y, groups, n_permutations=n_permutations, random_state=5)
    units = exchangeable("within_run", y, groups, None)
    for i, got in enumerate([test.score, *test.null]):
        fitted = clone(decoder).fit(x, y if i == 0 else y[units.draw(5, i - 1)], groups)
        assert got == pytest.approx(np.mean(list(fitted.cv_scores_.values())), rel=1e-9)
    return test


SCREENING = [None, 40]
CLASSIFIERS = [
    Decoder("ridge_classifier"),
    Decoder("ridge_classifier", param_grid={"alphas": [[0.1, 1.0], [10.0]]}),
    Decoder("lda", estimator_args={"shrinkage": 0.3}),
    Decoder("lda", param_grid={"shrinkage": [0.05, 0.9]}, scoring="accuracy"),
    Decoder("lda"),
    Decoder(LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.5), scoring="average_precision"),
    Decoder("logistic", param_grid={"C": [[0.01, 1.0]]}),
    Decoder("gnb"),
]


@pytest.mark.parametrize("screening", SCREENING)
@pytest.mark.parametrize("decoder", CLASSIFIERS, ids=lambda d: str(d.estimator)[:20] + str(d.param_grid or d.estimator_args or ""))
def test_of_classifiers(decoder, screening):
    x, y = classes()
    check(clone(decoder).set_params(screening_percentile=screening), x, y, RUNS)


@pytest.mark.parametrize("screening", SCREENING)
@pytest.mark.parametrize("estimator", ["ridge_classifier", "lda"])
def test_of_three_classes_and_few_voxels(estimator, screening):
    args = {"shrinkage": 0.2} if estimator == "lda" else None
    for p in (12, 110):
        x, y = classes(3, p=p)
        check(Decoder(estimator, estimator_args=args, screening_percentile=screening), x, y, RUNS, 1)


@pytest.mark.parametrize("screening", SCREENING)
@pytest.mark.parametrize(
    "regressor",
    [
        DecoderRegressor(),
        DecoderRegressor("ridge", scoring="neg_mean_absolute_error"),
        DecoderRegressor("svr", param_grid={"C": [0.001, 0.1]}),
        DecoderRegressor("lasso", estimator_args={"tol": 0.01, "cv": 3}),
    ],
    ids=lambda d: f"{d.estimator} {d.scoring}",
)
def test_of_regressors(regressor, screening):
    x, y = values()
    regressor = clone(regressor).set_params(screening_percentile=screening)
    test = check(regressor, x, y, RUNS, 1 if regressor.estimator == "lasso" else 2)
    assert test.classes == ["beta"]
    assert test.class_pvalues == {"beta": test.pvalue}
    assert test.scoring == (regressor.scoring or "r2")
    assert "permutations of values within runs" in str(test)
    assert json.loads(json.dumps(test.to_dict()))["exchanged"] == "values"


def test_of_a_regressor_without_runs():
    x, y = values()
    check(DecoderRegressor(cv=KFold(3), standardize=None, screening_percentile=30), x, y, None)


def test_whole_blocks_of_values_change_places():
    x, _ = values()
    ratings = np.repeat(np.arange(9.0), 3)
    groups = np.repeat(["1", "2", "3"], 9)
    test = permutation_test(DecoderRegressor(screening_percentile=None), x, ratings, groups, n_permutations=3, exchange="blocks")
    assert test.n_arrangements == 6**3


@pytest.mark.parametrize("screening", SCREENING)
def test_folds_of_permuted_labels_with_a_closed_form(screening):
    x, y = classes()
    decoder = Decoder("ridge_classifier", cv=StratifiedKFold(3), standardize=None, screening_percentile=screening)
    check(decoder, x, y, None)


def test_a_planted_value_is_found():
    x, y = values()
    assert permutation_test(DecoderRegressor(screening_percentile=None), x, y, RUNS, n_permutations=99).pvalue <= 0.02


@pytest.mark.parametrize(("budget", "passes"), [("1GB", 1), (4_000_000, 2 * (1 + 2))])
def test_passes_do_not_grow_with_permutations(budget, passes):
    """Screened and streamed: sums and Gram matrices of several permutations a sweep, as many as the budget holds."""
    x, y = classes(p=4000)
    reads = []

    def read(block):
        reads.append(1)
        return block

    lazy = da.from_array(x, chunks=(27, 100)).map_blocks(read, dtype=float, meta=np.empty((0, 0)))
    decoder = Decoder("ridge_classifier", screening_percentile=10, memory_budget=budget, standardize=None)
    assert decoder.explain(lazy, y, RUNS).in_memory == (passes == 1)
    test = permutation_test(decoder, lazy, y, RUNS, n_permutations=6)
    assert len(reads) == 40 * passes
    expected = permutation_test(clone(decoder).set_params(memory_budget="1GB"), x, y, RUNS, n_permutations=6)
    np.testing.assert_allclose(test.null, expected.null, atol=1e-12)
