from __future__ import annotations

import json
import warnings

import dask
import dask.array as da
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut

from daskdecode import Decoder
from daskdecode.errors import DecodingError, GridMismatchError, MemoryBudgetError, SelectionError

SHAPE = (7, 8, 9)


def make(n_classes=2, n_runs=4, repeats=6, p=150, signal=0.8, seed=0):
    rng = np.random.default_rng(seed)
    y = np.tile(np.repeat([f"c{c}" for c in range(n_classes)], repeats), n_runs)
    groups = np.repeat([f"{r + 1}" for r in range(n_runs)], n_classes * repeats)
    x = rng.standard_normal((y.size, p)) * 3 + 100
    for c in range(n_classes):
        x[:, 10 * c : 10 * c + 10] += signal * 3 * (y == f"c{c}")[:, None]
    return x, y, groups


def dataset(x, y, groups, order=None):
    voxel = np.arange(5, 5 + x.shape[1]) if order is None else np.arange(5, 5 + x.shape[1])[order]
    x = x if order is None else x[:, order]
    i, j, k = np.unravel_index(voxel, SHAPE)
    region = np.isin(voxel, np.arange(5, 35))
    return xr.Dataset(
        {"bold": (("time", "voxel"), da.from_array(x.astype(np.float32), chunks=(12, 40)))},
        coords={
            "time": ("time", np.arange(y.size) * 2.0),
            "run": ("time", groups),
            "label": ("time", y),
            "voxel": voxel,
            "i": ("voxel", i),
            "j": ("voxel", j),
            "k": ("voxel", k),
            "mask_roi": ("voxel", region),
        },
        attrs={"affine": np.diag([3.0, 3, 4, 1]).tolist(), "shape": list(SHAPE), "subject": "01"},
    )


def images(x, y):
    volume = np.zeros((*SHAPE, y.size), dtype=np.float32)
    volume.reshape(-1, y.size)[5 : 5 + x.shape[1]] = x.T.astype(np.float32)
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask.ravel()[5 : 5 + x.shape[1]] = 1
    affine = np.diag([3.0, 3, 4, 1])
    return nib.Nifti1Image(volume, affine), nib.Nifti1Image(mask, affine)


def assert_same(a, b, tolerance=1e-10):
    assert a.cv_params_ == b.cv_params_
    for name in ("coef_", "std_coef_", "intercept_", "pattern_"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=tolerance * np.abs(a.coef_).max(), err_msg=name)
    for label in a.cv_scores_:
        np.testing.assert_allclose(a.cv_scores_[label], b.cv_scores_[label], atol=1e-12)
    pd.testing.assert_frame_equal(a.confusion_, b.confusion_)


def test_a_planted_pattern_is_found_where_it_was_planted():
    x, y, groups = make(signal=1.2)
    decoder = Decoder(screening_percentile=None).fit(x, y, groups)
    assert np.mean(decoder.cv_scores_["c1"]) > 0.9
    weight = np.abs(decoder.pattern_[0])
    assert weight[:20].min() > np.median(weight[20:])
    assert (decoder.pattern_[0, 10:20] > 0).all()
    assert (decoder.pattern_[0, :10] < 0).all()
    assert not decoder.optimistic_


