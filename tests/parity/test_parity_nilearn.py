"""The same question to nilearn and to daskdecode: scores and choices equal, coefficients to rounding."""

from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.decoding import Decoder as NilearnDecoder
from nilearn.image import index_img
from sklearn.model_selection import KFold, LeaveOneGroupOut, StratifiedShuffleSplit

from daskdecode import Decoder


def compare(img, mask, y, groups, *, cv=None, tolerance=1e-5, **options):
    cv = LeaveOneGroupOut() if cv is None else cv
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn's about small masks, missing codes in headers, groups
        nilearn_groups = None if isinstance(cv, int) else groups
        theirs = NilearnDecoder("svc", mask=mask, standardize="zscore_sample", cv=cv, **options).fit(img, y, groups=nilearn_groups)
        their_prediction = theirs.predict(img)
        ours = Decoder("svc", mask=mask, standardize="zscore_sample", tune="held_out", cv=cv, **options).fit(img, y, groups=groups)
    assert list(ours.classes_) == list(theirs.classes_)
    assert ours.cv_scores_ == theirs.cv_scores_
    assert ours.cv_params_ == theirs.cv_params_
    assert ours.screening_percentile_ == pytest.approx(theirs.screening_percentile_, abs=1)
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=tolerance * scale, rtol=0)
    # nilearn gives two equal rows for a binary problem here, and one in coef_.
    np.testing.assert_allclose(ours.std_coef_, theirs.std_coef_[: len(ours.coef_)], atol=tolerance * scale, rtol=0)
    np.testing.assert_allclose(ours.intercept_, np.ravel(theirs.intercept_), atol=tolerance * max(1, np.abs(theirs.intercept_).max()))
    np.testing.assert_array_equal(ours.predict(img), their_prediction)
    return ours, theirs


@pytest.fixture(scope="module")
def haxby(shared_data):
    table = pd.read_csv(shared_data / "haxby-slice" / "labels.txt", sep=" ")
    return nib.load(shared_data / "haxby-slice" / "bold.nii.gz"), nib.load(shared_data / "haxby-slice" / "mask.nii.gz"), table


def take(haxby, conditions, runs=range(12)):
    img, mask, table = haxby
    keep = (table.labels.isin(conditions) & table.chunks.isin(runs)).to_numpy()
    return index_img(img, keep), mask, table.labels[keep].to_numpy(), table.chunks[keep].to_numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scoring": "accuracy"},
        {"screening_percentile": None, "screening_n_features": 150},
        {"screening_percentile": None, "screening_n_features": 300},
        {"param_grid": [{"C": [0.01, 0.1]}, {"C": [5.0], "tol": [1e-3]}]},
        {"cv": 5, "scoring": "accuracy"},
        {"cv": KFold(4)},
        {"cv": StratifiedShuffleSplit(4, random_state=0)},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_two_classes_of_haxby(haxby, options):
    compare(*take(haxby, ["face", "cat"]), **options)


def test_figures_that_nilearn_is_known_to_give_on_haxby(haxby):
    img, mask, y, groups = take(haxby, ["face", "cat"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder = Decoder(mask=mask, standardize="zscore_sample", tune="held_out").fit(img, y, groups)
    assert np.mean(decoder.cv_scores_["face"]) == pytest.approx(0.9053, abs=5e-5)
    assert np.std(decoder.cv_scores_["face"]) == pytest.approx(0.1198, abs=5e-5)


@pytest.mark.parametrize("scoring", ["roc_auc", "accuracy"])
def test_eight_classes_of_haxby(haxby, scoring):
    conditions = sorted(set(haxby[2].labels) - {"rest"})
    ours, _ = compare(*take(haxby, conditions, runs=range(4)), scoring=scoring)
    assert ours.plan_.route == "gram"
    assert ours.coef_.shape == (8, 530)


@pytest.mark.slow
def test_eight_classes_where_samples_outnumber_voxels(haxby):
    """liblinear's primal solver: the last bits of the input change its coefficients, so only the same bits in the same order will do."""
    conditions = sorted(set(haxby[2].labels) - {"rest"})
    img, mask, y, groups = take(haxby, conditions, runs=range(6))
    inside = np.flatnonzero(np.asarray(mask.dataobj).ravel())[::4]
    small = np.zeros(mask.shape, dtype=np.uint8)
    small.ravel()[inside] = 1
    ours, _ = compare(img, nib.Nifti1Image(small, mask.affine), y, groups, tolerance=1e-9)
    assert ours.plan_.route == "columns"


def planted(dtype, n_classes, seed=0, shape=(7, 8, 9), zoom=11.0, n_runs=5, repeats=4):
    """Noise with a little signal on a grid so coarse that screening keeps a part of it, as in a whole brain."""
    rng = np.random.default_rng(seed)
    y = np.tile(np.repeat([f"class{c}" for c in range(n_classes)], repeats), n_runs)
    groups = np.repeat(np.arange(n_runs), n_classes * repeats)
    data = 1000 + 60 * rng.standard_normal((*shape, y.size))
    for c in range(n_classes):
        data[1 + c % 4, 2:5, 3:6, :] += 55 * (y == f"class{c}")
    img = nib.Nifti1Image(data.astype(dtype), np.diag([zoom, zoom, zoom, 1]))
    mask = np.ones(shape, dtype=np.uint8)
    mask[0] = 0
    return img, nib.Nifti1Image(mask, img.affine), y, groups


@pytest.mark.parametrize("n_classes", [2, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.int16, 1e-5), (np.float32, 1e-5), (np.float64, 1e-6)])
def test_screened_simulation(dtype, tolerance, n_classes):
    ours, theirs = compare(*planted(dtype, n_classes), tolerance=tolerance, screening_percentile=15)
    assert 0 < ours.screening_percentile_ < 100
    assert (ours.coef_ == 0).any()
    np.testing.assert_array_equal(ours.coef_ == 0, theirs.coef_ == 0)


def test_binary_maps_are_positive_for_the_class_they_are_named_after():
    img, mask, y, groups = planted(np.float32, 2)
    ours, theirs = compare(img, mask, y, groups)
    for name in ("class0", "class1"):
        mean_map = np.asarray(ours.coef_img_[name].dataobj)
        region = (1 if name == "class0" else 2, slice(2, 5), slice(3, 6))
        assert mean_map[region].mean() > 0
        assert np.asarray(ours.pattern_img_[name].dataobj)[region].mean() > 0
        # nilearn's map of a binary problem has the sign of the other class: the one fault that is not copied.
        np.testing.assert_allclose(mean_map, -np.asarray(theirs.coef_img_[name].dataobj), atol=1e-5 * np.abs(mean_map).max())


def test_prediction_of_new_images_equals_nilearn():
    img, mask, y, groups = planted(np.float32, 2)
    train, test = np.arange(30), np.arange(30, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cv = LeaveOneGroupOut()
        theirs = NilearnDecoder("svc", mask=mask, standardize="zscore_sample", cv=cv).fit(index_img(img, train), y[train], groups[train])
        expected, one = theirs.decision_function(index_img(img, test)), theirs.predict(index_img(img, [35]))
    ours = Decoder(mask=mask, standardize="zscore_sample", tune="held_out").fit(index_img(img, train), y[train], groups[train])
    np.testing.assert_allclose(ours.decision_function(index_img(img, test)), expected, rtol=1e-6)
    np.testing.assert_array_equal(ours.predict(index_img(img, [35])), one)
    assert ours.score(index_img(img, test), y[test]) == pytest.approx(theirs.score(index_img(img, test), y[test]))
