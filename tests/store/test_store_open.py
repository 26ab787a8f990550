"""Opening: nothing read that is not asked for, nothing returned that is not what was written."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import dask
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore, MemoryStore

import daskdecode as dd
from daskdecode.errors import FormatVersionError, GridMismatchError, SelectionError, StoreError
from daskdecode.store import layout
from daskdecode.store.describe import describe
from daskdecode.store.open import stored_subjects
from daskdecode.testing import CountingStore, NoCompute, UnexpectedComputeError

SHAPE = (7, 8, 9)


@pytest.fixture
def store(tmp_path: Path, make_runs, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs of six volumes, 504 voxels in chunks of 64."""
    monkeypatch.setattr(layout, "VOXELS_PER_CHUNK", (64, 64))
    dd.convert(make_runs(), tmp_path / "s.zarr", mask="none")
    return tmp_path / "s.zarr"


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def test_opening_reads_no_bold(store: Path) -> None:
    counting = CountingStore(LocalStore(store))
    with NoCompute():
        ds = dd.open_subject(counting)
        dd.open_study(counting)
    assert not counting.bold_reads
    assert counting.chunk_reads  # coordinates were: the counter does count
    assert not counting.sets
    counting.reset()
    ds.bold.load()
    assert set(counting.bold_reads.values()) == {1}
    assert len(counting.bold_reads) == 3 * 8


def test_a_selection_reads_only_its_chunks(store: Path) -> None:
    counting = CountingStore(LocalStore(store))
    ds = dd.open_subject(counting)
    counting.reset()
    ds.bold[6:9, 64 * 2 : 64 * 3].load()
    assert counting.bold_reads == {"sub-1/run-02/bold/c/0/2": 1}


def test_no_compute_refuses() -> None:
    with NoCompute(), pytest.raises(UnexpectedComputeError):
        dask.delayed(int)(3).compute()
    assert dask.delayed(int)(3).compute() == 3