@pytest.mark.parametrize("n_classes", [2, 3])
def test_fitted_attributes(n_classes):
    x, y, groups = make(n_classes)
    decoder = Decoder().fit(x, y, groups)
    problems = 1 if n_classes == 2 else n_classes
    names = [f"c{c}" for c in range(n_classes)]
    assert list(decoder.classes_) == names
    for name in ("coef_", "std_coef_", "pattern_"):
        assert getattr(decoder, name).shape == (problems, 150)
    assert decoder.intercept_.shape == (problems,)
    assert len(decoder.cv_) == 4
    assert list(decoder.cv_scores_) == list(decoder.cv_params_) == names
    assert all(len(scores) == 4 for scores in decoder.cv_scores_.values())
    table = decoder.cv_predictions_
    assert sorted(table["sample"]) == list(range(y.size))
    np.testing.assert_array_equal(table["label"], y[table["sample"]])
    np.testing.assert_array_equal(table["run"], groups[table["sample"]])
    assert decoder.confusion_.to_numpy().sum() == y.size
    metrics = decoder.cv_metrics_
    hits = (table["label"] == table["predicted"]).groupby(table["fold"]).mean()
    np.testing.assert_allclose(metrics["accuracy"], hits)
    np.testing.assert_allclose(metrics["chance"], 1 / n_classes)
    assert list(metrics["test_runs"]) == ["1", "2", "3", "4"]
    json.dumps(decoder.provenance_)
    assert decoder.provenance_["labels"] == dict.fromkeys(names, y.size // n_classes)
    assert not hasattr(decoder, "coef_img_")


def test_every_kind_of_input_gives_the_same_decoder(tmp_path):
    x, y, groups = make()
    ds = dataset(x, y, groups)
    reference = Decoder().fit(ds)
    img, mask = images(x, y)
    nib.save(img, tmp_path / "bold.nii.gz")
    nib.save(mask, tmp_path / "mask.nii")
    halves = [img.slicer[..., :20], img.slicer[..., 20:]]
    x32 = x.astype(np.float32)
    volume = {"screening_percentile": None}
    with_mask = Decoder(mask=mask)
    for got in (
        with_mask.fit(img, y, groups),
        clone(with_mask).fit(halves, y, groups),
        Decoder(mask=tmp_path / "mask.nii").fit(str(tmp_path / "bold.nii.gz"), y, groups),
        Decoder(**volume).fit(x32, y, groups),
        Decoder(**volume).fit(da.from_array(x32, chunks=(7, 11)), y, groups),
        Decoder(**volume).fit(ds["bold"]),
        Decoder(**volume).fit(ds["bold"].T),
    ):
        assert_same(reference, got)


def test_a_region_by_name_is_its_columns():
    x, y, groups = make()
    ds = dataset(x, y, groups)
    assert_same(Decoder(mask="roi").fit(ds), Decoder().fit(x[:, :30].astype(np.float32), y, groups))


@settings(deadline=None, max_examples=6)
@given(columns=st.integers(1, 150), rows=st.integers(1, 48), workers=st.integers(1, 4))
def test_numbers_do_not_depend_on_chunks_or_workers(columns, rows, workers):
    x, y, groups = make(3)
    reference = Decoder(screening_percentile=40).fit(x, y, groups)
    with dask.config.set(scheduler="threads", num_workers=workers):
        got = Decoder(screening_percentile=40).fit(da.from_array(x, chunks=(rows, columns)), y, groups)
    assert_same(reference, got)


@pytest.mark.parametrize("percentile", [None, 0.3])
def test_numbers_do_not_depend_on_the_order_of_voxels(percentile):
    x, y, groups = make(3)
    order = np.random.default_rng(1).permutation(150)
    a = Decoder(screening_percentile=percentile).fit(dataset(x, y, groups))
    b = Decoder(screening_percentile=percentile).fit(dataset(x, y, groups, order))
    np.testing.assert_allclose(b.coef_, a.coef_[:, order], atol=1e-10 * np.abs(a.coef_).max())
    for name in a.coef_img_:
        np.testing.assert_allclose(b.coef_img_[name].dataobj, a.coef_img_[name].dataobj, atol=1e-10)
    shuffled = dataset(x, y, groups, order)
    np.testing.assert_allclose(a.decision_function(shuffled), b.decision_function(shuffled), atol=1e-9)


def test_no_run_is_on_both_sides_of_any_split():
    from daskdecode.models.splitters import inner_splits, outer_splits

    _, y, groups = make()
    for train, test in outer_splits("run", y, groups):
        assert not set(groups[train]) & set(groups[test])
        for a, b in inner_splits("run", train, y, groups):
            assert not set(groups[a]) & set(groups[b])
            assert not set(a.tolist() + b.tolist()) & set(test.tolist())
            assert set(a.tolist() + b.tolist()) == set(train.tolist())


def test_explaining_reads_nothing():
    x, y, groups = make()

    def never(block):
        raise AssertionError("explain read data")

    plan = Decoder(screening_percentile=None).explain(da.from_array(x, chunks=(12, 40)).map_blocks(never, dtype=float), y, groups)
    assert plan.passes == 1
    assert "gram" in str(plan)


def test_data_are_read_once_where_they_fit():
    x, y, groups = make()
    reads = []

    def count(block):
        reads.append(block.shape)
        return block

    lazy = da.from_array(x, chunks=(48, 50)).map_blocks(count, dtype=float, meta=np.empty((0, 0)))
    with dask.config.set(scheduler="synchronous"):
        Decoder(screening_percentile=50).fit(lazy, y, groups)
    assert len(reads) == 3


def test_held_out_tuning_says_that_it_is_optimistic():
    x, y, groups = make()
    decoder = Decoder(tune="held_out").fit(x, y, groups)
    assert decoder.optimistic_
    assert any("optimistic" in note for note in decoder.provenance_["warnings"])
    assert not Decoder(tune="held_out", param_grid={"C": 1}).fit(x, y, groups).optimistic_


def test_nested_scores_of_noise_lie_at_chance_and_held_out_ones_above():
    nested, held_out = [], []
    for seed in range(25):
        x, y, groups = make(signal=0, p=120, seed=seed, repeats=4, n_runs=4)
        grid = {"C": np.geomspace(1e-4, 1, 4)}
        nested.append(np.mean(Decoder(param_grid=grid).fit(x, y, groups).cv_scores_["c1"]))
        held_out.append(np.mean(Decoder(param_grid=grid, tune="held_out").fit(x, y, groups).cv_scores_["c1"]))
    error = np.std(nested, ddof=1) / np.sqrt(len(nested))
    assert abs(np.mean(nested) - 0.5) < 3 * error
    assert np.mean(held_out) > np.mean(nested)


def test_folds_follow_runs_in_natural_order():
    x, y, groups = make(n_runs=11, repeats=2)
    decoder = Decoder(param_grid={"C": 1}).fit(x, y, groups)
    assert list(decoder.cv_metrics_["test_runs"]) == [str(r + 1) for r in range(11)]


def test_numeric_labels_keep_their_type():
    x, y, groups = make()
    decoder = Decoder().fit(x, (y == "c1").astype(int), groups)
    assert set(decoder.cv_scores_) == {0, 1}
    assert decoder.predict(x, groups).dtype.kind == "i"


def test_predict_and_score():
    x, y, groups = make(3)
    decoder = Decoder(scoring="accuracy").fit(x, y, groups)
    predicted = decoder.predict(x, groups)
    assert decoder.score(x, y, groups) == pytest.approx((predicted == y).mean())
    auc = Decoder().fit(x, y, groups)
    assert auc.decision_function(x, groups).shape == (y.size, 3)
    assert 0.9 < auc.score(x, y, groups) <= 1


def test_estimator_arguments_do_not_leak_into_the_next_decoder():
    x, y, groups = make()
    keep = np.r_[0:8, 12:48]
    x, y, groups = x[keep], y[keep], groups[keep]
    before = Decoder().fit(x, y, groups)
    balanced = Decoder(estimator_args={"class_weight": "balanced", "C": 5}).fit(x, y, groups)
    after = Decoder().fit(x, y, groups)
    assert np.abs(balanced.coef_ - before.coef_).max() > 1e-6
    np.testing.assert_array_equal(before.coef_, after.coef_)


def test_bad_voxels_are_counted_and_never_spread():
    x, y, groups = make()
    x[5, 100] = np.nan
    x[:, 101] = 7.0
    with pytest.warns(UserWarning, match="1 of 150 voxels") as caught:
        decoder = Decoder().fit(x, y, groups)
    assert len(caught) == 2
    assert decoder.provenance_["n_nonfinite_voxels"] == decoder.provenance_["n_constant_voxels"] == 1
    assert np.isfinite(decoder.coef_).all()
    assert decoder.coef_[0, 101] == 0


def test_folds_that_share_runs_are_pointed_out():
    x, y, groups = make()
    with pytest.warns(UserWarning, match="same run in training and test"):
        Decoder(cv=3).fit(x, y, groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Decoder(cv=GroupKFold(2), tune="held_out").fit(x, y, groups)


@pytest.mark.parametrize("cv", ["run", LeaveOneGroupOut(), GroupKFold(2), [(np.arange(24), np.arange(24, 48)), (range(24, 48), range(24))]])
def test_every_kind_of_splitter_can_nest(cv):
    x, y, groups = make()
    assert np.mean(Decoder(cv=cv).fit(x, y, groups).cv_scores_["c1"]) > 0.7


def test_scikit_learn_can_clone_it_and_read_its_parameters():
    decoder = Decoder("svc", cv=3, tune="held_out")
    assert clone(decoder).get_params() == decoder.get_params()


X, Y, G = make()


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"estimator": "svg"}, (X, Y, G), r"estimator='svg' is not known. Did you mean 'svc'"),
        ({"tune": "nestd"}, (X, Y, G), "Did you mean 'nested'"),
        ({"standardize": "zscore"}, (X, Y, G), "zscore_run"),
        ({"scoring": "auc_roc"}, (X, Y, G), "not a scikit-learn scorer"),
        ({"cv": "runs"}, (X, Y, G), "cv='runs' is not known"),
        ({"cv": 1}, (X, Y, G), "at least 2 folds"),
        ({"cv": 100}, (X, Y, G), "cannot split 48 samples"),
        ({"cv": [(range(10), range(5, 20))]}, (X, Y, G), "Fold 0 .* trains and tests on the same samples"),
        ({"cv": [(range(48), range(40, 60))]}, (X, Y, G), "names sample 59, but there are 48 samples"),
        ({"param_grid": {"c": [1]}}, (X, Y, G), r"no parameter 'c'. Did you mean"),
        ({"param_grid": {"C": [-1]}}, (X, Y, G), "C"),
        ({"memory_budget": "lots"}, (X, Y, G), "memory_budget='lots' is not a size"),
        ({"scoring": "neg_log_loss"}, (X, Y, G), "refuses the estimator or the scorer .* predict_proba"),
        ({"estimator_args": {"class_weight": {"c1": 2}}}, (X, Y, G), "refuses the estimator or the scorer"),
        ({"estimator_args": {"penalty": "l1"}}, (X, Y, G), "penalty cannot be changed"),
        ({"screening_percentile": "20"}, (X, Y, G), "must be a number"),
        ({"param_grid": {"C": []}}, (X, Y, G), "param_grid="),
        ({"cv": [([0.5, 1.5], [3])]}, (X, Y, G), "list of sample numbers"),
        ({"cv": [([1, 1, 2], [3])]}, (X, Y, G), "names sample 1 more than once"),
        ({"cv": [(np.ones(30, bool), [3])]}, (X, Y, G), "given as 30 booleans, but there are 48"),
        ({}, ([[1, 2], [3]], Y, G), "matrix of numbers"),
        ({}, (X, [None, *Y[1:]], G), "y is missing for 1 samples"),
        ({}, (X, Y, [np.nan, *range(47)]), "groups is missing for 1 samples"),
        ({}, (X, np.linspace(0, 1, 48), G), "needs classes"),
        ({"param_grid": 3}, (X, Y, G), "param_grid must be a dict"),
        ({"screening_percentile": 0}, (X, Y, G), "must be a number above 0"),
        ({"screening_n_features": 5}, (X, Y, G), "exclude each other"),
        ({}, (X, Y), "needs the run of each sample: pass groups="),
        ({"cv": GroupKFold(4)}, (X, Y, G), "splits each training set again .* number of groups: 3. Give a single setting"),
        ({"cv": 3}, (X, Y), "needs the run of each sample: pass groups="),
        ({}, (X, None, G), "no labels"),
        ({}, (X, Y[:-1], G), r"y has shape \(47,\) but X has 48 samples"),
        ({}, (X, Y, G[:-1]), r"groups has shape \(47,\)"),
        ({}, (X, np.repeat("a", 48), G), "All 48 samples have the label a"),
        ({}, (X, Y, np.repeat("1", 48)), "at least 2 runs, but all samples are of run 1"),
        ({}, (X, Y, np.repeat(["1", "2"], 24)), r"takes at least 2 of them, and a fold has only one \(in all there are 2 runs\)"),
        ({}, (X, np.repeat(["a", "b", "a", "a"], 12), G), r"Fold 1 \(test run 2\): class 'b' has no training samples"),
        ({"mask": "roi"}, (X, Y, G), "mask= needs a grid"),
        ({}, (X[0], Y, G), "matrix of numbers"),
        ({}, ("bold.nii.gz", Y, G), "pass mask="),
    ],
)
def test_bad_input_is_named_before_anything_runs(options, arguments, message):
    with pytest.raises(DecodingError, match=message):
        Decoder(**options).fit(*arguments)


