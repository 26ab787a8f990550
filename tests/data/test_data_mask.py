from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nilearn.image import resample_to_img
from nilearn.masking import apply_mask as nilearn_apply_mask

import daskdecode as dd
from daskdecode.data.mask import voxel_volume_mm3
from daskdecode.errors import CorruptFileError, GridMismatchError, SelectionError

fixtures_are_pure = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)


def whole_mask(ds) -> nib.Nifti1Image:
    """The image of the dataset's own ``mask_vt``."""
    return dd.to_nifti(ds.mask_vt.values, ds)


def test_a_named_mask_an_image_a_path_and_booleans_agree(subject, tmp_path):
    ds = subject()
    image = whole_mask(ds)
    nib.save(image, tmp_path / "vt.nii.gz")
    expected = ds.bold.values[:, ds.mask_vt.values]
    assert 0 < expected.shape[1] < ds.sizes["voxel"]
    for mask in ("vt", image, tmp_path / "vt.nii.gz", str(tmp_path / "vt.nii.gz"), ds.mask_vt, ds.mask_vt.values):
        got = dd.apply_mask(ds, mask)
        np.testing.assert_array_equal(got.bold.values, expected)
        np.testing.assert_array_equal(got.voxel.values, ds.voxel.values[ds.mask_vt.values])
        np.testing.assert_array_equal(got.k.values, ds.k.values[ds.mask_vt.values])


@given(seed=st.integers(0, 10**6), n_voxels=st.integers(1, 40), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3))
@fixtures_are_pure
def test_mask_then_unmask_is_the_identity(subject, seed, n_voxels, lengths):
    ds = subject(lengths, shape=(3, 5, 4), n_voxels=n_voxels, seed=seed)
    volumes = dd.to_nifti(ds.bold, ds)
    data = np.asarray(volumes.dataobj)
    np.testing.assert_array_equal(data[ds.i.values, ds.j.values, ds.k.values].T, ds.bold.values)
    outside = np.ones((3, 5, 4), bool)
    outside[ds.i.values, ds.j.values, ds.k.values] = False
    assert not data[outside].any()


@given(seed=st.integers(0, 10**6))
@fixtures_are_pure
def test_the_same_voxels_whatever_their_order(subject, seed):
    ds = subject()
    shuffled = ds.isel(voxel=np.random.default_rng(seed).permutation(ds.sizes["voxel"]))
    image = whole_mask(ds)
    got, expected = dd.apply_mask(shuffled, image), dd.apply_mask(ds, image)
    np.testing.assert_array_equal(
        np.asarray(dd.to_nifti(got.bold.isel(time=3), got).dataobj), np.asarray(dd.to_nifti(expected.bold.isel(time=3), expected).dataobj)
    )


@given(seed=st.integers(0, 10**6), n_voxels=st.integers(1, 40), lazy=st.booleans())
@fixtures_are_pure
def test_voxel_coordinates_count_not_positions(subject, seed, n_voxels, lazy):
    ds = subject((4, 5), shape=(3, 5, 4), n_voxels=n_voxels, seed=seed)
    order = np.random.default_rng(seed).permutation(n_voxels)
    for values in (ds.bold, ds.bold.isel(time=2), ds.bold.T):
        moved = values.isel(voxel=order) if lazy else values.compute().isel(voxel=order)
        for other in (moved, moved.sortby("voxel")):
            np.testing.assert_array_equal(dd.to_nifti(other, ds).dataobj, dd.to_nifti(values, ds).dataobj)
    keep = ds.mask_vt.copy(data=np.arange(n_voxels) % 2 == 0)
    expected = ds.voxel.values[keep.values]
    for other in (keep, keep.isel(voxel=order), keep.sortby("voxel")):
        np.testing.assert_array_equal(dd.apply_mask(ds, other).voxel.values, expected)
        moved = ds.isel(voxel=order)
        assert set(dd.apply_mask(moved, other).voxel.values) == set(expected)


def test_other_voxels_are_refused_even_if_as_many(subject):
    ds = subject()
    first, last = ds.isel(voxel=slice(0, 30)), ds.isel(voxel=slice(1, 31))
    with pytest.raises(SelectionError, match=r"The values and the data are not of the same voxels: 1 of 30"):
        dd.to_nifti(first.bold[0], last)
    with pytest.raises(SelectionError, match=r"The mask and the data are not of the same voxels: 1 of 30"):
        dd.apply_mask(last, first.mask_vt)
    for positional in (first.bold[0].values, first.bold[0].drop_vars("voxel")):
        np.testing.assert_array_equal(dd.to_nifti(positional, last).dataobj, dd.to_nifti(first.bold[0].values, last).dataobj)


def test_nilearn_reads_back_what_to_nifti_writes(subject):
    ds = subject().sortby("voxel")
    everything = dd.to_nifti(np.ones(ds.sizes["voxel"], bool), ds)
    np.testing.assert_array_equal(nilearn_apply_mask(dd.to_nifti(ds.bold, ds), everything), ds.bold.values)


def test_building_computes_nothing(subject, nothing_computes):
    ds = subject()
    image = whole_mask(ds)
    with nothing_computes:
        dd.apply_mask(ds, "vt")
        dd.apply_mask(ds, image)
        dd.apply_mask(ds, ds.mask_vt.values)


