from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV, KFold, LeaveOneGroupOut
from sklearn.svm import SVR

import daskdecode as dd
from daskdecode import Decoder, DecoderRegressor
from daskdecode.errors import DecodingError

SHAPE = (7, 8, 9)
RUNS = np.repeat(["1", "2", "3", "4"], [14, 12, 11, 13])


def make(p=150, signal=1.0, seed=0):
    rng = np.random.default_rng(seed)
    y = 5 + 2 * rng.standard_normal(RUNS.size)
    x = rng.standard_normal((RUNS.size, p)) * 3 + 100
    x[:, :20] += signal * (y - 5)[:, None]
    return x, y


def dataset(x, y):
    voxel = np.arange(5, 5 + x.shape[1])
    i, j, k = np.unravel_index(voxel, SHAPE)
    coords = {"time": ("time", np.arange(y.size) * 2.0), "run": ("time", RUNS), "label": ("time", y.astype(str))}
    coords |= {"voxel": voxel, "i": ("voxel", i), "j": ("voxel", j), "k": ("voxel", k)}
    attrs = {"affine": np.diag([3.0, 3, 4, 1]).tolist(), "shape": list(SHAPE), "subject": "01"}
    return xr.Dataset({"bold": (("time", "voxel"), da.from_array(x, chunks=(12, 40)))}, coords=coords, attrs=attrs)


X, Y = make()


def zscored(x):
    out = np.empty_like(x)
    for run in np.unique(RUNS):
        part = x[run == RUNS]
        out[run == RUNS] = (part - part.mean(axis=0)) / part.std(axis=0, ddof=1)
    return out


def test_a_planted_signal_is_found_where_it_was_planted():
    x, y = make(signal=3)
    regressor = dd.DecoderRegressor("ridge").fit(x, y, RUNS)
    assert np.mean(regressor.cv_metrics_["correlation"]) > 0.9
    assert (regressor.pattern_[0, :20] > 0).all()
    weight = np.abs(regressor.pattern_[0])
    assert weight[:20].min() > np.median(weight[20:])
    assert not regressor.optimistic_


def test_it_is_a_regressor_to_scikit_learn():
    regressor = DecoderRegressor("svr", cv=3, tune="held_out")
    assert is_regressor(regressor)
    assert not is_classifier(regressor)
    assert clone(regressor).get_params() == regressor.get_params()
    assert DecoderRegressor().get_params() == Decoder("ridge").get_params()


def test_noise_is_not_predicted():
    scores = [np.mean(DecoderRegressor().fit(*make(signal=0, seed=s), RUNS).cv_metrics_["correlation"]) for s in range(8)]
    assert abs(np.mean(scores)) < 3 * np.std(scores, ddof=1) / np.sqrt(len(scores))


def test_fitted_attributes():
    regressor = DecoderRegressor().fit(X, Y, RUNS)
    assert regressor.coef_.shape == regressor.std_coef_.shape == regressor.pattern_.shape == (1, 150)
    assert regressor.intercept_.shape == (1,)
    assert list(regressor.cv_scores_) == list(regressor.cv_params_) == ["beta"]
    assert set(regressor.cv_params_["beta"]) == {"alphas", "best_alpha"}
    table = regressor.cv_predictions_
    assert list(table) == ["sample", "fold", "run", "target", "predicted"]
    np.testing.assert_array_equal(table["target"], Y[table["sample"]])
    for fold, part in table.groupby("fold"):
        row = regressor.cv_metrics_.loc[fold]
        assert row["r2"] == pytest.approx(r2_score(part["target"], part["predicted"]))
        assert row["r2"] == pytest.approx(regressor.cv_scores_["beta"][fold])
        assert row["mean_absolute_error"] == pytest.approx(mean_absolute_error(part["target"], part["predicted"]))
        assert row["correlation"] == pytest.approx(part["target"].corr(part["predicted"]))
        assert row["chance"] <= 0
    assert list(regressor.cv_metrics_["test_runs"]) == ["1", "2", "3", "4"]
    for name in ("classes_", "confusion_", "coef_img_", "decision_function", "predict_proba"):
        assert not hasattr(regressor, name)
    record = json.loads(json.dumps(regressor.provenance_))
    assert record["target"]["mean"] == pytest.approx(Y.mean())
    assert "labels" not in record
    assert record["chosen"]["beta"]["alphas"][0] == pytest.approx(np.geomspace(1e-3, 1e4, 8).tolist())


def test_ridge_within_runs_equals_scikit_learn_written_out():
    regressor = DecoderRegressor(screening_percentile=None).fit(X, Y, RUNS)
    assert regressor.plan_.route == "gram"
    x, coefs = zscored(X), []
    for fold, (train, test) in enumerate(LeaveOneGroupOut().split(x, Y, RUNS)):
        model = RidgeCV(np.geomspace(1e-3, 1e4, 8)).fit(x[train], Y[train])
        assert regressor.cv_scores_["beta"][fold] == pytest.approx(model.score(x[test], Y[test]), rel=1e-9)
        assert regressor.cv_params_["beta"]["best_alpha"][fold] == pytest.approx(model.alpha_)
        coefs.append(model.coef_)
    np.testing.assert_allclose(regressor.coef_[0], np.mean(coefs, axis=0), atol=1e-9 * np.abs(coefs).max())
    np.testing.assert_allclose(regressor.predict(X, RUNS), x @ np.mean(coefs, axis=0) + regressor.intercept_, rtol=1e-9)
    expected = r2_score(Y, regressor.predict(X, RUNS))
    assert regressor.score(X, Y, RUNS) == pytest.approx(expected)


