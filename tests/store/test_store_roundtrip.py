"""NIfTI into a store and back: every bit of every value of every type, and what a plain reader sees."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

import daskdecode as dd
from daskdecode.errors import StoreError
from daskdecode.sources.labels import read_label_table
from daskdecode.sources.nifti import voxel_file_order

SHAPE = (7, 8, 9)
DTYPES = ["<i2", ">i2", "u1", "i1", "<u2", "<i4", "<u4", "<i8", "<f4", "<f8", ">f8"]
SCALINGS = [(np.nan, np.nan), (2.5, -3.25), (1.0, 7.0)]


def uncompressed(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("slope", "intercept"), SCALINGS)
def test_store_to_nifti_gives_identical_bytes(
    tmp_path: Path, dtype: str, slope: float, intercept: float, write_image, random_values
) -> None:
    source = write_image(tmp_path / "in.nii.gz", random_values(dtype, 5), slope=slope, intercept=intercept, extension=b"an extension")
    dd.convert(dd.Run(source), tmp_path / "s.zarr", mask="none")
    (written,) = dd.export(tmp_path / "s.zarr", tmp_path / "out.nii.gz")
    assert uncompressed(written) == uncompressed(source)
    assert dd.verify(tmp_path / "s.zarr").ok


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("slope", "intercept"), SCALINGS)
def test_values_are_nibabels(tmp_path: Path, dtype: str, slope: float, intercept: float, write_image, random_values) -> None:
    source = write_image(tmp_path / "in.nii", random_values(dtype, 5), slope=slope, intercept=intercept)
    dd.convert(dd.Run(source), tmp_path / "s.zarr", mask="none")
    ds = dd.open_subject(tmp_path / "s.zarr")
    scaled = not np.isnan(slope)
    kind = np.dtype(dtype)
    expected_dtype = f"f{kind.itemsize}" if kind.kind == "f" and not scaled else "f8" if scaled or kind.itemsize > 2 else "f4"
    assert ds.bold.dtype == expected_dtype
    image = nib.load(source).get_fdata(dtype=np.float64)
    np.testing.assert_array_equal(ds.bold.values, image[ds.i.values, ds.j.values, ds.k.values].T)

    plain = xr.open_datatree(tmp_path / "s.zarr", engine="zarr")["sub-1/run-1"].dataset
    np.testing.assert_array_equal(plain.bold.values.astype(np.float64), ds.bold.values)


@pytest.mark.parametrize("name", ["in.nii", "in.nii.gz"])
def test_nifti_2(tmp_path: Path, name: str, write_image, random_values) -> None:
    source = write_image(tmp_path / name, random_values("<i2", 4), kind=nib.Nifti2Header)
    dd.convert(dd.Run(source), tmp_path / "s.zarr", mask="none")
    (written,) = dd.export(tmp_path / "s.zarr", tmp_path / "out.nii")
    assert written.read_bytes() == uncompressed(source)


def test_pair(tmp_path: Path, random_values) -> None:
    nib.Nifti1Pair(random_values("<i2", 4), np.eye(4)).to_filename(tmp_path / "in.img")
    dd.convert(dd.Run(tmp_path / "in.hdr", repetition_time=2.0), tmp_path / "s.zarr", mask="none")
    dd.export(tmp_path / "s.zarr", tmp_path / "out.hdr")
    for ending in ("hdr", "img"):
        assert (tmp_path / f"out.{ending}").read_bytes() == (tmp_path / f"in.{ending}").read_bytes()


def test_nan_payload_and_negative_zero_survive(tmp_path: Path, write_image, random_values) -> None:
    values = random_values("<f4", 3)
    values.view("<u4")[3, 3, 3, 1] = 0x7FC12345
    source = write_image(tmp_path / "in.nii", values)
    dd.convert(dd.Run(source), tmp_path / "s.zarr", mask="none")
    (written,) = dd.export(tmp_path / "s.zarr", tmp_path / "out.nii")
    assert written.read_bytes() == source.read_bytes()


def test_masked_export_equals_source_inside_and_is_zero_outside(tmp_path: Path, write_image, random_values) -> None:
    values = random_values("<i2", 5)
    source = write_image(tmp_path / "in.nii.gz", values, slope=2.0, intercept=10.0)
    inside = np.zeros(SHAPE, bool)
    inside[1:5, 2:8, 3:] = True
    dd.convert(dd.Run(source), tmp_path / "s.zarr", mask=inside)
    (written,) = dd.export(tmp_path / "s.zarr", tmp_path / "out.nii.gz")
    stored = np.asanyarray(nib.load(written).dataobj.get_unscaled())
    np.testing.assert_array_equal(stored[inside], values[inside])
    assert (nib.load(written).get_fdata()[~inside] == 0).all()
    assert uncompressed(written)[:352] == uncompressed(source)[:352]


def test_several_runs_in_one_file_with_volumes_left_out(tmp_path: Path, write_image, random_values) -> None:
    values = random_values("<i2", 12)
    source = write_image(tmp_path / "in.nii.gz", values)
    labels = [("face", 1)] * 5 + [("cat", 2)] * 7
    run = dd.Run(source, labels=pd.DataFrame(labels, columns=["label", "run"]), drop_volumes=2)
    dd.convert(run, tmp_path / "s.zarr", mask="none")
    ds = dd.open_subject(tmp_path / "s.zarr")
    assert ds.run.values.tolist() == ["1"] * 3 + ["2"] * 5
    np.testing.assert_array_equal(ds.time.values, [5, 7.5, 10, 5, 7.5, 10, 12.5, 15])
    (written,) = dd.export(tmp_path / "s.zarr", tmp_path / "out.nii")
    kept = [2, 3, 4, 7, 8, 9, 10, 11]
    assert nib.load(written).shape == (*SHAPE, 8)
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), values[..., kept])
    assert dd.verify(tmp_path / "s.zarr").ok


def test_dataset_export(tmp_path: Path, write_image, random_values) -> None:
    source = write_image(tmp_path / "in.nii.gz", random_values("<i2", 5))
    inside = np.zeros(SHAPE, bool)
    inside[2:, :, 1:] = True
    dd.convert(dd.Run(source), tmp_path / "s.zarr", mask=inside)
    ds = dd.open_subject(tmp_path / "s.zarr").isel(time=[0, 3, 4])
    (written,) = dd.export(ds, tmp_path / "out.nii.gz")
    image, original = nib.load(written), nib.load(source)
    np.testing.assert_allclose(image.affine, original.affine)
    assert image.header.get_zooms()[3] == 2.5
    np.testing.assert_array_equal(image.get_fdata()[inside], original.get_fdata()[inside][:, [0, 3, 4]])
    assert (image.get_fdata()[~inside] == 0).all()


def test_runs_that_differ_in_repetition_time(tmp_path: Path, make_runs) -> None:
    runs = [dd.Run(r.bold, run=r.run, repetition_time=time) for r, time in zip(make_runs(), (2.0, 2.0, 3.0), strict=True)]
    dd.convert(runs, tmp_path / "s.zarr", mask="none")
    ds = dd.open_subject(tmp_path / "s.zarr")
    assert ds.attrs["repetition_times"] == {"01": 2.0, "02": 2.0, "03": 3.0}
    with pytest.raises(StoreError, match=r"run 02: 2 s, run 03: 3 s\).*ds\.isel"):
        dd.export(ds, tmp_path / "out" / "all.nii")
    assert not (tmp_path / "out").exists()
    for run, time in (("02", 2), ("03", 3)):
        (written,) = dd.export(ds.isel(time=ds.run == run), tmp_path / f"{run}.nii")
        assert nib.load(written).header.get_zooms()[3] == time


def test_labels_with_spaces_survive_exactly(tmp_path: Path, write_image, random_values) -> None:
    labels = ["left hand", "left_hand", "  two  spaces ", "käse", "rest"]
    source = write_image(tmp_path / "in.nii", random_values("<i2", 5))
    dd.convert(dd.Run(source, labels=pd.DataFrame({"label": labels})), tmp_path / "s.zarr", mask="none")
    expected = read_label_table(pd.DataFrame({"label": labels}))["label"].tolist()
    assert dd.open_subject(tmp_path / "s.zarr").label.values.tolist() == expected
    assert "left hand" in expected
    stored = zarr.open_array(tmp_path / "s.zarr/sub-1/run-1/label", mode="r")
    assert np.issubdtype(stored.dtype, np.integer)
    assert len(stored.attrs["flag_meanings"].split()) == len(stored.attrs["flag_values"]) == len(set(expected))


def test_plain_xarray_opens_without_a_warning(tmp_path: Path, make_runs) -> None:
    dd.convert(make_runs(2), tmp_path / "s.zarr", mask="none", rois={"roi": np.ones(SHAPE, bool)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(tmp_path / "s.zarr", engine="zarr").load()
    run = tree["sub-1/run-01"].dataset
    assert run.bold.dims == ("time", "voxel")
    assert run.time.dtype == np.float64
    assert run.time.attrs["units"] == "s"
    np.testing.assert_array_equal(run.voxel.values, tree["sub-1"].voxel.values)
    assert set(tree["sub-1"].coords) == {"voxel", "i", "j", "k", "mask_roi"}
    assert tree["sub-1"].mask_roi.dtype == bool
    names = np.array(run.label.attrs["flag_meanings"].split())
    assert names[run.label.values].tolist() == ["face", "cat", "rest"] * 2


def test_source_header_is_kept(tmp_path: Path, write_image, random_values) -> None:
    source = write_image(tmp_path / "in.nii", random_values("<i2", 3), extension=b"x" * 30)
    dd.convert(dd.Run(source), tmp_path / "s.zarr", mask="none")
    kept = zarr.open_array(tmp_path / "s.zarr/sub-1/run-1/source_header", mode="r")
    assert kept.dtype == np.uint8
    assert kept[:].tobytes() == source.read_bytes()[: nib.load(source).dataobj.offset]


def test_long_runs_are_split_along_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_image, random_values) -> None:
    from daskdecode.store import layout, write

    monkeypatch.setattr(layout, "SEGMENT_NBYTES", 3 * 2 * int(np.prod(SHAPE)))
    monkeypatch.setattr(write, "BLOCK_NBYTES", 2 * 2 * int(np.prod(SHAPE)))
    source = write_image(tmp_path / "in.nii.gz", random_values("<i2", 10))
    dd.convert(dd.Run(source), tmp_path / "s.zarr", mask="none")
    ds = dd.open_subject(tmp_path / "s.zarr")
    assert ds.bold.chunksizes["time"] == (3, 3, 3, 1)
    image = nib.load(source).get_fdata()
    np.testing.assert_array_equal(ds.bold.values, image[ds.i.values, ds.j.values, ds.k.values].T)
    (written,) = dd.export(tmp_path / "s.zarr", tmp_path / "out.nii.gz")
    assert uncompressed(written) == uncompressed(source)
    assert dd.verify(tmp_path / "s.zarr").ok


def test_voxel_is_the_c_order_index(tmp_path: Path, write_image, random_values) -> None:
    source = write_image(tmp_path / "in.nii", random_values("<i2", 2))
    dd.convert(dd.Run(source), tmp_path / "s.zarr", mask="none")
    ds = dd.open_subject(tmp_path / "s.zarr")
    np.testing.assert_array_equal(np.ravel_multi_index((ds.i.values, ds.j.values, ds.k.values), SHAPE), ds.voxel.values)
    assert sorted(ds.voxel.values) == list(range(np.prod(SHAPE)))
    in_file = np.asarray(nib.load(source).dataobj).reshape(-1, 2, order="F")
    np.testing.assert_array_equal(in_file[voxel_file_order(ds.voxel.values, SHAPE)].T, ds.bold.values)