def test_a_missing_class_inside_the_training_runs_is_named():
    y = np.repeat(["a", "b", "b", "a"], 12)
    with pytest.raises(DecodingError, match="missing from a training set inside"):
        Decoder().fit(X, y, G)


def test_a_budget_that_is_too_small_is_refused():
    with pytest.raises(MemoryBudgetError, match="Decoding 48 samples x 150 voxels needs at least"):
        Decoder(memory_budget="1kB").fit(X, Y, G)


def test_masks_on_another_grid_and_empty_masks_are_refused():
    img, mask = images(X, Y)
    shifted = nib.Nifti1Image(np.asarray(mask.dataobj), np.diag([3.0, 3, 5, 1]))
    with pytest.raises(GridMismatchError, match="resample_to_img"):
        Decoder(mask=shifted).fit(img, Y, G)
    with pytest.raises(SelectionError, match="is empty: every voxel is zero"):
        Decoder(mask=nib.Nifti1Image(np.zeros(SHAPE, np.uint8), mask.affine)).fit(img, Y, G)


def test_new_samples_must_have_the_same_voxels():
    decoder = Decoder().fit(X, Y, G)
    with pytest.raises(DecodingError, match="X has 149 voxels but the decoder was fitted on 150"):
        decoder.predict(X[:, 1:], G)


