"""Several subjects as one dataset."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import daskdecode as dd
from daskdecode.errors import GridMismatchError, SelectionError
from daskdecode.testing import NoCompute

SHAPE = (7, 8, 9)


def subject(name, voxels, lengths=(5, 6), session=False, seed=0, shape=SHAPE):
    rng = np.random.default_rng([seed, int(name)])
    n = sum(lengths)
    runs = np.repeat([f"{r + 1:02d}" for r in range(len(lengths))], lengths)
    i, j, k = np.unravel_index(voxels, shape)
    coords = {
        "time": ("time", np.arange(n, dtype=float)),
        "run": ("time", runs),
        "label": ("time", np.where(np.arange(n) % 2, "face", "cat")),
        "subject": ("time", np.full(n, name)),
        "voxel": ("voxel", voxels),
        "i": ("voxel", i),
        "j": ("voxel", j),
        "k": ("voxel", k),
        "mask_vt": ("voxel", voxels % 2 == 0),
    }
    if session:
        coords["session"] = ("time", np.full(n, "a"))
    bold = da.from_array(rng.standard_normal((n, voxels.size)).astype(np.float32), chunks=(4, 3))
    attrs = {"affine": np.eye(4).tolist(), "shape": list(shape), "subject": name, "repetition_time": 2.0}
    return xr.Dataset({"bold": (("time", "voxel"), bold)}, coords=coords, attrs=attrs)


def test_runs_are_told_apart_and_signals_follow_their_voxels():
    a, b = subject("01", np.array([9, 3, 5, 7]), session=True), subject("02", np.array([3, 5, 7, 9]), lengths=(4, 3, 2))
    pooled = dd.pool_subjects([a, b])
    assert pooled.sizes == {"time": 20, "voxel": 4}
    assert list(dict.fromkeys(pooled["run"].values.tolist())) == [
        "sub-01/ses-a/01",
        "sub-01/ses-a/02",
        "sub-02/01",
        "sub-02/02",
        "sub-02/03",
    ]
    np.testing.assert_array_equal(pooled["subject"].values, ["01"] * 11 + ["02"] * 9)
    np.testing.assert_array_equal(pooled["voxel"].values, [9, 3, 5, 7])
    np.testing.assert_array_equal(pooled["bold"].values[:11], a["bold"].values)
    np.testing.assert_array_equal(pooled["bold"].values[11:], b["bold"].values[:, [3, 0, 1, 2]])
    assert pooled.attrs["subject"] == "01, 02"


def test_voxels_that_some_lack_are_left_out_with_a_word():
    a, b = subject("01", np.array([2, 9, 3, 5])), subject("02", np.array([5, 4, 9]))
    with pytest.warns(UserWarning, match="2 voxels are common to all 2 subjects, of up to 4"):
        pooled = dd.pool_subjects([a, b])
    np.testing.assert_array_equal(pooled["voxel"].values, [9, 5])
    np.testing.assert_array_equal(pooled["bold"].values, np.vstack([a["bold"].values[:, [1, 3]], b["bold"].values[:, [2, 0]]]))


def test_labels_and_masks_are_selected_and_nothing_is_computed():
    a, b = subject("01", np.arange(6)), subject("02", np.arange(6))
    with NoCompute():
        pooled = dd.pool_subjects([a, b], labels="face", mask="vt", subjects=["sub-02"])
    assert set(pooled["label"].values) == {"face"}
    assert set(pooled["subject"].values) == {"02"}
    np.testing.assert_array_equal(pooled["voxel"].values, [0, 2, 4])


def test_what_cannot_be_pooled_is_refused():
    a = subject("01", np.arange(6))
    with pytest.raises(GridMismatchError, match=r"01 and 02 lie on different grids"):
        dd.pool_subjects([a, subject("02", np.arange(6), shape=(9, 8, 7))])
    with pytest.raises(SelectionError, match="no voxel in common"):
        dd.pool_subjects([a, subject("02", np.arange(6, 9))])
    with pytest.raises(SelectionError, match="no subject '07'"):
        dd.pool_subjects([a], subjects=["07"])
    with pytest.raises(SelectionError, match="no subjects"):
        dd.pool_subjects([])


def test_subjects_of_two_studies_that_have_one_name_are_not_taken_for_one():
    """Their runs would be scaled, and held out, together."""
    a, b = subject("01", np.arange(6)), subject("01", np.arange(6), seed=1)
    with pytest.raises(SelectionError, match="have a run sub-01/01"):
        dd.pool_subjects([a, b])
    pooled = dd.pool_subjects([a, b.assign_attrs(subject="b01")])
    assert list(dict.fromkeys(pooled["run"].values.tolist())) == ["sub-01/01", "sub-01/02", "sub-b01/01", "sub-b01/02"]


def test_a_study_on_disk(tmp_path):
    study = dd.simulate_study(tmp_path / "bids", n_subjects=2, n_runs=2, shape=(8, 9, 7), seed=1)
    dd.convert(study, tmp_path / "study.zarr", mask="none", progress=False)
    pooled = dd.pool_subjects(tmp_path / "study.zarr", labels=["face", "cat"])
    each = [dd.select_labels(dd.open_subject(tmp_path / "study.zarr", s), ["face", "cat"]) for s in ("01", "02")]
    assert pooled.sizes["time"] == sum(ds.sizes["time"] for ds in each)
    np.testing.assert_array_equal(pooled["bold"].values, np.concatenate([ds["bold"].values for ds in each]))
