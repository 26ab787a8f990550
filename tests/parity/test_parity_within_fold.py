"""Scaling, confounds, weights and masks inside folds: the same as scikit-learn's pipelines on the voxels."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import xarray as xr
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest, f_classif, f_regression
from sklearn.linear_model import LinearRegression, RidgeClassifierCV, RidgeCV
from sklearn.metrics import get_scorer
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from daskdecode import Decoder, DecoderRegressor, cross_decode, permutation_test, temporal_generalization
from daskdecode.engine.registry import CLASSIFIERS, REGRESSORS
from daskdecode.errors import DecodingError, SourceError

N_RUNS, P, K = 5, 130, 70


def study(n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    y = np.tile(np.repeat([f"c{c}" for c in range(n_classes)], 6), N_RUNS)
    groups = np.repeat(np.arange(N_RUNS), 6 * n_classes)
    confounds = rng.standard_normal((y.size, 2)) * [1, 30] + (y == "c1")[:, None]
    x = rng.standard_normal((y.size, P)) + confounds / [1, 30] @ rng.standard_normal((2, P))
    for c in range(n_classes):
        x[:, 8 * c : 8 * c + 8] += 0.8 * (y == f"c{c}")[:, None]
    x = (x * np.geomspace(0.5, 40, P) + 5_000).astype(np.float32)
    return x, y, groups, confounds


class Clean(TransformerMixin, BaseEstimator):
    """Regress the last k columns out of the others."""

    def __init__(self, k=0):
        self.k = k

    def fit(self, X, y=None):
        x, c = X[:, : X.shape[1] - self.k], X[:, X.shape[1] - self.k :]
        self.center_ = c.mean(axis=0)
        self.slopes_ = LinearRegression().fit(c, x).coef_.T if self.k else np.zeros((0, x.shape[1]))
        return self

    def transform(self, X):
        return X[:, : X.shape[1] - self.k] - (X[:, X.shape[1] - self.k :] - self.center_) @ self.slopes_


def log_odds(pipe, both):
    if hasattr(pipe, "decision_function"):
        return pipe.decision_function(both)
    if hasattr(pipe, "predict_joint_log_proba"):
        return np.diff(pipe.predict_joint_log_proba(both))[:, 0]
    if hasattr(pipe[-1], "predict_joint_log_proba"):
        return np.diff(pipe[-1].predict_joint_log_proba(pipe[:-1].transform(both)))[:, 0]
    if hasattr(pipe, "predict_proba"):
        eps = np.finfo(float).eps
        p = pipe.predict_proba(both)[:, 1].clip(eps, 1 - eps)
        return np.log(p / (1 - p))
    return pipe.predict(both)


def pipelines(model, target, x, groups, confounds, *, scale=True, k=K, f_test=f_classif, scoring="roc_auc", weight=None):
    """Score and decide with a pipeline in each fold."""
    both = np.hstack([x.astype(np.float64), confounds])
    scores, decisions, fitted = [], [], []
    for train, test in LeaveOneGroupOut().split(both, target, groups):
        pipe = make_pipeline(
            Clean(confounds.shape[1]), StandardScaler() if scale else "passthrough", SelectKBest(f_test, k=k), clone(model)
        )
        own = {} if weight is None else {f"{pipe.steps[-1][0]}__sample_weight": weight[train]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe.fit(both[train], target[train], **own)
        scores.append(get_scorer(scoring)(pipe, both[test], target[test]))
        decisions.append(log_odds(pipe, both))
        fitted.append(pipe)
    return scores, np.mean(decisions, axis=0), fitted


SETTLED = {"param_grid": {}, "screening_percentile": None, "screening_n_features": K, "standardize": "zscore_fold"}
CASES = [
    ("svc", LinearSVC(dual=True, max_iter=10_000, random_state=0), "gram"),
    ("ridge_classifier", RidgeClassifierCV(alphas=CLASSIFIERS["ridge_classifier"].param_grid["alphas"][0]), "gram"),
    ("logistic", CLASSIFIERS["logistic"].build(48, K, Cs=[0.01, 1.0]), "gram"),
    ("lda", LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), "direct"),
    ("gnb", GaussianNB(), "direct"),
    (DecisionTreeClassifier(random_state=0, max_depth=2), DecisionTreeClassifier(random_state=0, max_depth=2), "direct"),
    (make_pipeline(StandardScaler(), SVC(kernel="rbf")), make_pipeline(StandardScaler(), SVC(kernel="rbf")), "direct"),
]


@pytest.mark.parametrize("n_confounds", [0, 2])
@pytest.mark.parametrize(("estimator", "model", "route"), CASES, ids=["svc", "ridge", "logistic", "lda", "gnb", "tree", "pipeline"])
def test_classifiers_scaled_inside_the_fold(estimator, model, route, n_confounds):
    x, y, groups, confounds = study()
    confounds = confounds[:, :n_confounds]
    grid = {"logistic": {"Cs": [0.01, 1.0]}, "ridge_classifier": None}.get(estimator if isinstance(estimator, str) else "", {})
    ours = Decoder(estimator, **SETTLED | {"param_grid": grid}).fit(x, y, groups, confounds=confounds if n_confounds else None)
    assert ours.plan_.route == route
    target = np.where(y == "c1", 1, -1)
    scores, decision, fitted = pipelines(model, target, x, groups, confounds)
    np.testing.assert_allclose(ours.cv_scores_["c1"], scores, rtol=1e-12)
    got = ours.decision_function(x, confounds=confounds if n_confounds else None)
    np.testing.assert_allclose(got, decision, atol=1e-6 * np.abs(decision).max())
    new = x[3:7] + 10  # other samples, as they are
    both = np.hstack([new.astype(np.float64), confounds[20:24]])
    expected = np.mean([log_odds(pipe, both) for pipe in fitted], axis=0)
    got = ours.decision_function(new, confounds=confounds[20:24] if n_confounds else None)
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())
    json.dumps(ours.provenance_)


@pytest.mark.parametrize("estimator", ["ridge", "svr", "lasso"])
@pytest.mark.parametrize("scale", [True, False])
def test_regressors_with_confounds(estimator, scale):
    x, _, groups, confounds = study()
    rng = np.random.default_rng(5)
    x = x if scale else (x - x.mean(axis=0)) / x.std(axis=0)
    value = x[:, :12] @ rng.standard_normal(12) / x[:, :12].std() + 30
    settings = {"ridge": None, "svr": {"C": 0.1}, "lasso": {"alphas": [0.05, 0.5]}}[estimator]
    model = {
        "ridge": RidgeCV(alphas=REGRESSORS["ridge"].param_grid["alphas"][0]),
        "svr": SVR(kernel="linear", C=0.1, max_iter=10_000),
        "lasso": REGRESSORS["lasso"].build(48, K, alphas=[0.05, 0.5]),
    }[estimator]
    options = SETTLED | {"param_grid": settings, "standardize": "zscore_fold" if scale else None}
    ours = DecoderRegressor(estimator, **options).fit(x, value, groups, confounds=confounds)
    scores, decision, _ = pipelines(model, value, x, groups, confounds, scale=scale, f_test=f_regression, scoring="r2")
    tolerance = 1e-5 if estimator == "lasso" else 1e-6  # lasso stops by a tolerance
    np.testing.assert_allclose(ours.cv_scores_["beta"], scores, rtol=tolerance)
    np.testing.assert_allclose(ours.predict(x, confounds=confounds), decision, rtol=tolerance)
    assert ours.confound_coef_.shape == (1, 2)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("engine", ["dual", "direct"])
@pytest.mark.parametrize("estimator", ["svc", "ridge_classifier"])
def test_sample_weights_class_weights_and_routes(estimator, engine, n_classes):
    x, y, groups, confounds = study(n_classes)
    keep = np.r_[0:4, 7 : y.size]  # unequal classes
    x, y, groups, confounds = x[keep], y[keep], groups[keep], confounds[keep]
    weight = np.random.default_rng(2).uniform(0.2, 2, y.size)
    weight[::11] = 0
    k = 70 if n_classes == 2 else 110  # more than training samples: liblinear's dual solver
    ours = Decoder(estimator, **SETTLED | {"param_grid": {} if estimator == "svc" else None, "screening_n_features": k}, engine=engine)
    ours.set_params(estimator_args={"class_weight": "balanced"})
    ours.fit(x, y, groups, confounds=confounds, sample_weight=weight)
    model = CASES[0][1] if estimator == "svc" else CASES[1][1]
    model = clone(model).set_params(class_weight="balanced")
    for row, name in enumerate(ours.classes_[-1:] if n_classes == 2 else ours.classes_):
        scores, decision, _ = pipelines(model, np.where(y == name, 1, -1), x, groups, confounds, weight=weight, k=k)
        np.testing.assert_allclose(ours.cv_scores_[name], scores, rtol=1e-12)
        got = ours.decision_function(x, confounds=confounds)
        np.testing.assert_allclose(got if n_classes == 2 else got[:, row], decision, atol=1e-6 * np.abs(decision).max())


def test_samples_masked_out_are_as_if_they_were_not_there():
    x, y, groups, confounds = study()
    y = y.astype(object)
    y[5], x[6], confounds[7] = None, np.nan, np.nan
    taken = np.delete(np.arange(60), [5, 6, 7, 40])
    weight = np.linspace(1, 2, 60)
    folds = [(np.flatnonzero(groups != g), np.flatnonzero(groups == g)) for g in range(N_RUNS)]
    for cv in ("run", LeaveOneGroupOut(), folds):
        ours = Decoder(**SETTLED, cv=cv)
        ours.fit(x, y, groups, confounds=confounds, sample_weight=weight, sample_mask=taken)
        alone = Decoder(**SETTLED).fit(
            x[taken], y[taken].astype(str), groups[taken], confounds=confounds[taken], sample_weight=weight[taken]
        )
        np.testing.assert_allclose(ours.coef_, alone.coef_, rtol=1e-12)
        assert ours.cv_scores_ == alone.cv_scores_
        np.testing.assert_array_equal(ours.cv_predictions_["sample"], taken[alone.cv_predictions_["sample"]])
        for (train, test), (a, b) in zip(ours.cv_, alone.cv_, strict=True):
            np.testing.assert_array_equal(train, taken[a])
            np.testing.assert_array_equal(test, taken[b])
        assert ours.provenance_["n_left_out"] == 4
    given = {"confounds": confounds, "sample_weight": weight}
    again = Decoder(**SETTLED).fit(x, y, groups, sample_mask=np.isin(np.arange(60), taken), **given)
    np.testing.assert_array_equal(again.coef_, ours.coef_)


def test_confounds_of_a_dataset_go_by_name_and_follow_its_selections():
    x, y, groups, confounds = study()
    ds = xr.Dataset(
        {"bold": (("time", "voxel"), x)},
        coords={
            "label": ("time", y),
            "run": ("time", groups.astype(str)),
            "voxel": np.arange(P),
            "trans_x": ("time", confounds[:, 0]),
            "rot_z": ("time", confounds[:, 1]),
        },
        attrs={"affine": np.eye(4).tolist(), "shape": [1, 1, P]},
    )
    named = Decoder(confounds=["trans_x", "rot_z"], param_grid={"C": 1}).fit(ds)
    given = Decoder(param_grid={"C": 1}).fit(ds, confounds=confounds)
    np.testing.assert_array_equal(named.coef_, given.coef_)
    assert named.confound_names_ == named.provenance_["confounds"] == ["trans_x", "rot_z"]
    first = ds.isel(time=slice(0, 24))
    np.testing.assert_array_equal(named.decision_function(first), given.decision_function(first, confounds=confounds[:24]))
    with pytest.raises(DecodingError, match=r"no variable 'trans_y' along time. Did you mean 'trans_x'"):
        Decoder(confounds="trans_y").fit(ds)
    with pytest.raises(DecodingError, match="fitted with 2 confounds, but 0 are given"):
        given.predict(ds)
    assert "regression on 2 confounds" in str(named.plan_)


def test_what_was_lucky_stands_beside_what_is_unbiased():
    x, y, groups, _ = study()
    options = {"param_grid": {"C": [1e-7, 1e-5, 1e-2]}, "standardize": "zscore_fold"}
    nested, held_out = Decoder(**options).fit(x, y, groups), Decoder(tune="held_out", **options).fit(x, y, groups)
    assert nested.optimistic_scores_ == held_out.optimistic_scores_ == held_out.cv_scores_
    single = [Decoder(**options | {"param_grid": {"C": c}}).fit(x, y, groups) for c in (1e-7, 1e-5, 1e-2)]
    np.testing.assert_allclose(nested.optimistic_scores_["c1"], np.max([d.cv_scores_["c1"] for d in single], axis=0))
    assert held_out.optimistic_
    assert not nested.optimistic_
    assert not hasattr(single[0], "optimistic_scores_")


X, Y, G, C = study()


@pytest.mark.parametrize(
    ("options", "given", "error", "message"),
    [
        ({}, {"confounds": C[:-1]}, SourceError, "59 rows but the data have 60"),
        ({}, {"confounds": np.where(C > 1, np.nan, C)}, SourceError, "is not finite in"),
        ({}, {"confounds": "trans_x"}, DecodingError, "names variables, but X is a ndarray"),
        ({}, {"confounds": np.random.default_rng(0).standard_normal((60, 47))}, DecodingError, "48 samples and 47 independent confounds"),
        ({"estimator": "lda"}, {"sample_weight": np.ones(60)}, DecodingError, "estimator 'lda' takes no sample_weight"),
        ({"estimator": make_pipeline(LinearDiscriminantAnalysis())}, {"sample_weight": np.ones(60)}, DecodingError, "Pipeline takes no"),
        ({}, {"sample_weight": np.ones(59)}, DecodingError, r"sample_weight has shape \(59,\)"),
        ({}, {"sample_weight": -np.ones(60)}, DecodingError, "not negative, but sample 0 has -1"),
        ({}, {"sample_weight": (Y == "c1") * 1.0}, DecodingError, "0 for all samples of a class"),
        ({}, {"sample_mask": np.ones(59, bool)}, DecodingError, "sample_mask has shape"),
        ({}, {"sample_mask": [0, 0, 1]}, DecodingError, "names sample 0 more than once"),
        ({}, {"sample_mask": [0, 60]}, DecodingError, "names sample 60"),
        ({}, {"sample_mask": [0.5]}, DecodingError, "must hold booleans"),
        ({"engine": "dual", "estimator": "gnb"}, {}, DecodingError, "engine='dual' works on inner products"),
        ({"engine": "drect"}, {}, DecodingError, "Did you mean 'direct'"),
    ],
)
def test_bad_input_is_named_before_anything_runs(options, given, error, message):
    with pytest.raises(error, match=message):
        Decoder(**options).fit(X, Y, G, **given)


@pytest.mark.parametrize("percentile", [None, 50])
def test_permutations_scale_and_clean_inside_the_folds_again(percentile):
    x, y, groups, confounds = study()
    decoder = Decoder(param_grid={"C": 1e-3}, screening_percentile=percentile, standardize="zscore_fold", confounds=confounds)
    found = permutation_test(decoder, x, y, groups, n_permutations=3)
    assert found.score == pytest.approx(np.mean(decoder.fit(x, y, groups).cv_scores_["c1"]), abs=1e-12)
    assert np.isfinite(found.null).all()
    assert len(set(found.null)) > 1


def test_cross_decoding_and_temporal_generalisation_take_confounds_along():
    x, y, groups, confounds = study(4)
    order = np.random.default_rng(4).permutation(y.size)
    decoder = Decoder(param_grid={"C": 1e-3}, standardize="zscore_fold", confounds=confounds[order], screening_percentile=None)
    between = ({"c0": "a", "c1": "b"}, {"c2": "a", "c3": "b"})
    found = cross_decode(decoder, x[order], y[order], groups[order], train=between[0], test=between[1])
    names = {**between[0], **between[1]}
    target = np.array([1 if names[label] == "b" else -1 for label in y])
    both, learnt, scores = np.hstack([x.astype(np.float64), confounds]), np.isin(y, ["c0", "c1"]), []
    for run in found.cv_metrics_["test_runs"].astype(int):
        train, test = learnt & (groups != run), ~learnt & (groups == run)
        pipe = make_pipeline(Clean(2), StandardScaler(), LinearSVC(C=1e-3, dual=True, random_state=0)).fit(both[train], target[train])
        scores.append(get_scorer("roc_auc")(pipe, both[test], target[test]))
    np.testing.assert_allclose(found.cv_scores_["b"], scores)
    lags = temporal_generalization(decoder.set_params(confounds=confounds), x, y, groups, lags=[0, 3], labels=["c0", "c1"])
    train, test = groups != 0, groups == 0
    at, two = np.tile(np.arange(6), 4 * N_RUNS), np.isin(y, ["c0", "c1"])
    rows = [side & two & (at == lag) for side, lag in ((train, 0), (test, 3))]
    pipe = make_pipeline(Clean(2), StandardScaler(), LinearSVC(C=1e-3, dual=True, random_state=0)).fit(both[rows[0]], y[rows[0]])
    score = get_scorer("roc_auc")(pipe, both[rows[1]], y[rows[1]])
    assert lags["fold_score"].sel(train_time=0, test_time=3).values[0, 0] == score


@pytest.mark.parametrize("estimator", ["svc", "logistic", "ridge_classifier"])
@pytest.mark.parametrize(("p", "route"), [(30, "columns"), (P, "gram")])
def test_weights_where_the_solver_sees_the_voxels_and_where_it_does_not(estimator, p, route):
    x, y, groups, _ = study()
    keep = np.r_[0:4, 7 : y.size]
    x, y, groups = x[keep, :p], y[keep], groups[keep]
    weight = np.random.default_rng(2).uniform(0.2, 2, y.size)
    grid = {"svc": {"C": 0.01}, "logistic": {"Cs": [0.01, 1.0]}, "ridge_classifier": None}[estimator]
    args = {"class_weight": "balanced"}
    options = {"param_grid": grid, "screening_percentile": None, "standardize": "zscore_fold", "estimator_args": args}
    ours = Decoder(estimator, **options).fit(x, y, groups, sample_weight=weight)
    assert ours.plan_.route == route
    params = {"svc": {"C": 0.01}, "logistic": {"Cs": [0.01, 1.0]}, "ridge_classifier": {"alphas": np.geomspace(1e-3, 1e4, 8)}}[estimator]
    model = CLASSIFIERS[estimator].build(45, p, **params, **args)
    scores, decision, _ = pipelines(model, np.where(y == "c1", 1, -1), x, groups, np.zeros((y.size, 0)), weight=weight, k="all")
    np.testing.assert_allclose(ours.cv_scores_["c1"], scores, rtol=1e-12)
    np.testing.assert_allclose(ours.decision_function(x), decision, atol=1e-6 * np.abs(decision).max())