@pytest.mark.parametrize(
    ("given_dtype", "stored"),
    [("bool", "uint8"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int64", "int64")],
)
def test_dtypes_of_images(subject, given_dtype, stored):
    ds = subject()
    image = dd.to_nifti(np.ones(ds.sizes["voxel"], given_dtype), ds)
    assert image.get_data_dtype() == stored
    assert np.asarray(image.dataobj).dtype == stored


def test_images_keep_grid_space_and_units(subject):
    ds = subject()
    image = dd.to_nifti(ds.bold, ds)
    assert image.shape == (7, 8, 9, ds.sizes["time"])
    np.testing.assert_allclose(image.affine, ds.attrs["affine"], atol=1e-6)
    assert int(image.header["sform_code"]) == 4
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert image.header.get_zooms()[3] == 2.5
    assert int(dd.to_nifti(ds.bold[0], ds.assign_attrs(sform_code=0, qform_code=1)).header["sform_code"]) == 1


@pytest.mark.parametrize("shape", [(60,), (34, 60), (1, 34, 61), ()])
def test_values_that_do_not_fit_are_refused(subject, shape):
    with pytest.raises(SelectionError, match=r"expected \(61,\) or \(n_volumes, 61\)"):
        dd.to_nifti(np.zeros(shape), subject())


def test_a_transposed_array_is_understood_by_its_names(subject):
    ds = subject()
    np.testing.assert_array_equal(dd.to_nifti(ds.bold.T, ds).dataobj, dd.to_nifti(ds.bold, ds).dataobj)


def test_mean_image(subject):
    ds = subject()
    image = dd.mean_image(ds)
    assert image.get_data_dtype() == np.float32
    got = np.asarray(image.dataobj)[ds.i.values, ds.j.values, ds.k.values]
    np.testing.assert_allclose(got, ds.bold.values.astype(float).mean(0), rtol=1e-7)


def test_voxel_volume(subject):
    # |det| of the synthetic affine: 3.5 * (3.75 * 4 + 0.2 * 0.2)
    assert voxel_volume_mm3(subject()) == pytest.approx(3.5 * (15 + 0.04))


def test_unknown_mask_names_the_nearest(subject):
    with pytest.raises(SelectionError, match=r"no mask named 'vtt'\. Did you mean 'vt'\?"):
        dd.apply_mask(subject(), "vtt")


def test_empty_masks_are_refused(subject):
    ds = subject()
    with pytest.raises(SelectionError, match="Mask 'empty' keeps none of the 61 voxels"):
        dd.apply_mask(ds, "empty")
    with pytest.raises(SelectionError, match="is empty: every voxel is zero"):
        dd.apply_mask(ds, dd.to_nifti(ds.mask_empty, ds))
    elsewhere = np.ones((7, 8, 9), np.uint8)
    elsewhere[ds.i.values, ds.j.values, ds.k.values] = 0
    with pytest.raises(SelectionError, match="keeps none of the 61 voxels"):
        dd.apply_mask(ds, nib.Nifti1Image(elsewhere, np.asarray(ds.attrs["affine"])))


def test_arrays_that_are_no_masks_are_refused(subject):
    with pytest.raises(SelectionError, match="holds booleans, but this one is float64"):
        dd.apply_mask(subject(), np.ones(61))
    with pytest.raises(SelectionError, match=r"expected shape \(61,\), found \(60,\)"):
        dd.apply_mask(subject(), np.ones(60, bool))


def test_an_image_on_another_grid_is_refused_and_its_remedy_works(subject):
    ds = subject()
    elsewhere = nib.Nifti1Image(np.ones((11, 12, 13), np.uint8), np.diag([3, 3, 3, 1.0]) @ np.eye(4))
    elsewhere.affine[:3, 3] = (-12, -45, -15)
    with pytest.raises(GridMismatchError, match=r"another voxel grid.*resample_to_img.*daskdecode\.mean_image\(ds\)"):
        dd.apply_mask(ds, elsewhere)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not every voxel of the box is in the data
        remedy = resample_to_img(elsewhere, dd.mean_image(ds), interpolation="nearest")
        assert 0 < dd.apply_mask(ds, remedy).sizes["voxel"] < 61


def test_a_shifted_affine_is_another_grid(subject):
    ds = subject()
    image = whole_mask(ds)
    moved = image.affine.copy()
    moved[1, 3] += 2.0
    with pytest.raises(GridMismatchError, match=r"another affine than the runs \(up to 2 apart\)"):
        dd.apply_mask(ds, nib.Nifti1Image(np.asarray(image.dataobj), moved))


def test_an_atlas_is_no_mask(subject):
    ds = subject()
    with pytest.raises(SelectionError, match="61 different values"):
        dd.apply_mask(ds, dd.to_nifti(np.arange(61), ds))


def test_mask_voxels_that_the_data_lack_are_reported(subject):
    ds = subject()
    with pytest.warns(UserWarning, match=r"504 voxels, of which 443 are not in these data"):
        got = dd.apply_mask(ds, nib.Nifti1Image(np.ones((7, 8, 9), np.uint8), np.asarray(ds.attrs["affine"])))
    assert got.sizes["voxel"] == 61


def test_files_that_cannot_be_read(subject, tmp_path):
    ds = subject()
    with pytest.raises(SelectionError, match="cannot be read: No such file"):
        dd.apply_mask(ds, tmp_path / "none.nii.gz")
    (tmp_path / "text.nii").write_text("not an image")
    with pytest.raises(SelectionError, match="cannot be read"):
        dd.apply_mask(ds, tmp_path / "text.nii")
    noise = np.random.default_rng(0).random((7, 8, 9))
    nib.save(nib.Nifti1Image(noise, np.asarray(ds.attrs["affine"])), tmp_path / "whole.nii.gz")
    (tmp_path / "short.nii.gz").write_bytes((tmp_path / "whole.nii.gz").read_bytes()[:-400])
    with pytest.raises(CorruptFileError, match=r"short\.nii\.gz.* ends early or is damaged"):
        dd.apply_mask(ds, tmp_path / "short.nii.gz")