def test_unequal_runs_and_unbalanced_classes_decode():
    keep = np.r_[0:17, 20:48]
    decoder = Decoder(cv=KFold(3, shuffle=True, random_state=0), tune="held_out")
    with pytest.warns(UserWarning, match="same run"):
        decoder.fit(X[keep], Y[keep], G[keep])
    assert len(decoder.cv_predictions_) == keep.size


def test_a_list_of_paths_of_single_volumes(tmp_path):
    img, mask = images(X, Y)
    paths = []
    for n in range(48):
        paths.append(tmp_path / f"volume{n:02d}.nii.gz")
        nib.save(img.slicer[..., n], paths[-1])
    assert_same(Decoder(mask=mask).fit(paths, Y, G), Decoder(mask=mask).fit(img, Y, G))


def test_images_are_not_read_before_everything_is_checked(tmp_path, monkeypatch):
    img, mask = images(X, Y)
    nib.save(img, tmp_path / "bold.nii.gz")

    def never(*_args, **_options):
        raise AssertionError("read too early")

    monkeypatch.setattr("daskdecode.models.samples.stream_volumes", never)
    path = str(tmp_path / "bold.nii.gz")
    assert Decoder(mask=mask).explain(path, Y, G).workload.n_voxels == 150
    with pytest.raises(DecodingError, match="47"):
        Decoder(mask=mask).fit(path, Y[:-1], G)


