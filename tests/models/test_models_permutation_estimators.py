"""Permutation tests of every kind of solver: each permutation equals a whole decode of the permuted labels or values."""

from __future__ import annotations

import json
import tracemalloc

import dask.array as da
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import KFold, PredefinedSplit, StratifiedKFold

from daskdecode import Decoder, DecoderRegressor, permutation_test
from daskdecode.engine.plan import OWN_NBYTES
from daskdecode.engine.relabel import _OneSet
from daskdecode.errors import DecodingError
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


def check(decoder, x, y, groups, n_permutations=2, rel=1e-9, **of_samples):
    """The test's scores are those of whole decodes."""
    test = permutation_test(decoder, x, y, groups, n_permutations=n_permutations, random_state=5, **of_samples)
    units = exchangeable("within_run", y, groups, None)
    for i, got in enumerate([test.score, *test.null]):
        fitted = clone(decoder).fit(x, y if i == 0 else y[units.draw(5, i - 1)], groups, **of_samples)
        assert got == pytest.approx(np.mean(list(fitted.cv_scores_.values())), rel=rel)
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


@pytest.mark.parametrize(("budget", "passes"), [("1GB", 1), (OWN_NBYTES + 4_000_000, 2 * (1 + 1))])
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


@pytest.mark.parametrize("engine", ["auto", "dual"])
def test_machines_whose_exact_steps_go_round_in_circles_are_fitted_as_the_decoder_fits(engine, monkeypatch):
    """Hardly more samples than voxels and a large C: some label vectors have no end to the steps, and others of their batch have."""
    rng = np.random.default_rng(0)
    x, y, runs = rng.standard_normal((48, 22)), np.tile(["a", "b"], 24), np.repeat(["1", "2", "3", "4"], 12)
    one_by_one, asked = _OneSet._one_by_one, []

    def spied(one, problems, *data):
        if one.exact:
            asked.append(len(problems))
        return one_by_one(one, problems, *data)

    monkeypatch.setattr(_OneSet, "_one_by_one", spied)
    fixed = {"tol": 1e-10, "max_iter": 1_000_000}
    decoder = Decoder(param_grid={"C": 100}, estimator_args=fixed, screening_percentile=None, engine=engine)
    check(decoder, x, y, runs, n_permutations=12)
    assert 0 < len(asked) < 12 * 4
    assert set(asked) == {1}


# ----------------------------------------------------------------------- what each fold learns first, and what samples bring along


@pytest.mark.parametrize("screening", SCREENING)
@pytest.mark.parametrize("standardize", ["zscore_run", "zscore_fold"])
@pytest.mark.parametrize("estimator", ["ridge_classifier", "svc", "lda"])
def test_of_scaling_and_confounds_inside_the_folds(estimator, standardize, screening):
    """Screened, each permutation is cleaned before it is screened. The nulls of svc are exact solutions, and fits stop near them."""
    x, y = classes()
    confounds = np.random.default_rng(4).standard_normal((27, 2)) + (y == "a")[:, None]
    grid = {"svc": {"C": [1e-3, 1e-1]}}.get(estimator)
    fixed = {"lda": {"shrinkage": 0.3}, "svc": {"tol": 1e-9, "max_iter": 100_000}}.get(estimator)
    decoder = Decoder(estimator, param_grid=grid, estimator_args=fixed, standardize=standardize, screening_percentile=screening)
    check(decoder, x, y, RUNS, confounds=confounds)


def test_of_values_that_confounds_explain():
    x, y = values()
    confounds = np.random.default_rng(4).standard_normal((27, 1)) + y[:, None]
    check(DecoderRegressor(standardize="zscore_fold", screening_percentile=40), x, y, RUNS, confounds=confounds)


@pytest.mark.parametrize("screening", SCREENING)
@pytest.mark.parametrize("estimator", ["ridge_classifier", "svc"])
def test_of_weighted_samples(estimator, screening):
    """Weights stay with their samples when labels move."""
    x, y = classes()
    weight = np.random.default_rng(2).uniform(0.2, 3, 27)
    grid = {"svc": {"C": [1e-3, 1e-1]}}.get(estimator)
    check(Decoder(estimator, param_grid=grid, screening_percentile=screening), x, y, RUNS, sample_weight=weight)


def folds_of(cv, taken):
    """Folds of the samples of X, and those of the samples that are taken."""
    if cv == "list":
        return tuple([(np.flatnonzero(of != run), np.flatnonzero(of == run)) for run in "123"] for of in (RUNS, RUNS[taken]))
    if cv == "predefined":
        return PredefinedSplit(RUNS.astype(int)), PredefinedSplit(RUNS[taken].astype(int))
    return cv, cv


@pytest.mark.parametrize("cv", ["run", "list", "predefined", 3])
def test_samples_that_are_left_out_have_no_part(cv):
    """As if they were not in X; folds that are given count the samples of X all the same."""
    x, y = classes()
    taken = np.arange(27) % 5 != 2
    folds, cut = folds_of(cv, taken)
    decoder = Decoder("ridge_classifier", screening_percentile=None)
    got = permutation_test(clone(decoder).set_params(cv=folds), x, y, RUNS, n_permutations=9, sample_mask=taken)
    expected = permutation_test(clone(decoder).set_params(cv=cut), x[taken], y[taken], RUNS[taken], n_permutations=9)
    np.testing.assert_allclose(got.null, expected.null, rtol=1e-12)
    blocks = np.arange(27)
    moved = {"exchange": "blocks", "n_permutations": 9}
    got = permutation_test(clone(decoder).set_params(cv=folds), x, y, RUNS, sample_mask=taken, blocks=blocks, **moved)
    expected = permutation_test(clone(decoder).set_params(cv=cut), x[taken], y[taken], RUNS[taken], blocks=blocks[taken], **moved)
    np.testing.assert_allclose(got.null, expected.null, rtol=1e-12)


@pytest.mark.parametrize(("estimator", "n"), [("svc", 150), ("ridge_classifier", 900)])
def test_batches_hold_what_the_budget_allows(estimator, n):
    """What Python and NumPy take for a batch stays under the budget, and what is found does not depend on it."""
    rng = np.random.default_rng(0)
    x, y, runs = rng.standard_normal((60, 90)), np.tile(["a", "b"], 30), np.repeat(np.arange(6), 10)
    small = Decoder(estimator, screening_percentile=None, memory_budget=OWN_NBYTES + 4_000_000)
    expected = permutation_test(clone(small).set_params(memory_budget="1GB"), x, y, runs, n_permutations=n)
    batches = []
    tracemalloc.start()
    got = permutation_test(small, x, y, runs, n_permutations=n, progress=lambda done, _: batches.append(done))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(batches) > 1
    assert peak < 4_000_000
    np.testing.assert_allclose(got.null, expected.null, rtol=1e-12)


def test_weights_are_part_of_what_a_file_belongs_to(tmp_path):
    x, y = classes()
    decoder, path = Decoder("ridge_classifier", screening_percentile=None), tmp_path / "null.npz"
    permutation_test(decoder, x, y, RUNS, n_permutations=2, path=path, sample_weight=np.linspace(1, 2, 27))
    with pytest.raises(DecodingError, match="the weights differ"):
        permutation_test(decoder, x, y, RUNS, n_permutations=2, path=path)
    with pytest.raises(DecodingError, match=r"sample_weight is 0 for sample 3.*sample_mask="):
        permutation_test(decoder, x, y, RUNS, n_permutations=2, sample_weight=np.arange(27.0) != 3)
