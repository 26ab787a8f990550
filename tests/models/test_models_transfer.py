from __future__ import annotations

import dask.array as da
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC

from daskdecode import Decoder, cross_decode, temporal_generalization
from daskdecode.errors import DecodingError

LABELS = ["face", "cat", "house", "shoe"]
SETTINGS = {"param_grid": {"C": 1e-3}, "screening_percentile": None}


def make(n_runs=4, length=3, p=150, seed=0):
    """Animate things share a pattern; so do faces alone."""
    rng = np.random.default_rng(seed)
    y = np.tile(np.repeat(LABELS, length), n_runs)
    groups = np.repeat([f"{r + 1}" for r in range(n_runs)], 4 * length)
    x = rng.standard_normal((y.size, p))
    x[:, :20] += np.isin(y, ["face", "cat"])[:, None]
    x[:, 20:30] += (y == "face")[:, None]
    return x, y, groups


def zscored(x, groups):
    out = np.array(x, dtype=float)
    for run in np.unique(groups):
        rows = groups == run
        out[rows] = (out[rows] - out[rows].mean(0)) / out[rows].std(0, ddof=1)
    return out


def auc(z, target, train, test):
    svc = LinearSVC(C=1e-3, dual=True, max_iter=10_000, random_state=0).fit(z[train], target[train])
    return roc_auc_score(target[test], svc.decision_function(z[test])), svc


# --------------------------------------------------------------------------------------------------------- cross-decoding


def test_other_labels_written_out():
    x, y, groups = make()
    train, test = {"face": "alive", "house": "thing"}, {"cat": "alive", "shoe": "thing"}
    decoder = cross_decode(Decoder(**SETTINGS), x, y, groups, train=train, test=test)
    z, target = zscored(x, groups), np.where(np.isin(y, ["house", "shoe"]), 1, -1)
    scores, coefs = [], []
    for run in "1234":
        score, svc = auc(
            z, target, (groups != run) & np.isin(y, ["face", "house"]), np.flatnonzero((groups == run) & np.isin(y, ["cat", "shoe"]))
        )
        scores.append(score)
        coefs.append(svc.coef_[0])
    np.testing.assert_allclose(decoder.cv_scores_["thing"], scores)
    np.testing.assert_allclose(decoder.coef_[0], np.mean(coefs, axis=0), atol=1e-8)
    assert list(decoder.classes_) == ["alive", "thing"]
    assert np.mean(scores) > 0.8


def test_sample_numbers_count_in_what_was_given():
    x, y, groups = make()
    decoder = cross_decode(Decoder(**SETTINGS), x, y, groups, train={"face": "a", "house": "b"}, test={"cat": "a", "shoe": "b"})
    table = decoder.cv_predictions_
    np.testing.assert_array_equal(groups[table["sample"]], table["run"])
    assert set(y[table["sample"]]) == {"cat", "shoe"}
    for train, test in decoder.cv_:
        assert set(y[train]) == {"face", "house"}
        assert not set(groups[train]) & set(groups[test])


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (["1", "2"], ["3", "4"], [("12", "3"), ("12", "4")]),
        (["1", "2", "3"], ["3", "4"], [("12", "3"), ("123", "4")]),
        (["1", "2", "3"], ["1", "2", "3"], [("23", "1"), ("13", "2"), ("12", "3")]),
    ],
)
def test_no_run_is_on_both_sides(train, test, expected):
    x, y, groups = make()
    decoder = cross_decode(Decoder(**SETTINGS), x, y, groups, train=train, test=test)
    found = [("".join(np.unique(groups[a])), "".join(np.unique(groups[b]))) for a, b in decoder.cv_]
    assert found == expected