def test_scores_of_labels_that_the_decoder_does_not_know_are_refused():
    decoder = Decoder().fit(X, Y, G)
    with pytest.raises(DecodingError, match=r"\['rest'\] too: leave those samples out"):
        decoder.score(X, np.where(np.arange(48) == 3, "rest", Y), G)


def test_maps_of_an_earlier_fit_do_not_stay():
    decoder = Decoder().fit(dataset(X, Y, G))
    assert decoder.coef_img_
    assert not hasattr(decoder.fit(X, Y, G), "coef_img_")


def test_voxels_of_a_data_array_are_followed():
    ds = dataset(X, Y, G, np.random.default_rng(0).permutation(150))
    for fitted in (ds, ds["bold"]):
        decoder = Decoder(screening_percentile=None).fit(fitted)
        expected = decoder.decision_function(ds)
        np.testing.assert_allclose(decoder.decision_function(ds["bold"].sortby("voxel")), expected, atol=1e-9)
        np.testing.assert_allclose(decoder.decision_function(ds.sortby("voxel")), expected, atol=1e-9)


def test_another_grid_with_the_same_voxels_is_refused():
    ds = dataset(X, Y, G)
    decoder = Decoder().fit(ds)
    with pytest.raises(DecodingError, match="another voxel grid"):
        decoder.predict(ds.assign_attrs(shape=[9, 8, 7]))


