"""Searches over folds, beside scikit-learn's on the voxels."""

from __future__ import annotations

import dask
import dask.array
import numpy as np
import pytest
from scipy.stats import loguniform, rankdata
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, SelectPercentile, f_classif
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC

import daskdecode as dd
from daskdecode.errors import DecodingError, MemoryBudgetError

SCORES = ("mean_test_score", "std_test_score")


def make(n_classes=2, n_runs=4, per_run=(9, 11), p=150, seed=0, signal=0.6):
    """Runs of unequal length, z-scored by run as the decoder does."""
    rng = np.random.default_rng(seed)
    lengths = [per_run[r % 2] * n_classes // 2 for r in range(n_runs)]
    groups = np.repeat(np.arange(n_runs), lengths)
    y = np.concatenate([np.arange(n) % n_classes for n in lengths])
    centres = np.zeros((n_classes, p))
    centres[:, :15] = rng.standard_normal((n_classes, 15)) * signal
    return rng.standard_normal((y.size, p)) + centres[y], np.array([f"c{c}" for c in y]), groups


def compare(ours, theirs, names=SCORES, tolerance=1e-9):
    for name in names:
        np.testing.assert_allclose(ours.cv_results_[name], theirs.cv_results_[name], atol=tolerance, err_msg=name)
    for split in range(theirs.n_splits_):
        name = f"split{split}_test_score"
        np.testing.assert_allclose(ours.cv_results_[name], theirs.cv_results_[name], atol=tolerance)
    # scikit-learn ranks by the last bit of a sum; here scores that differ by rounding are one score.
    means = np.round(theirs.cv_results_["mean_test_score"], 12)
    np.testing.assert_array_equal(ours.cv_results_["rank_test_score"], rankdata(-means, method="min"))
    assert ours.best_index_ == np.argmax(means)
    assert ours.best_score_ == pytest.approx(theirs.best_score_, abs=tolerance)


def scikit_learn(estimator, grid, x, y, groups, scoring="roc_auc"):
    return GridSearchCV(estimator, grid, cv=LeaveOneGroupOut(), scoring=scoring, refit=False).fit(x, y, groups=groups)


@pytest.mark.parametrize("screening", [None, 30])
@pytest.mark.parametrize("name", ["svc", "svc_hinge", "logistic", "ridge_classifier"])
def test_settings_on_gram_matrices_score_as_on_voxels(name, screening):
    x, y, groups = make()
    grid = {"C": [1e-3, 1e-2, 0.1, 1.0, 10.0]}
    if name.startswith("svc"):
        loss = {"loss": "hinge"} if name == "svc_hinge" else {}
        decoder = dd.Decoder("svc", estimator_args=loss, standardize=None, screening_percentile=screening)
        model, theirs_grid = LinearSVC(dual=True, max_iter=10_000, random_state=0, **loss), grid
    elif name == "logistic":
        # An object that scikit-learn fits on the voxels, against the same on the direct route.
        model, theirs_grid = LogisticRegression(solver="liblinear", random_state=0, tol=1e-10), grid
        decoder = dd.Decoder(clone(model), standardize=None, screening_percentile=screening)
    else:
        grid = {"alphas": [[1e-2], [1.0], [100.0], [1e4]]}
        decoder = dd.Decoder("ridge_classifier", standardize=None, screening_percentile=screening)
        model, theirs_grid = RidgeClassifier(), {"alpha": [1e-2, 1.0, 100.0, 1e4]}
    ours = dd.search(decoder, x, grid, y, groups, refit=False, nested=False)
    steps = [SelectPercentile(f_classif, percentile=screening)] if screening else []
    pipeline = make_pipeline(*steps, model)
    theirs = scikit_learn(pipeline, {f"{pipeline.steps[-1][0]}__{k}": v for k, v in theirs_grid.items()}, x, y, groups)
    compare(ours, theirs)
    assert ours.nested_scores_ is None
    assert ours.score_ is None


def test_nested_scores_are_those_of_the_search_repeated_without_each_fold():
    x, y, groups = make(signal=0.35)
    grid = {"C": [1e-4, 1e-3, 1e-2, 0.1, 1.0]}
    ours = dd.search(dd.Decoder("svc", standardize=None, screening_percentile=30), x, grid, y, groups, refit=False)
    pipeline = make_pipeline(SelectPercentile(f_classif, percentile=30), LinearSVC(dual=True, max_iter=10_000, random_state=0))
    scores, chosen = [], []
    for train, test in LeaveOneGroupOut().split(x, y, groups):
        inner = GridSearchCV(pipeline, {"linearsvc__C": grid["C"]}, cv=LeaveOneGroupOut(), scoring="roc_auc")
        inner.fit(x[train], y[train], groups=groups[train])
        scores.append(inner.score(x[test], y[test]))
        chosen.append({"C": inner.best_params_["linearsvc__C"]})
    np.testing.assert_allclose(ours.nested_scores_, scores, atol=1e-9)
    assert ours.nested_params_ == chosen
    assert len({p["C"] for p in chosen}) > 1, "the folds should not agree, or nothing is tested"
    assert ours.score_ == pytest.approx(np.mean(scores))
    assert ours.best_score_ >= ours.score_


def test_for_two_classes_nested_scores_are_those_of_the_decoder():
    x, y, groups = make(signal=0.35)
    grid = {"C": [1e-4, 1e-3, 1e-2, 0.1, 1.0]}
    decoder = dd.Decoder("svc")
    ours = dd.search(decoder, x, grid, y, groups)
    fitted = clone(decoder).set_params(param_grid=grid).fit(x, y, groups)
    np.testing.assert_allclose(ours.nested_scores_, fitted.cv_scores_["c1"], atol=1e-12)
    assert ours.best_decoder_.cv_params_["c1"]["C"] == [ours.best_params_["C"]] * 4
    assert decoder.param_grid is None


def test_several_classes_are_one_against_the_rest():
    x, y, groups = make(n_classes=3)
    grid = {"C": [1e-3, 1e-2, 1.0]}
    ours = dd.search(dd.Decoder("svc", standardize=None, screening_percentile=30), x, grid, y, groups, refit=False, nested=False)
    pipeline = make_pipeline(SelectPercentile(f_classif, percentile=30), LinearSVC(dual=True, max_iter=10_000, random_state=0))
    each = [scikit_learn(pipeline, {"linearsvc__C": grid["C"]}, x, np.where(y == c, 1, -1), groups) for c in np.unique(y)]
    for f in range(4):
        expected = np.mean([e.cv_results_[f"split{f}_test_score"] for e in each], axis=0)
        np.testing.assert_allclose(ours.cv_results_[f"split{f}_test_score"], expected, atol=1e-9)


def test_a_pipeline_of_any_steps_is_searched_on_voxels():
    x, y, groups = make()
    pipeline = make_pipeline(StandardScaler(), SelectKBest(f_classif, k=40), PCA(random_state=0), SVC())
    grid = {
        "selectkbest__k": [10, 40],
        "pca__n_components": [3, 6],
        "svc__C": [0.1, 1.0],
        "standardscaler": [StandardScaler(), "passthrough"],
    }
    decoder = dd.Decoder(pipeline, standardize=None, screening_percentile=None, scoring="accuracy")
    ours = dd.search(decoder, x, grid, y, groups, refit=False, nested=False)
    compare(ours, scikit_learn(pipeline, grid, x, y, groups, "accuracy"))
    # A step that is a parameter belongs to one fit at a time.
    steps = {"standardscaler": [StandardScaler(), RobustScaler()]}
    assert dd.search(decoder, x, steps, y, groups).best_decoder_.predict(x, groups).shape == y.shape


def test_steps_that_settings_share_are_fitted_once_a_training_set(monkeypatch):
    x, y, groups = make()
    count = []
    fit = PCA.fit_transform
    monkeypatch.setattr(PCA, "fit_transform", lambda self, X, y=None: count.append(0) or fit(self, X, y))
    decoder = dd.Decoder(make_pipeline(PCA(5), LinearSVC()), standardize=None, screening_percentile=None)
    dd.search(decoder, x, {"linearsvc__C": [0.01, 0.1, 1.0]}, y, groups, refit=False, nested=False)
    assert len(count) == 4
    count.clear()
    dd.search(decoder, x, {"linearsvc__C": [0.01, 0.1, 1.0]}, y, groups, refit=False)
    assert len(count) == 4 + 6, "pairs of runs share their training set"


def test_regressions_are_searched():
    x, _, groups = make(n_runs=5)
    target = x[:, :5].sum(axis=1) + np.random.default_rng(1).standard_normal(len(x))
    alphas = [0.1, 10.0, 1000.0]
    decoder = dd.DecoderRegressor("ridge", standardize=None, screening_percentile=None)
    ours = dd.search(decoder, x, {"alphas": [[a] for a in alphas]}, target, groups, refit=False)
    compare(ours, scikit_learn(Ridge(), {"alpha": alphas}, x, target, groups, "r2"), tolerance=1e-8)
    assert ours.nested_scores_.shape == (5,)


def test_random_settings_are_those_that_scikit_learn_draws():
    x, y, groups = make()
    space = {"C": loguniform(1e-4, 10.0), "loss": ["hinge", "squared_hinge"]}
    decoder = dd.Decoder("svc", standardize=None, screening_percentile=None)
    ours = dd.search(decoder, x, space, y, groups, method="random", n_iter=7, random_state=3, refit=False, nested=False)
    model = LinearSVC(dual=True, max_iter=10_000, random_state=0)
    theirs = RandomizedSearchCV(model, space, n_iter=7, random_state=3, cv=LeaveOneGroupOut(), scoring="roc_auc", refit=False)
    compare(ours, theirs.fit(x, y, groups=groups))
    assert ours.cv_results_["params"] == theirs.cv_results_["params"]


def _in_the_least_memory(x, y, groups):
    for budget in range(2_000_000, 20_000_000, 250_000):
        try:
            if not dd.Decoder("svc", memory_budget=budget).explain(x, y, groups).in_memory:
                return dd.Decoder("svc", memory_budget=budget)
        except MemoryBudgetError:
            continue
    raise AssertionError("no budget makes it stream")


def test_scores_depend_neither_on_blocks_nor_on_memory():
    x, y, groups = make(n_classes=3, p=1500)
    grid = {"C": [1e-3, 1.0]}
    whole = dd.search(dd.Decoder("svc"), x, grid, y, groups, refit=False)
    lazy = dask.array.from_array(x, chunks=(13, 37))
    streamed = dd.search(_in_the_least_memory(lazy, y, groups), lazy, grid, y, groups, refit=False)
    np.testing.assert_allclose(streamed.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"], atol=1e-10)
    np.testing.assert_allclose(streamed.nested_scores_, whole.nested_scores_, atol=1e-10)


@pytest.mark.parametrize("name", ["svc", "ridge_classifier", "pipeline"])
@pytest.mark.parametrize("how", ["zscore_fold", "confounds", "weights"])
def test_what_training_sets_learn_first_is_part_of_the_search(name, how):
    """The nested scores are those of the decoder, which compares with scikit-learn by itself."""
    x, y, groups = make(signal=0.35)
    rng = np.random.default_rng(2)
    given = {
        "zscore_fold": {},
        "confounds": {"confounds": rng.standard_normal((y.size, 2))},
        "weights": {"sample_weight": rng.uniform(0.2, 2, y.size)},
    }[how]
    grid = {"svc": {"C": [1e-3, 0.1]}, "ridge_classifier": {"alphas": [[1.0], [1e3]]}, "pipeline": {"linearsvc__C": [1e-3, 0.1]}}[name]
    estimator = make_pipeline(StandardScaler(), LinearSVC(random_state=0)) if name == "pipeline" else name
    decoder = dd.Decoder(estimator, standardize="zscore_fold" if how == "zscore_fold" else None)
    for screening in (None, 30):
        decoder.set_params(screening_percentile=screening)
        ours = dd.search(decoder, x, grid, y, groups, **given)
        fitted = clone(decoder).set_params(param_grid=grid).fit(x, y, groups, **given)
        np.testing.assert_allclose(ours.nested_scores_, fitted.cv_scores_["c1"], atol=1e-9)


def test_one_setting_leaves_nothing_to_choose():
    x, y, groups = make()
    found = dd.search(dd.Decoder("svc"), x, {"C": 1.0}, y, groups, refit=False)
    np.testing.assert_array_equal(found.nested_scores_, [found.cv_results_[f"split{f}_test_score"][0] for f in range(4)])


class _Fussy(LinearSVC):
    def fit(self, X, y, sample_weight=None):
        if self.C == 2.0:
            raise ValueError("C of 2 is not for me")
        return super().fit(X, y, sample_weight)


def test_a_failing_setting_ends_the_search_or_ranks_last():
    x, y, groups = make()
    decoder = dd.Decoder(_Fussy(), standardize=None, screening_percentile=None)
    grid = {"C": [2.0, 0.01, 0.1]}
    with pytest.raises(ValueError, match="C of 2 is not for me"):
        dd.search(decoder, x, grid, y, groups)
    with pytest.warns(UserWarning, match="10 of 30 fits failed"):
        found = dd.search(decoder, x, grid, y, groups, error_score=np.nan, refit=False)
    assert np.isnan(found.cv_results_["mean_test_score"][0])
    assert found.cv_results_["rank_test_score"][0] == 3
    assert np.isfinite(found.nested_scores_).all()
    with pytest.warns(UserWarning, match="fits failed"):
        found = dd.search(decoder, x, grid, y, groups, error_score=0.25, refit=False, nested=False)
    assert found.cv_results_["mean_test_score"][0] == 0.25


class _FailsOnManySamples(_Fussy):
    def fit(self, X, y, sample_weight=None):
        if self.C == 3.0 and len(y) == self.max_iter:
            raise ValueError("too many for me")
        return super().fit(X, y, sample_weight)


def test_scores_of_failed_fits_are_nan_and_told():
    x, y, groups = make()
    n_train = [int((groups != run).sum()) for run in np.unique(groups)]
    grid = {"C": [3.0], "max_iter": [n_train[0]]}
    decoder = dd.Decoder(_FailsOnManySamples(), standardize=None, screening_percentile=None)
    failing = np.array(n_train) == n_train[0]
    assert failing.any()
    assert not failing.all()
    with pytest.warns(UserWarning, match="fits failed"):
        found = dd.search(decoder, x, grid, y, groups, error_score=np.nan, refit=False)
    np.testing.assert_array_equal(np.isnan(found.nested_scores_), failing)
    assert not np.isinf(found.nested_scores_).any()
    assert np.isnan(found.cv_results_["std_test_score"]).all()
    assert f"({(~failing).sum()} of {failing.size} outer folds" in str(found)


class _SaysNothing(_Fussy):
    def decision_function(self, X):
        return np.full(len(X), np.nan) if self.C == 3.0 else super().decision_function(X)


def test_a_setting_that_cannot_be_scored_fails_like_one_that_cannot_be_fitted():
    x, y, groups = make()
    decoder = dd.Decoder(_SaysNothing(), standardize=None, screening_percentile=None)
    with pytest.raises(DecodingError, match=r"_SaysNothing.*'C': 3.0.* on [0-9]+ test samples: .*contains NaN.*error_score=np.nan"):
        dd.search(decoder, x, {"C": [3.0, 0.1]}, y, groups, refit=False)
    with pytest.warns(UserWarning, match="10 of 20 fits failed"):
        found = dd.search(decoder, x, {"C": [3.0, 0.1]}, y, groups, error_score=np.nan, refit=False)
    assert found.best_params_ == {"C": 0.1}
    assert np.isnan(found.cv_results_["mean_test_score"][0])


def test_a_search_of_which_every_fit_fails_is_an_error():
    x, y, groups = make()
    decoder = dd.Decoder(_Fussy(), standardize=None, screening_percentile=None)
    with pytest.raises(DecodingError, match="All 4 fits failed"):
        dd.search(decoder, x, {"C": [2.0]}, y, groups, error_score=np.nan)


def test_fits_that_do_not_converge_are_counted():
    x, y, groups = make()
    decoder = dd.Decoder("svc", estimator_args={"max_iter": 1}, screening_percentile=None)
    with pytest.warns(UserWarning, match="8 of 8 fits stopped"):
        dd.search(decoder, x, {"C": [1.0, 10.0]}, y, groups, refit=False, nested=False)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"param_distributions": {"C": [1], "bogus": [2]}}, "no parameter 'bogus'"),
        ({"param_distributions": {}}, "nothing to search"),
        ({"param_distributions": [1]}, "dict or a list of dicts"),
        ({"param_distributions": {"C": loguniform(1, 2)}}, "'C' is a distribution: use method='random'"),
        ({"method": "bayes"}, "method='bayes' is not known"),
        ({"method": "random", "n_iter": 0}, "n_iter=0"),
        ({"error_score": "ignore"}, "error_score='ignore'"),
        ({"method": "hyperband", "error_score": 0.5}, "takes no error_score"),
        ({"decoder": LinearSVC()}, "found LinearSVC"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_data_are_read(kwargs, message):
    _, y, groups = make()
    lazy = dask.array.map_blocks(lambda block: 1 / 0, dask.array.zeros((y.size, 150)), dtype=float, meta=np.empty((0, 0)))
    with pytest.raises(DecodingError, match=message):
        dd.search(**{"decoder": dd.Decoder("svc"), "X": lazy, "param_distributions": {"C": [1, 2]}, "y": y, "groups": groups} | kwargs)


def test_two_runs_cannot_be_nested():
    x, y, groups = make(n_runs=2)
    with pytest.raises(DecodingError, match=r"takes at least 2 of them.*nested=False"):
        dd.search(dd.Decoder("svc"), x, {"C": [1, 2]}, y, groups)
    assert dd.search(dd.Decoder("svc"), x, {"C": [1, 2]}, y, groups, nested=False).best_decoder_ is not None