def test_a_compact_region_lies_in_few_chunks(store: Path) -> None:
    ds = dd.open_subject(store)
    region = (ds.i < 4) & (ds.j < 4) & (ds.k < 4)
    in_chunks = np.unique(np.flatnonzero(region.values) // 64)
    in_c_order = np.unique(np.sort(ds.voxel.values[region.values]) // 64)
    assert len(in_chunks) == 1 < len(in_c_order)


def test_chunks_and_names_are_those_of_the_store(store: Path) -> None:
    first, second = dd.open_subject(store), dd.open_subject(str(store))
    assert first.bold.chunksizes["time"] == (6, 6, 6)
    assert first.bold.chunksizes["voxel"] == (64,) * 7 + (56,)
    assert first.bold.data.name == second.bold.data.name
    assert first.bold.data.dask.keys() == second.bold.data.dask.keys()


def test_other_content_of_the_same_size_and_time_has_other_names_and_another_content(tmp_path: Path, make_runs) -> None:
    """A restored or synchronised copy keeps its time: a decode must not take results of the old one, nor Dask its persisted chunks."""
    runs, found = make_runs(2), []
    for _ in range(2):
        dd.convert(runs, tmp_path / "s.zarr", mask="none", overwrite=True)
        found.append((dd.open_subject(tmp_path / "s.zarr"), stored_subjects(tmp_path / "s.zarr")[0]["1"].content()))
        first = Path(runs[0].bold)
        times = first.stat()
        raw = bytearray(gzip.decompress(first.read_bytes()))
        raw[-1] ^= 1
        packed = gzip.compress(bytes(raw), 1, mtime=0)
        assert len(packed) == times.st_size
        first.write_bytes(packed)
        os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    (before, content), (now, other) = found
    assert [content["runs"][run] == other["runs"][run] for run in content["runs"]] == [False, True]
    layers = [{name for name in ds.bold.data.dask.layers if name.startswith("bold-")} for ds in (before, now)]
    assert [len(names) for names in layers] == [2, 2]
    assert len(layers[0] & layers[1]) == 1


@pytest.mark.parametrize("again", ["other voxels", "other values", "the same"])
def test_what_was_opened_is_not_read_from_a_store_that_took_its_place(store: Path, make_runs, again: str) -> None:
    """Chunks of other voxels, or of other volumes, may be as large as the old ones: they would be taken for them."""
    ds, brain = dd.open_subject(store), np.zeros(SHAPE, dtype=bool)
    brain.ravel()[::2] = True
    before = ds.bold[:6, :64].values
    runs = make_runs()
    if again == "other values":
        first = Path(runs[0].bold)
        first.write_bytes(gzip.compress(gzip.decompress(first.read_bytes())[:-1] + b"\x01"))
    dd.convert(runs, store, mask=brain if again == "other voxels" else "none", overwrite=True)
    if again == "the same":
        np.testing.assert_array_equal(ds.bold[:6, :64].values, before)
        return
    assert dd.open_subject(store).bold[:6, :64].shape == before.shape
    with pytest.raises(StoreError, match=r"run-01 in .* was converted again"):
        ds.bold[:6, :64].compute()


def test_other_voxels_of_a_mask_that_is_found_are_other_content(tmp_path: Path, make_runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of nilearn may find another brain in the same images."""
    found = []
    for n in (30, 40):
        brain = np.zeros(SHAPE, dtype=bool)
        brain.ravel()[:n] = True
        monkeypatch.setattr("daskdecode.store.subjects.find_brain", lambda *_, brain=brain: brain)
        dd.convert(make_runs(), tmp_path / "s.zarr", mask="auto", overwrite=True)
        found.append((dd.open_subject(tmp_path / "s.zarr").bold.data.name, stored_subjects(tmp_path / "s.zarr")[0]["1"].content()))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_a_store_from_before_voxels_had_a_checksum_opens(store: Path) -> None:
    expected = dd.open_subject(store).bold.values
    for file in store.rglob("zarr.json"):
        file.write_text(re.sub(r'"voxel_sha256": "\w+",\s*', "", file.read_text()))
    np.testing.assert_array_equal(dd.open_subject(store).bold.values, expected)


def test_dataset_is_as_the_schema_says(store: Path) -> None:
    ds = dd.open_subject(store)
    assert ds.bold.dims == ("time", "voxel")
    assert ds.time.attrs["units"] == "s"
    for name in ("run", "label", "subject"):
        assert ds[name].dims == ("time",)
        assert ds[name].dtype.kind == "U"
    assert (ds.i.dtype, ds.voxel.dtype) == (np.int32, np.int64)
    assert ds.run.values.tolist() == [f"{n:02}" for n in (1, 2, 3) for _ in range(6)]
    assert set(ds.attrs) >= {"affine", "shape", "repetition_time", "subject", "format_version", "qform_code", "sform_code"}
    assert json.loads(json.dumps(ds.attrs)) == ds.attrs
    assert "session" not in ds.coords


@pytest.mark.parametrize("which", ["bold/c/0/3", "time/c/0", "label/c/0"])
def test_a_flipped_bit_is_an_error_that_names_the_run(store: Path, which: str) -> None:
    flip_a_bit(store / "sub-1/run-02" / which)
    with pytest.raises(StoreError, match=r"sub-1/run-02.*cannot be read.*checksum"):
        dd.open_subject(store).bold.load()
    report = dd.verify(store)
    assert not report.ok
    (problem,) = report.problems
    assert problem.startswith("sub-1/run-02: ")
    assert problem in str(report)


def test_a_missing_chunk_is_an_error_and_not_zeros(store: Path) -> None:
    (store / "sub-1/run-02/bold/c/0/3").unlink()
    ds = dd.open_subject(store)
    ds.bold[:, :64].load()
    with pytest.raises(StoreError, match=r"sub-1/run-02.*bold/c/0/3 is missing"):
        ds.bold.load()
    assert "is missing" in str(dd.verify(store))
    with pytest.raises(StoreError, match="is missing"):
        dd.export(store, store.parent / "out")
    assert not list((store.parent / "out").rglob("*run-02*"))
    (store / "sub-1/run-01/bold/c/0/3").unlink()
    with pytest.raises(StoreError, match="is missing"):
        dd.export(store, store.parent / "deep" / "folder")
    with pytest.raises(StoreError, match="is missing"):
        dd.export(ds, store.parent / "deep" / "folder" / "one.nii")
    assert not (store.parent / "deep").exists()


@pytest.mark.parametrize("which", ["mask_roi", "i", "j", "k", "voxel"])
@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit])
def test_damage_to_what_runs_share_is_found(store: Path, which: str, damage) -> None:
    dd.add_mask(store, "roi", np.ones(SHAPE, bool))
    assert dd.verify(store).ok
    damage(store / "sub-1" / which / "c/0")
    report = dd.verify(store)
    assert not report.ok
    assert f"sub-1/{which}" in str(report)
    if which == "mask_roi":
        with pytest.raises(StoreError, match="sub-1/mask_roi"):
            describe(store)


def test_coordinates_and_masks_that_are_others_are_found(store: Path, make_runs) -> None:
    dd.add_mask(store, "roi", np.arange(np.prod(SHAPE)).reshape(SHAPE) < 9)
    ds = dd.open_subject(store)
    layout.write_vector(LocalStore(store), "sub-1/mask_roi", ~ds.mask_roi.values, "voxel")
    layout.write_vector(LocalStore(store), "sub-1/j", ds.k.values, "voxel")
    problems = dd.verify(store).problems
    assert [p.split(":")[0] for p in problems] == ["sub-1/j", "sub-1/mask_roi"]
    assert "checksum" in problems[1]
    inside = np.zeros(SHAPE, bool)
    inside[2:5] = True
    dd.convert(make_runs(), store, mask=inside, overwrite=True)
    voxel = dd.open_subject(store).voxel.values.copy()
    voxel[voxel == voxel.max()] += 1
    layout.write_vector(LocalStore(store), "sub-1/voxel", voxel, "voxel")
    assert "brain mask" in str(dd.verify(store))


def test_missing_labels_are_not_counted_as_the_first(store: Path) -> None:
    (store / "sub-1/run-02/label/c/0").unlink()
    with pytest.raises(StoreError, match="sub-1/run-02/label"):
        describe(store)


def test_damaged_metadata(store: Path) -> None:
    (store / "sub-1/zarr.json").write_text('{"zarr')
    with pytest.raises(StoreError, match=r"sub-1.*damaged|metadata of sub-1"):
        dd.open_subject(store)
    (store / "zarr.json").write_text("")
    with pytest.raises(StoreError, match=r"zarr.json in .* is damaged"):
        dd.open_subject(store)


def test_what_is_not_a_store(tmp_path: Path, store: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        dd.open_subject(tmp_path / "absent.zarr")
    assert not (tmp_path / "absent.zarr").exists()
    with pytest.raises(StoreError, match="not a daskdecode study store"):
        dd.open_subject(tmp_path / "nifti")
    xr.Dataset({"x": ("y", [1])}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    with pytest.raises(StoreError, match="not a daskdecode study store"):
        dd.open_study(tmp_path / "other.zarr")


def test_another_format_version(store: Path, make_runs) -> None:
    root = store / "zarr.json"
    root.write_text(root.read_text().replace('"format_version": 1', '"format_version": 99'))
    for use in (dd.open_subject, dd.open_study, dd.verify, lambda s: dd.convert(make_runs(), s, mask="none")):
        with pytest.raises(FormatVersionError, match=r"version 99.*version 1\b"):
            use(store)


def test_verify_finds_changed_sources(store: Path, write_image, random_values, make_runs) -> None:
    assert dd.verify(store).ok
    paths = [Path(run.bold) for run in make_runs()]
    values = np.asarray(nib.load(paths[0]).dataobj).copy()
    values[3, 4, 5, 2] ^= 1
    write_image(paths[0], values.astype("<i2"))
    paths[1].unlink()
    problems = dd.verify(store).problems
    assert [p.split(":")[0] for p in problems] == ["sub-1/run-01", "sub-1/run-02"]
    assert "first in volume 2" in problems[0]
    assert "is not there any more" in problems[1]


def test_pickled_to_another_process(store: Path) -> None:
    ds = dd.open_subject(store)
    again = pickle.loads(pickle.dumps(ds))
    np.testing.assert_array_equal(again.bold.values, ds.bold.values)


def test_a_zarr_store_in_memory(make_runs) -> None:
    memory = MemoryStore()
    dd.convert(make_runs(), memory, mask="none")
    assert dd.open_subject(memory).bold.sum().compute() != 0
    assert dd.verify(memory).ok


def test_an_fsspec_url(make_runs, tmp_path: Path) -> None:
    url = f"memory://daskdecode-test/{tmp_path.name}/s.zarr"
    assert dd.convert(make_runs(), url, mask="none") == url
    assert dd.convert(make_runs(), url, mask="none") == url
    dd.convert(make_runs(2), url, mask="none", overwrite=True)
    assert dd.open_subject(url).sizes["time"] == 12
    assert dd.verify(url).ok
    local = (tmp_path / "l.zarr").as_uri()
    dd.convert(make_runs(), local, mask="none")
    assert dd.open_subject(tmp_path / "l.zarr").sizes["time"] == 18


# --- masks added later --------------------------------------------------------------------------------------------------------------


def test_add_mask(store: Path, make_runs) -> None:
    inside = np.zeros(SHAPE, np.uint8)
    inside[2:5, 1:3, 4:] = 1
    affine = nib.load(make_runs()[0].bold).affine
    nib.Nifti1Image(inside, affine).to_filename(store.parent / "vt.nii.gz")
    dd.add_mask(store, "vt", store.parent / "vt.nii.gz")
    ds = dd.open_subject(store)
    assert ds.mask_vt.dtype == bool
    np.testing.assert_array_equal(ds.mask_vt.values, inside[ds.i.values, ds.j.values, ds.k.values] == 1)
    plain = xr.open_datatree(store, engine="zarr")["sub-1"]
    assert "mask_vt" in plain.coords
    np.testing.assert_array_equal(plain.mask_vt.values, ds.mask_vt.values)

    with pytest.raises(StoreError, match="has a mask 'vt' already"):
        dd.add_mask(store, "vt", inside)
    dd.add_mask(store, "vt", inside == 0, overwrite=True)
    assert dd.open_subject(store).mask_vt.values.sum() == (inside == 0).sum()
    with pytest.raises(GridMismatchError, match="resample_to_img"):
        dd.add_mask(store, "other", nib.Nifti1Image(inside, np.eye(4)))
    with pytest.raises(SelectionError, match="empty"):
        dd.add_mask(store, "other", np.zeros(SHAPE))
    with pytest.raises(SelectionError, match="'9' is not in the store"):
        dd.add_mask(store, "other", inside, subject="9")
    assert [name for name in dd.open_subject(store).coords if str(name).startswith("mask_")] == ["mask_vt"]
    dd.convert(make_runs(), store, mask="none")  # still the same conversion, and complete
    assert "mask_vt" in dd.open_subject(store).coords


def test_a_moved_store_opens(store: Path) -> None:
    values = dd.open_subject(store).bold.values
    shutil.move(store, store.with_name("moved.zarr"))
    np.testing.assert_array_equal(dd.open_subject(store.with_name("moved.zarr")).bold.values, values)


# --- elsewhere ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_distributed_workers(tmp_path: Path, make_runs) -> None:
    from distributed import Client

    runs = make_runs()
    dd.convert(runs, tmp_path / "here.zarr", mask="none")
    with Client(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0", host="127.0.0.1"):
        dd.convert(runs, tmp_path / "there.zarr", mask="none")
        there = dd.open_subject(tmp_path / "there.zarr").bold.values
        assert dd.verify(tmp_path / "there.zarr").ok
    np.testing.assert_array_equal(there, dd.open_subject(tmp_path / "here.zarr").bold.values)


@pytest.mark.slow
def test_processes(tmp_path: Path, make_runs) -> None:
    with dask.config.set(scheduler="processes", num_workers=2):
        dd.convert(make_runs(), tmp_path / "s.zarr", mask="none")
        values = dd.open_subject(tmp_path / "s.zarr").bold.values
    np.testing.assert_array_equal(values, dd.open_subject(tmp_path / "s.zarr").bold.values)


@pytest.mark.slow
def test_s3(make_runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="studies")
        url = "s3://studies/haxby.zarr"
        runs = make_runs()
        assert dd.convert(runs, url, mask="none") == url
        dd.convert(runs, url, mask="none")
        dd.convert(runs, tmp_path / "s.zarr", mask="none")
        np.testing.assert_array_equal(dd.open_subject(url).bold.values, dd.open_subject(tmp_path / "s.zarr").bold.values)
        assert dd.verify(url).ok
        dd.add_mask(url, "roi", np.ones(SHAPE, bool))
        assert dd.open_subject(url).mask_roi.values.all()
        dd.convert(make_runs(2), url, mask="none", overwrite=True)
        assert dd.open_subject(url).sizes["time"] == 12
    finally:
        server.stop()