@pytest.mark.parametrize("make_groups", [lambda g: g, lambda g: g.astype(int)])
def test_splitters_see_the_runs_as_they_were_given(make_groups):
    from sklearn.model_selection import GroupShuffleSplit

    x, y, groups = make(n_runs=11, repeats=2)
    groups = make_groups(groups)
    cv = GroupShuffleSplit(3, random_state=0)
    decoder = Decoder(cv=cv, tune="held_out").fit(x, y, groups)
    for (train, test), (a, b) in zip(decoder.cv_, cv.split(x, y, groups), strict=True):
        np.testing.assert_array_equal(train, a)
        np.testing.assert_array_equal(test, b)


def test_predefined_folds_can_nest():
    from sklearn.model_selection import PredefinedSplit

    assert len(Decoder(cv=PredefinedSplit(np.repeat([0, 1, 2, 3], 12))).fit(X, Y, G).cv_) == 4


def test_scaling_of_all_samples_together_is_said():
    decoder = Decoder(standardize="zscore_sample").fit(X, Y, G)
    assert any("had a part in the scaling" in note for note in decoder.provenance_["warnings"])


def test_dual_auto_is_resolved_on_the_voxels():
    from sklearn.svm import LinearSVC

    decoder = Decoder(param_grid={"C": 100.0}, estimator_args={"dual": "auto"}, standardize=None, screening_percentile=None)
    decoder.fit(X - 100, Y, G)
    folds = [LinearSVC(C=100.0, dual="auto", max_iter=10_000, random_state=0).fit(X[a] - 100, Y[a]).coef_ for a, _ in decoder.cv_]
    np.testing.assert_allclose(decoder.coef_, np.mean(folds, axis=0), rtol=1e-8, atol=1e-12)


def test_a_scorer_that_is_not_defined_for_a_candidate_does_not_choose_it():
    def undefined_for_large_c(estimator, X, y):
        return np.nan if getattr(estimator, "C", 1) == 100 else -0.5

    decoder = Decoder(scoring=undefined_for_large_c, estimator_args={"fit_intercept": False})
    decoder.fit(X, Y, G)
    assert 100 not in decoder.cv_params_["c1"]["C"]


def test_provenance_is_json_with_numpy_settings():
    decoder = Decoder(cv=np.int64(4), screening_percentile=None, screening_n_features=np.int64(120), memory_budget=np.int64(10**9))
    decoder.fit(X, Y, G)
    assert json.loads(json.dumps(decoder.provenance_))["cv"] == "4"
    json.dumps(decoder.plan_.to_dict())
