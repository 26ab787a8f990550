"""Estimators by name and by object: routes, attributes that exist only where they mean something, grids, errors."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy.stats import loguniform
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, PoissonRegressor, SGDClassifier
from sklearn.model_selection import LeaveOneGroupOut, ParameterSampler
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC, l1_min_c
from sklearn.tree import DecisionTreeClassifier

import daskdecode as dd
from daskdecode import Decoder, DecoderRegressor
from daskdecode.engine.registry import CLASSIFIERS, REGRESSORS
from daskdecode.errors import DecodingError, MemoryBudgetError

RUNS = np.repeat(["1", "2", "3", "4"], 12)
NO_WEIGHTS = ("coef_", "std_coef_", "pattern_", "intercept_", "coef_img_", "pattern_img_")


def make(n_classes=2, p=150, signal=1.0, seed=0):
    rng = np.random.default_rng(seed)
    y = np.tile([f"c{c}" for c in range(n_classes)], 48 // n_classes)
    x = rng.standard_normal((48, p))
    for c in range(n_classes):
        x[:, 10 * c : 10 * c + 10] += signal * (y == f"c{c}")[:, None]
    return x, y


X, Y = make()
X3, Y3 = make(3)


@pytest.mark.filterwarnings("ignore:.* fits stopped at their largest number of iterations")
@pytest.mark.parametrize("name", [*CLASSIFIERS, *REGRESSORS])
def test_every_name_decodes_and_says_its_route(name):
    regress = name in REGRESSORS
    y = X[:, :10].sum(axis=1) if regress else Y
    decoder = (DecoderRegressor if regress else Decoder)(name, tune="held_out", screening_percentile=None)
    plan = decoder.explain(X, y, RUNS)
    direct = name in {"svc_l1", "logistic_l1", "lda", "gnb", "sgd", "lasso", "lasso_regressor"}
    assert plan.route == ("direct" if direct else "gram")
    decoder.fit(X, y, RUNS)
    if not name.startswith("dummy"):
        assert np.mean(list(decoder.cv_scores_.values())) > (0.2 if regress else 0.7)
    has_weights = name not in {"gnb", "dummy_classifier", "dummy_regressor"}
    assert [hasattr(decoder, a) for a in NO_WEIGHTS[:4]] == [has_weights] * 4
    assert hasattr(decoder, "estimators_") != has_weights
    assert decoder.predict(X, RUNS).shape == y.shape
    json.dumps(decoder.provenance_)


def test_the_plan_of_the_direct_route_shows_the_sum():
    plan = Decoder("svc_l1", screening_percentile=None, memory_budget="1GB").explain(X, Y, RUNS)
    assert "depends on the voxels one by one" in plan.reason
    assert "150 of a problem although there are only 48 samples" in plan.reason
    assert re.search(r"[\d.]+ kiB for the columns .* [\d.]+ kiB for the fits", plan.reason)
    with pytest.raises(MemoryBudgetError, match="training samples of fits"):
        Decoder("svc_l1", screening_percentile=None, memory_budget="500kB").explain(X, Y, RUNS)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities(n_classes):
    x, y = (X, Y) if n_classes == 2 else (X3, Y3)
    for estimator in ("logistic", "gnb", "lda", RandomForestClassifier(10, random_state=0)):
        grid = {"Cs": [0.1]} if estimator == "logistic" else None
        decoder = Decoder(estimator, param_grid=grid, screening_percentile=None).fit(x, y, RUNS)
        p = decoder.predict_proba(x, RUNS)
        assert p.shape == (48, n_classes)
        np.testing.assert_allclose(p.sum(axis=1), 1)
        assert (decoder.classes_[p.argmax(axis=1)] == decoder.predict(x, RUNS)).all()
    one = [(np.arange(12, 48), np.arange(12))]
    model = LogisticRegression(C=0.1, solver="liblinear")
    decoder = Decoder(model, cv=one, standardize=None, screening_percentile=None).fit(X, Y, RUNS)
    expected = model.fit(X[12:], Y[12:]).predict_proba(X)
    np.testing.assert_allclose(decoder.predict_proba(X, RUNS), expected, atol=1e-9)
    assert Decoder("logistic", scoring="neg_log_loss", param_grid={"Cs": [0.1]}).fit(X, Y, RUNS).score(X, Y, RUNS) < 0


@pytest.mark.parametrize("estimator", ["svc", "svc_l1", "ridge_classifier", SVC(kernel="rbf"), SGDClassifier()])
def test_no_probabilities_where_the_estimator_has_none(estimator):
    assert not hasattr(Decoder(estimator), "predict_proba")
    with pytest.raises(DecodingError, match="predict_proba"):
        Decoder(estimator, scoring="neg_log_loss").explain(X, Y, RUNS)


@pytest.mark.parametrize("percentile", [None, 40])
def test_folds_without_weights_vote(percentile):
    """Written out: the mean over folds of what each fold's model says of the voxels that it was fitted on."""
    from sklearn.feature_selection import SelectPercentile

    model = make_pipeline(StandardScaler(), SVC(kernel="rbf"))
    decoder = Decoder(model, screening_percentile=percentile, standardize=None).fit(X, Y, RUNS)
    target, votes = np.where(Y == "c1", 1, -1), []
    for train, _ in LeaveOneGroupOut().split(X, Y, RUNS):
        pipe = make_pipeline(SelectPercentile(percentile=percentile or 100), StandardScaler(), SVC(kernel="rbf"))
        votes.append(pipe.fit(X[train], target[train]).decision_function(X))
    np.testing.assert_allclose(decoder.decision_function(X, RUNS), np.mean(votes, axis=0), rtol=1e-9)
    table = decoder.cv_predictions_.sort_values("sample")
    held_out = [votes[int(r) - 1][s] for s, r in enumerate(RUNS)]
    np.testing.assert_allclose(table["decision_c1"], held_out, rtol=1e-9)


