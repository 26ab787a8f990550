"""Every estimator that nilearn knows by name, asked the same question; what nilearn cannot do is written out with scikit-learn."""

from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pytest
from nilearn.decoding import Decoder as NilearnDecoder
from nilearn.decoding import DecoderRegressor as NilearnRegressor
from nilearn.maskers import NiftiMasker
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectPercentile, f_classif, f_regression
from sklearn.linear_model import LassoCV, Ridge, SGDClassifier
from sklearn.metrics import get_scorer
from sklearn.model_selection import KFold, LeaveOneGroupOut
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from daskdecode import Decoder, DecoderRegressor

SHAPE, ZOOM, PERCENTILE = (7, 8, 9), 11.0, 15
AS_NILEARN = {"tune": "held_out", "standardize": "zscore_sample"}
CLASSIFIERS = ["svc", "svc_l2", "svc_l1", "logistic", "logistic_l2", "logistic_l1", "ridge_classifier"]
REGRESSORS = ["ridge", "ridge_regressor", "svr"]
# liblinear visits voxels in random order for an L1 penalty; nilearn's logistic leaves the seed open.
SEEDED = {"estimator_args": {"random_state": 0}}
GRAM = {"svc", "svc_l2", "logistic", "logistic_l2", "ridge_classifier", "ridge", "ridge_regressor", "svr"}


def image(y, n_runs, seed=0):
    """Noise on a grid so coarse that screening keeps a part of it, as in a whole brain, with a planted block for each column of y."""
    rng = np.random.default_rng(seed)
    data = 1000 + 60 * rng.standard_normal((*SHAPE, len(y)))
    for c, effect in enumerate(np.asarray(y, dtype=float).reshape(len(y), -1).T):
        data[1 + c, 2:5, 3:6] += 40 * effect
    img = nib.Nifti1Image(data.astype(np.float32), np.diag([ZOOM, ZOOM, ZOOM, 1]))
    mask = np.ones(SHAPE, dtype=np.uint8)
    mask[0] = 0
    return img, nib.Nifti1Image(mask, img.affine), np.repeat(np.arange(n_runs), len(y) // n_runs)


def classes(n_classes, n_runs=5, repeats=4):
    y = np.tile(np.repeat([f"class{c}" for c in range(n_classes)], repeats), n_runs)
    img, mask, groups = image(np.stack([y == f"class{c}" for c in range(n_classes)], axis=1), n_runs)
    return img, mask, y, groups


def numbers(n_runs=5, n=8):
    y = np.random.default_rng(7).standard_normal(n_runs * n) * 3 + 20
    return (*image((y - 20) / 3, n_runs)[:2], y, np.repeat(np.arange(n_runs), n))


def fit_both(theirs, ours, img, y, groups):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn's about small masks, missing codes in headers, groups; fits that did not converge
        return theirs.fit(img, y, groups=groups), ours.fit(img, y, groups=groups)


def same_params(ours, theirs):
    assert list(ours) == list(theirs)
    for name in theirs:
        assert set(ours[name]) == set(theirs[name])
        for key, values in theirs[name].items():
            np.testing.assert_allclose(ours[name][key], values, rtol=1e-12, err_msg=key)


def same_weights(ours, theirs, tolerance):
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=tolerance * scale, rtol=0)
    np.testing.assert_array_equal(ours.coef_ == 0, theirs.coef_ == 0)
    np.testing.assert_allclose(ours.std_coef_, theirs.std_coef_[: len(ours.coef_)], atol=tolerance * scale, rtol=0)
    np.testing.assert_allclose(ours.intercept_, np.ravel(theirs.intercept_), atol=tolerance * max(1, np.abs(theirs.intercept_).max()))


SLOW = {("logistic", 2), ("logistic", 3), ("logistic_l1", 3), ("logistic_l2", 3)}  # liblinear at C = 10,000


@pytest.mark.parametrize(
    ("estimator", "n_classes"),
    [pytest.param(e, n, marks=pytest.mark.slow if (e, n) in SLOW else ()) for e in CLASSIFIERS for n in (2, 3)],
)
def test_classifiers(estimator, n_classes):
    img, mask, y, groups = classes(n_classes)
    how = {"mask": mask, "cv": LeaveOneGroupOut(), "screening_percentile": PERCENTILE, "scoring": "roc_auc"}
    how |= SEEDED if estimator == "logistic_l1" else {}
    theirs, ours = fit_both(
        NilearnDecoder(estimator, standardize="zscore_sample", **how), Decoder(estimator, **AS_NILEARN, **how), img, y, groups
    )
    assert ours.plan_.route == ("gram" if estimator in GRAM else "direct")
    assert (ours.coef_ == 0).any()
    np.testing.assert_allclose([*ours.cv_scores_.values()], [*theirs.cv_scores_.values()], rtol=1e-12)
    same_params(ours.cv_params_, theirs.cv_params_)
    same_weights(ours, theirs, 1e-5)
    np.testing.assert_array_equal(ours.predict(img), theirs.predict(img))