def test_masks_labels_and_runs_can_be_mixed_and_tuning_stays_inside():
    x, y, groups = make()
    decoder = Decoder(param_grid={"C": [1e-4, 1e-2]}, screening_percentile=None)
    kept = np.isin(y, ["face", "house"])
    by_mask = cross_decode(decoder, x, y, groups, train=kept & (groups != "4"), test=kept & (groups == "4"))
    by_hand = Decoder(
        param_grid={"C": [1e-4, 1e-2]},
        screening_percentile=None,
        cv=[(np.flatnonzero(groups[kept] != "4"), np.flatnonzero(groups[kept] == "4"))],
    )
    by_hand.fit(x[kept], y[kept], groups[kept])
    assert by_mask.cv_scores_ == by_hand.cv_scores_
    assert by_mask.cv_params_ == by_hand.cv_params_
    assert decoder.cv == "run"


def test_every_kind_of_input_crosses():
    x, y, groups = make(p=24)
    reference = cross_decode(Decoder(**SETTINGS), x.astype(np.float32), y, groups, train=["1", "2"], test=["3"])
    volume = x.T.reshape(2, 3, 4, -1).astype(np.float32)
    img, mask = nib.Nifti1Image(volume, np.eye(4)), nib.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4))
    i, j, k = np.unravel_index(np.arange(24), (2, 3, 4))
    ds = xr.Dataset(
        {"bold": (("time", "voxel"), da.from_array(x.astype(np.float32), chunks=(5, 7)))},
        {"label": ("time", y), "run": ("time", groups), "voxel": np.arange(24), "i": ("voxel", i), "j": ("voxel", j), "k": ("voxel", k)},
        {"affine": np.eye(4).tolist(), "shape": [2, 3, 4]},
    )
    for got in (
        cross_decode(Decoder(mask=mask, **SETTINGS), img, y, groups, train=["1", "2"], test=["3"]),
        cross_decode(Decoder(**SETTINGS), ds, train=["1", "2"], test=["3"]),
        cross_decode(Decoder(**SETTINGS), ds["bold"], train=["1", "2"], test=["3"]),
    ):
        np.testing.assert_allclose(got.coef_, reference.coef_, atol=1e-12)
        np.testing.assert_allclose(got.cv_scores_["cat"], reference.cv_scores_["cat"])
    assert set(cross_decode(Decoder(**SETTINGS), ds, train=["1", "2"], test=["3"]).coef_img_) == set(LABELS)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"face": "a", "hous": "b"}, {"cat": "a"}, "train names the label 'hous', which no sample has. Did you mean 'house'"),
        (["1"], ["5"], "test names the run '5', which no sample has"),
        ({"face": "a", "house": "b"}, {"face": "b"}, "face stands for a in train and for b in test"),
        ({"face": "a", "house": "b"}, {"cat": "c"}, "test has class 'c', which train has not"),
        (np.ones(3, bool), ["1"], r"train is a mask of shape \(3,\)"),
        (np.zeros(48, bool), ["1"], "train selects no samples"),
        ("1", ["2"], "found str"),
    ],
)
def test_what_cannot_be_crossed_is_named(train, test, message):
    x, y, groups = make()
    with pytest.raises(DecodingError, match=message):
        cross_decode(Decoder(**SETTINGS), x, y, groups, train=train, test=test)


@pytest.mark.parametrize(
    ("train", "test", "classes"),
    [
        ({0: 0, 2: 1}, {1: 0, 3: 1}, [0, 1]),
        ({0: "a", 2: "b"}, {1: "a", 3: "b"}, ["a", "b"]),
        ({0: True, 2: False}, {1: True, 3: False}, [False, True]),
        ({np.int64(0): 5, 2.0: 7}, {"1": 5.0, "3": np.float64(7)}, [5, 7]),
        ({0: 1, 2: 3}, {1: "1", 3: "3"}, ["1", "3"]),
    ],
)
@pytest.mark.parametrize("dtype", [int, float, str])
def test_classes_stay_what_they_were_given_as(dtype, train, test, classes):
    """Labels may be numbers, on either side of a mapping; what is told of a class goes by its own name."""
    x, y, groups = make()
    codes = np.array([LABELS.index(label) for label in y]).astype(dtype)
    got = cross_decode(Decoder(**SETTINGS), x, codes, groups, train=train, test=test)
    assert got.classes_.tolist() == classes
    assert [type(c) for c in got.cv_scores_] == [type(c) for c in got.classes_.tolist()]
    by_text = ({"face": "2", "house": "3"}, {"cat": "2", "shoe": "3"})
    expected = list(cross_decode(Decoder(**SETTINGS), x, y, groups, train=by_text[0], test=by_text[1]).cv_scores_.values())
    np.testing.assert_allclose(list(got.cv_scores_.values()), expected)