@pytest.mark.parametrize("estimator", [PLSRegression(2), PoissonRegressor(alpha=10)], ids=lambda e: type(e).__name__)
def test_a_coef_that_is_not_the_whole_decision_is_not_taken_for_one(estimator):
    y = np.exp(0.2 * X[:, :10].sum(axis=1))
    x = X + 3
    regressor = DecoderRegressor(estimator, standardize=None, screening_percentile=None).fit(x, y, RUNS)
    folds = LeaveOneGroupOut().split(x, y, RUNS)
    expected = np.mean([np.ravel(estimator.fit(x[train], y[train]).predict(x)) for train, _ in folds], axis=0)
    np.testing.assert_allclose(regressor.predict(x, RUNS), expected, rtol=1e-6)


def test_nothing_of_an_earlier_fit_is_left():
    decoder = Decoder("svc").fit(X, Y, RUNS)
    decoder.set_params(estimator="gnb").fit(X, Y, RUNS)
    assert not any(hasattr(decoder, name) for name in NO_WEIGHTS)
    decoder.set_params(estimator="svc").fit(X, Y, RUNS)
    assert not hasattr(decoder, "estimators_")


def test_nested_svc_l1_takes_multiples_of_the_smallest_c():
    decoder = Decoder("svc_l1", standardize=None, screening_percentile=None).fit(X, Y, RUNS)
    target = np.where(Y == "c1", 1, -1)
    for fold, (train, _) in enumerate(LeaveOneGroupOut().split(X, Y, RUNS)):
        found = decoder.cv_params_["c1"]["C"][fold] / l1_min_c(X[train], target[train], loss="squared_hinge")
        assert min(abs(found - factor) for factor in (2, 20, 200)) < 1e-9
    assert not decoder.optimistic_
    assert decoder.provenance_["param_grid"][0] == {"C": "2 x l1_min_c"}


def test_grids_as_lists_single_values_and_distributions():
    fit = Decoder("logistic", param_grid={"C": [0.1, 1]}).fit(X, Y, RUNS)
    np.testing.assert_array_equal(fit.cv_params_["c1"]["Cs"][0], [0.1, 1])
    assert set(fit.cv_params_["c1"]["best_C"]) <= {0.1, 1.0}
    grid = {"C": loguniform(1e-4, 1e-1)}
    drawn = Decoder(param_grid=grid).explain(X, Y, RUNS)
    assert drawn.workload.n_candidates == 10
    chosen = Decoder(param_grid=grid).fit(X, Y, RUNS).cv_params_["c1"]["C"]
    assert set(chosen) <= {p["C"] for p in ParameterSampler(grid, 10, random_state=0)}
    pipe = make_pipeline(StandardScaler(), DecisionTreeClassifier(random_state=0))
    nested = Decoder(pipe, param_grid={"decisiontreeclassifier__max_depth": [1, 2]}).fit(X, Y, RUNS)
    assert set(nested.cv_params_["c1"]["decisiontreeclassifier__max_depth"]) <= {1, 2}