@pytest.mark.parametrize("estimator", REGRESSORS)
@pytest.mark.parametrize("cv", [LeaveOneGroupOut(), 4, pytest.param(KFold(3), marks=pytest.mark.slow)], ids=["runs", "int", "splitter"])
def test_regressors(estimator, cv):
    img, mask, y, groups = numbers()
    how = {"mask": mask, "cv": cv, "screening_percentile": PERCENTILE}
    theirs, ours = fit_both(
        NilearnRegressor(estimator, standardize="zscore_sample", **how),
        DecoderRegressor(estimator, **AS_NILEARN, **how),
        img,
        y,
        None if isinstance(cv, int) else groups,
    )
    assert ours.plan_.route == "gram"
    assert (ours.coef_ == 0).any()
    np.testing.assert_allclose(ours.cv_scores_["beta"], theirs.cv_scores_["beta"], atol=1e-5)
    same_params(ours.cv_params_, theirs.cv_params_)
    same_weights(ours, theirs, 1e-5)
    np.testing.assert_allclose(ours.predict(img), theirs.predict(img), atol=1e-4)
    expected = theirs.coef_img_["beta"].get_fdata()
    np.testing.assert_allclose(ours.coef_img_["beta"].get_fdata(), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("n_classes", [2, 3])
def test_dummy_classifier(n_classes):
    img, mask, y, groups = classes(n_classes)
    how = {"mask": mask, "cv": LeaveOneGroupOut(), "scoring": "roc_auc"}
    theirs, ours = fit_both(
        NilearnDecoder("dummy_classifier", standardize="zscore_sample", **how),
        Decoder("dummy_classifier", **AS_NILEARN, **how),
        img,
        y,
        groups,
    )
    assert ours.cv_scores_ == theirs.cv_scores_
    assert not hasattr(ours, "coef_")
    assert set(ours.predict(img)) <= set(y)


def test_dummy_regressor():
    img, mask, y, groups = numbers()
    how = {"mask": mask, "cv": LeaveOneGroupOut()}
    theirs, ours = fit_both(
        NilearnRegressor("dummy_regressor", standardize="zscore_sample", **how),
        DecoderRegressor("dummy_regressor", **AS_NILEARN, **how),
        img,
        y,
        groups,
    )
    np.testing.assert_allclose(ours.cv_scores_["beta"], theirs.cv_scores_["beta"], rtol=1e-12)
    np.testing.assert_allclose(ours.predict(img), np.ravel(theirs.predict(img)), rtol=1e-12)
    np.testing.assert_allclose(ours.cv_scores_["beta"], ours.cv_metrics_["chance"], rtol=1e-12)


def written_out(estimator, f_test, x, target, groups, scoring, percentile):
    """Screen, fit and score each fold with scikit-learn alone: scores, fitted pairs, and their values for all samples."""
    scores, fitted = [], []
    for train, test in LeaveOneGroupOut().split(x, target, groups):
        select = SelectPercentile(f_test, percentile=percentile).fit(x[train], target[train])
        model = clone(estimator).fit(select.transform(x[train]), target[train])
        scores.append(get_scorer(scoring)(model, select.transform(x[test]), target[test]))
        fitted.append((select, model))
    return scores, fitted


def voxels(img, mask):
    return NiftiMasker(mask, standardize="zscore_sample").fit_transform(img).astype(np.float64)


def weights_of(fitted):
    return np.mean([select.inverse_transform(np.reshape(model.coef_, (1, -1))) for select, model in fitted], axis=0)[0]


def log_odds(model, x):
    if hasattr(model, "decision_function"):
        return model.decision_function(x)
    if hasattr(model, "predict_joint_log_proba"):
        return np.diff(model.predict_joint_log_proba(x))[:, 0]
    smallest = np.finfo(float).eps
    p = model.predict_proba(x)[:, 1].clip(smallest, 1 - smallest)
    return np.log(p / (1 - p))


LDA = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
PIPELINE = make_pipeline(StandardScaler(), SGDClassifier(random_state=0))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    ("estimator", "same_as"),
    [("lda", LDA), ("gnb", GaussianNB()), (KNeighborsClassifier(3), KNeighborsClassifier(3)), (PIPELINE, PIPELINE)],
    ids=["lda", "gnb", "neighbours", "pipeline"],
)
@pytest.mark.filterwarnings("ignore:The NIfTI image does not contain")
def test_what_nilearn_cannot_do_equals_scikit_learn(estimator, same_as, n_classes):
    img, mask, y, groups = classes(n_classes)
    ours = Decoder(estimator, mask=mask, standardize="zscore_sample", screening_percentile=PERCENTILE).fit(img, y, groups)
    assert ours.plan_.route == "direct"
    assert not ours.optimistic_
    x = voxels(img, mask)
    decisions = []
    for name in list(ours.classes_)[-1:] if n_classes == 2 else ours.classes_:
        target = np.where(y == name, 1, -1)
        scores, fitted = written_out(same_as, f_classif, x, target, groups, "roc_auc", int(ours.screening_percentile_))
        np.testing.assert_allclose(ours.cv_scores_[name], scores, rtol=1e-12)
        decisions.append(np.mean([log_odds(model, select.transform(x)) for select, model in fitted], axis=0))
        if estimator == "lda":
            expected = weights_of(fitted)
            row = list(ours.classes_).index(name) if n_classes > 2 else 0
            np.testing.assert_allclose(ours.coef_[row], expected, atol=1e-6 * np.abs(expected).max())
    assert hasattr(ours, "coef_") == hasattr(ours, "pattern_") == (estimator == "lda")
    got = ours.decision_function(img)
    np.testing.assert_allclose(got.T if n_classes > 2 else got[None], decisions, rtol=1e-6, atol=1e-6)
    assert hasattr(ours, "predict_proba") == (estimator is not PIPELINE)