def test_numbers_are_classes_without_a_mapping_too_and_a_list_may_be_a_mask():
    x, y, groups = make()
    codes = np.array([LABELS.index(label) for label in y])
    kept = np.isin(codes, [0, 2])
    first, last = kept & (groups != "4"), kept & (groups == "4")
    got = cross_decode(Decoder(**SETTINGS), x, codes, groups, train=first.tolist(), test=last.tolist())
    assert got.classes_.tolist() == [0, 2]
    assert got.cv_scores_ == cross_decode(Decoder(**SETTINGS), x, codes, groups, train=first, test=last).cv_scores_
    mixed = cross_decode(Decoder(**SETTINGS), x, codes, groups, train=first, test={0.0: 0, 2.0: 2})
    assert mixed.classes_.tolist() == [0, 2]
    with pytest.raises(DecodingError, match=r"train is a mask of shape \(3,\)"):
        cross_decode(Decoder(**SETTINGS), x, codes, groups, train=[True, False, True], test=last)
    with pytest.raises(DecodingError, match="not whole"):
        cross_decode(Decoder(**SETTINGS), x, codes, groups, train={0: 0.5, 2: 1}, test={1: 0.5, 3: 1})


def test_tuning_counts_the_training_runs():
    x, y, groups = make()
    with pytest.raises(DecodingError, match=r"and a fold has only one \(in all there are 3 runs\)"):
        cross_decode(Decoder(screening_percentile=None), x, y, groups, train=["1"], test=["3", "4"])


def test_without_runs_the_sets_must_be_apart():
    x, y, _ = make()
    decoder = Decoder(standardize=None, **SETTINGS)
    first = np.arange(48) < 24
    assert len(cross_decode(decoder, x, y, train=first, test=~first).cv_) == 1
    with pytest.raises(DecodingError, match="may share no samples"):
        cross_decode(decoder, x, y, train=first, test=first)
    with pytest.raises(DecodingError, match="pass groups="):
        cross_decode(decoder, x, y, train=["1"], test=["2"])


# ------------------------------------------------------------------------------------------------------------------ times