class _NearestMean(ClassifierMixin, BaseEstimator):
    """Written as scikit-learn asks of others: without the constraints that its own estimators state."""

    def __init__(self, shrink=0.0):
        self.shrink = shrink

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.means_ = (1 - self.shrink) * np.stack([X[y == c].mean(axis=0) for c in self.classes_])
        return self

    def decision_function(self, X):
        return np.square(X - self.means_[0]).sum(axis=1) - np.square(X - self.means_[1]).sum(axis=1)

    def predict(self, X):
        return self.classes_[(self.decision_function(X) > 0).astype(int)]


def test_estimators_that_others_wrote():
    decoder = Decoder(make_pipeline(StandardScaler(), _NearestMean()), param_grid={"_nearestmean__shrink": [0, 0.5]}).fit(X, Y, RUNS)
    assert decoder.cv_metrics_["accuracy"].mean() > 0.8
    with pytest.raises(DecodingError, match=r"no parameter 'shrimp'.*Did you mean 'shrink'"):
        Decoder(_NearestMean(), param_grid={"shrimp": [1]}).fit(X, Y, RUNS)
    assert Decoder(_NearestMean(), param_grid={"shrink": [0.1]}).fit(X, Y, RUNS).cv_metrics_["accuracy"].mean() > 0.8


def test_the_estimator_that_is_passed_is_left_alone():
    model = LinearSVC(C=0.01, dual=False)
    fit = Decoder(model, screening_percentile=None, standardize=None).fit(X, Y, RUNS)
    assert not hasattr(model, "coef_")
    target, coefs = np.where(Y == "c1", 1, -1), []
    for train, _ in LeaveOneGroupOut().split(X, Y, RUNS):
        coefs.append(LinearSVC(C=0.01, dual=False).fit(X[train], target[train]).coef_[0])
    np.testing.assert_allclose(fit.coef_[0], np.mean(coefs, axis=0), rtol=1e-9)
    assert "LinearSVC(C=0.01" in fit.provenance_["estimator"]


def test_results_without_weights_are_written_and_reported(tmp_path):
    decoder = Decoder("gnb").fit(X, Y, RUNS)
    dd.write_results(decoder, tmp_path / "results")
    names = {p.name for p in (tmp_path / "results").iterdir()}
    assert "desc-decoding_scores.tsv" in names
    assert not any("weights" in name or "statmap" in name for name in names)
    assert "has no weights" in dd.write_report(decoder, tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "ridge"}, r"'ridge' is no classifier: use daskdecode.DecoderRegressor"),
        ({"estimator": "logistik"}, r"Did you mean 'logistic'"),
        ({"estimator": PLSRegression()}, r"PLSRegression is no classifier"),
        ({"estimator": LinearSVC}, "a name or a scikit-learn estimator"),
        ({"estimator": 3}, "a name or a scikit-learn estimator"),
        ({"estimator": "svc", "estimator_args": {"penalty": "l1"}}, "penalty cannot be changed"),
        ({"estimator": "logistic", "param_grid": {"solver": ["lbfgs"]}}, "solver cannot be changed"),
        ({"estimator": "gnb", "param_grid": {"C": [1]}}, "no parameter 'C'"),
        ({"estimator": make_pipeline(StandardScaler(), LinearSVC()), "param_grid": {"linearsvc__C": [-1]}}, "'C' parameter of LinearSVC"),
    ],
)
def test_bad_estimators_are_named(options, message):
    with pytest.raises(DecodingError, match=message):
        Decoder(**options).explain(X, Y, RUNS)


def test_what_an_estimator_itself_refuses_is_named_with_its_samples():
    many = make_pipeline(PCA(40), LinearSVC())
    with pytest.raises(DecodingError, match=r"PCA\(n_components=40\).* could not be fitted on 36 training samples x 150 features"):
        Decoder(many, screening_percentile=None).fit(X, Y, RUNS)
    with pytest.raises(DecodingError, match=r"found an empty list"):
        Decoder(param_grid=[]).fit(X, Y, RUNS)