def test_nested_svr_equals_scikit_learn_written_out():
    grid = {"C": [1e-3, 1e-2, 1e-1]}
    regressor = DecoderRegressor("svr", param_grid=grid, screening_percentile=None).fit(X, Y, RUNS)
    x = zscored(X)
    for fold, (train, test) in enumerate(LeaveOneGroupOut().split(x, Y, RUNS)):
        search = GridSearchCV(SVR(kernel="linear", max_iter=10_000), grid, cv=LeaveOneGroupOut(), scoring="r2")
        search.fit(x[train], Y[train], groups=RUNS[train])
        assert regressor.cv_params_["beta"]["C"][fold] == search.best_params_["C"]
        assert regressor.cv_scores_["beta"][fold] == pytest.approx(search.score(x[test], Y[test]), abs=1e-6)


@pytest.mark.parametrize("how", [{}, {"screening_percentile": None, "screening_n_features": 30}], ids=["gram", "columns"])
def test_numbers_depend_neither_on_chunks_nor_on_the_order_of_voxels(how):
    reference = DecoderRegressor(**how).fit(dataset(X, Y))
    order = np.random.default_rng(1).permutation(150)
    shuffled = dataset(X, Y).isel(voxel=order)
    shuffled["bold"] = shuffled["bold"].chunk(time=7, voxel=23)
    got = DecoderRegressor(**how).fit(shuffled)
    np.testing.assert_allclose(got.coef_, reference.coef_[:, order], atol=1e-9 * np.abs(reference.coef_).max())
    np.testing.assert_allclose(got.predict(dataset(X, Y)), reference.predict(shuffled), rtol=1e-9)
    np.testing.assert_allclose(got.coef_img_["beta"].get_fdata(), reference.coef_img_["beta"].get_fdata(), atol=1e-9)
    assert list(got.coef_img_) == ["beta"]


@pytest.mark.parametrize("cv", ["run", 4, KFold(3), [(np.arange(26), np.arange(26, 50)), (range(26, 50), range(26))]])
@pytest.mark.filterwarnings("ignore:.*samples of the same run in training and test")
def test_every_kind_of_splitter_can_nest(cv):
    regressor = DecoderRegressor("svr", cv=cv, param_grid={"C": [0.01, 0.1]}).fit(X, Y, RUNS)
    assert np.mean(regressor.cv_metrics_["correlation"]) > 0.5
    if cv == 4:
        for (train, test), (a, b) in zip(regressor.cv_, KFold(4).split(X), strict=True):
            np.testing.assert_array_equal(train, a)
            np.testing.assert_array_equal(test, b)


def test_a_fold_of_one_sample_has_no_r2():
    folds = [(np.arange(1, 50), [0]), (np.arange(25), np.arange(25, 50))]
    with pytest.warns(UserWarning, match="not defined"):
        regressor = DecoderRegressor(cv=folds, standardize="zscore_sample").fit(X, Y)
    assert np.isnan(regressor.cv_metrics_.loc[0, "r2"])
    assert np.isfinite(regressor.cv_metrics_.loc[0, "mean_absolute_error"])


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        ({"estimator": "svc"}, Y, r"'svc' is no regressor: use daskdecode.Decoder"),
        ({"estimator": "rigde"}, Y, r"Did you mean 'ridge'"),
        ({"scoring": "roc_auc"}, Y, "refuses the estimator or the scorer"),
        ({"scoring": "accuracy"}, Y, "refuses the estimator or the scorer"),
        ({"param_grid": {"alpha": [1]}}, Y, "no parameter 'alpha'. Did you mean 'alphas'"),
        ({"estimator": "svr", "param_grid": {"kernel": ["rbf"]}}, Y, "kernel cannot be changed"),
        ({}, np.where(Y > 5, "a", "b"), "predicts numbers, but y has .* such as"),
        ({}, np.where(Y > 5, np.inf, Y), "not finite, the first at sample"),
        ({}, np.full(Y.size, 3.0), "All 50 samples have the value 3"),
        ({}, None, "pass y="),
    ],
)
def test_bad_input_is_named_before_anything_runs(options, y, message):
    def never(block):
        raise AssertionError("data were read")

    lazy = da.from_array(X, chunks=(12, 40)).map_blocks(never, dtype=float)
    with pytest.raises(DecodingError, match=message):
        DecoderRegressor(**options).fit(lazy, y, RUNS)


def test_results_of_a_regression_are_written_and_reported(tmp_path):
    regressor = DecoderRegressor().fit(dataset(X, Y))
    dd.write_results(regressor, tmp_path / "results")
    files = {p.name for p in (tmp_path / "results").rglob("*") if p.is_file()}
    assert {f"sub-01_desc-beta_stat-{s}_statmap.nii.gz" for s in ("coef", "stdcoef", "pattern")} <= files
    assert not any("confusion" in name for name in files)
    folder = tmp_path / "results" / "sub-01" / "func"
    scores = pd.read_csv(folder / "sub-01_desc-decoding_scores.tsv", sep="\t")
    np.testing.assert_allclose(scores["score"], regressor.cv_scores_["beta"])
    np.testing.assert_allclose(scores["best_alpha"], regressor.cv_params_["beta"]["best_alpha"])
    predicted = pd.read_csv(folder / "sub-01_desc-decoding_predictions.tsv", sep="\t")
    np.testing.assert_allclose(predicted["target"], regressor.cv_predictions_["target"])
    side_car = json.loads((folder / "sub-01_desc-decoding_folds.json").read_text())
    assert set(regressor.cv_metrics_) <= set(side_car)
    html = dd.write_report(regressor, tmp_path / "report.html").read_text()
    for text in ("R²", "correlation of predicted and true values", "mean absolute error", "best_alpha", "data:image/png"):
        assert text in html
    assert "Confusion" not in html