def timed(n_runs=4, repeats=2, length=3, p=120, seed=0):
    """Runs of rest, cat, rest, face, rest; faces are seen at lag 1 and, in other voxels, at lag 2."""
    rng = np.random.default_rng(seed)
    y = np.tile(np.concatenate([np.repeat(name, length) for name in ["rest", "cat", "rest", "face"] * repeats + ["rest"]]), n_runs)
    groups = np.repeat([f"{r + 1}" for r in range(n_runs)], y.size // n_runs)
    x = rng.standard_normal((y.size, p))
    lag = np.arange(y.size) % (y.size // n_runs) % length
    x[:, :30] += ((y == "face") & (lag == 1))[:, None] * 1.5
    x[:, 30:60] += ((y == "face") & (lag == 2))[:, None] * 1.5
    return x, y, groups, lag


@pytest.mark.parametrize("screening", [None, 50])
def test_times_written_out(screening):
    x, y, groups, lag = timed()
    decoder = Decoder(param_grid={"C": 1e-3}, screening_percentile=screening)
    found = temporal_generalization(decoder, x, y, groups)
    assert found["score"].dims == ("train_time", "test_time")
    assert found["train_time"].values.tolist() == [0, 1, 2]
    used = y != "rest"
    z, target = np.zeros_like(x), np.where(y == "face", 1, -1)
    z[used] = zscored(x[used], groups[used])
    expected = np.zeros((4, 3, 3))
    for f, run in enumerate("1234"):
        for t in range(3):
            train = used & (groups != run) & (lag == t)
            pairs = [(np.flatnonzero(train[used]), np.flatnonzero((groups[used] == run) & (lag[used] == u))) for u in range(3)]
            if screening is None:
                tests = [np.flatnonzero(used & (groups == run) & (lag == u)) for u in range(3)]
                expected[f, t] = [auc(z, target, train, test)[0] for test in tests]
            else:
                whole = Decoder(param_grid={"C": 1e-3}, screening_percentile=screening, cv=pairs)
                expected[f, t] = whole.fit(x[used], y[used], groups[used]).cv_scores_["face"]
    np.testing.assert_allclose(found["fold_score"].sel({"class": "face"}).values, expected, atol=1e-12)
    np.testing.assert_allclose(found["score"].values, expected.mean(axis=0), atol=1e-12)
    if screening is None:
        score = found["score"].values
        assert score[1, 1] > 0.85
        assert score[2, 2] > 0.85
        assert score[1, 2] < score[1, 1]
        assert score[2, 1] < score[2, 2]


def test_lags_reach_into_rest_but_never_into_another_event():
    x, y, groups, _ = timed()
    x[np.flatnonzero(y == "face").reshape(-1, 3)[:, 0] + 4, 60:90] += 2.0  # one volume into the rest after a face
    found = temporal_generalization(Decoder(**SETTINGS), x, y, groups, lags=[-1, 4])
    assert found["score"].sel(train_time=4, test_time=4) > 0.85
    assert found["score"].sel(train_time=-1, test_time=-1) < 0.85
    with pytest.raises(DecodingError, match="No event has a volume at lag 6"):
        temporal_generalization(Decoder(**SETTINGS), x, y, groups, lags=[6])


def test_one_gram_matrix_serves_all_times(monkeypatch):
    from daskdecode.engine.sweep import VoxelBlocks

    x, y, groups, _ = timed()
    calls = []
    grams = VoxelBlocks.grams
    monkeypatch.setattr(VoxelBlocks, "grams", lambda self, *args: calls.append(args[0]) or grams(self, *args))
    temporal_generalization(Decoder(**SETTINGS), x, y, groups)
    assert calls == [None]


def test_seconds_and_gaps_come_from_the_dataset():
    x, y, groups, _ = timed()
    time = np.tile(np.arange(y.size // 4) * 2.5, 4)
    ds = xr.Dataset(
        {"bold": (("time", "voxel"), da.from_array(x))},
        {"label": ("time", y), "run": ("time", groups), "time": ("time", time), "voxel": np.arange(120)},
    )
    whole = temporal_generalization(Decoder(**SETTINGS), ds)
    np.testing.assert_array_equal(whole["test_time_s"], [0, 2.5, 5])
    without_rest = temporal_generalization(Decoder(**SETTINGS), ds.isel(time=y != "rest"))
    np.testing.assert_allclose(without_rest["score"], whole["score"])


def test_several_classes_and_nested_tuning():
    x, y, groups, _ = timed(repeats=2)
    y = y.astype("<U8")
    blocks = np.flatnonzero(y == "face").reshape(-1, 3)[1::2]
    y[blocks.ravel()] = "house"
    found = temporal_generalization(Decoder(param_grid={"C": [1e-4, 1e-2]}, screening_percentile=None), x, y, groups, lags=[1, 2])
    assert found["fold_score"].shape == (3, 4, 2, 2)
    assert list(found["class"].values) == ["cat", "face", "house"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["fac", "cat"]}, "labels names the label 'fac'.* Did you mean 'face'"),
        ({"labels": ["face"]}, "at least two classes|only one|same label|needs at least"),
        ({"lags": []}, "must name some volumes"),
        ({"lags": [1, 1]}, "each once"),
    ],
)
def test_times_that_cannot_be_are_named(options, message):
    x, y, groups, _ = timed()
    with pytest.raises(DecodingError, match=message):
        temporal_generalization(Decoder(**SETTINGS), x, y, groups, **options)