@pytest.mark.filterwarnings("ignore:The NIfTI image does not contain")
@pytest.mark.parametrize("estimator", ["lasso", "lasso_regressor", "ridge-object", "neighbours"])
def test_regressors_that_nilearn_cannot_do_equal_scikit_learn(estimator):
    img, mask, y, groups = numbers()
    objects = {"ridge-object": Ridge(50), "neighbours": KNeighborsRegressor(3)}
    model = objects.get(estimator, estimator)
    ours = DecoderRegressor(model, mask=mask, standardize="zscore_sample", screening_percentile=PERCENTILE).fit(img, y, groups)
    assert ours.plan_.route == "direct"
    x = voxels(img, mask)
    same_as = objects.get(estimator, LassoCV(alphas=30))
    scores, fitted = written_out(same_as, f_regression, x, y, groups, "r2", int(ours.screening_percentile_))
    np.testing.assert_allclose(ours.cv_scores_["beta"], scores, rtol=1e-6)
    predicted = np.mean([m.predict(select.transform(x)) for select, m in fitted], axis=0)
    np.testing.assert_allclose(ours.predict(img), predicted, rtol=1e-6)
    if estimator.startswith("lasso"):
        np.testing.assert_allclose(ours.cv_params_["beta"]["best_alpha"], [m.alpha_ for _, m in fitted], rtol=1e-6)
    if estimator != "neighbours":
        np.testing.assert_allclose(ours.coef_[0], weights_of(fitted), atol=1e-6 * np.abs(ours.coef_).max())


@pytest.mark.parametrize(
    "estimator",
    [pytest.param(e, marks=pytest.mark.slow if e.startswith("logistic") else ()) for e in [*CLASSIFIERS, *REGRESSORS]],
)
def test_more_samples_than_voxels(estimator):
    """The solver sees the voxels, and liblinear the same choice of primal or dual as in nilearn."""
    regress = estimator in REGRESSORS
    img, _, y, groups = numbers(n=20) if regress else classes(2, repeats=10)
    few = np.zeros(SHAPE, dtype=np.uint8)
    few[1:4, 3:5, 3:6] = 1
    how = {"mask": nib.Nifti1Image(few, img.affine), "cv": LeaveOneGroupOut(), "scoring": "r2" if regress else "accuracy"}
    how |= SEEDED if estimator == "logistic_l1" else {}
    their_class, our_class = (NilearnRegressor, DecoderRegressor) if regress else (NilearnDecoder, Decoder)
    theirs, ours = fit_both(
        their_class(estimator, standardize="zscore_sample", **how), our_class(estimator, **AS_NILEARN, **how), img, y, groups
    )
    assert ours.plan_.route == "columns"
    np.testing.assert_allclose([*ours.cv_scores_.values()], [*theirs.cv_scores_.values()], rtol=1e-9)
    same_params(ours.cv_params_, theirs.cv_params_)
    same_weights(ours, theirs, 1e-9)


@pytest.mark.parametrize(
    ("estimator", "grid"),
    [("svc_l1", {"C": [0.1, 1.0]}), ("logistic", {"Cs": [0.01, 1.0]}), ("ridge_classifier", [{"alphas": [[1.0], [10.0, 100.0]]}])],
    ids=["svc_l1", "logistic", "ridge_classifier"],
)
def test_grids_of_the_user(estimator, grid):
    img, mask, y, groups = classes(2)
    how = {"mask": mask, "cv": LeaveOneGroupOut(), "screening_percentile": PERCENTILE, "param_grid": grid}
    theirs, ours = fit_both(
        NilearnDecoder(estimator, standardize="zscore_sample", scoring="roc_auc", **how),
        Decoder(estimator, **AS_NILEARN, **how),
        img,
        y,
        groups,
    )
    assert {c: p.keys() for c, p in ours.cv_params_.items()} == {c: p.keys() for c, p in theirs.cv_params_.items()}
    for key, values in theirs.cv_params_["class1"].items():
        for one, other in zip(ours.cv_params_["class1"][key], values, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, err_msg=key)
    same_weights(ours, theirs, 1e-5)
