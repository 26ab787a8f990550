"""A selection reads the chunks that it needs, each once, and no others."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
from zarr.storage import LocalStore

import daskdecode as dd
from daskdecode.testing import CountingStore, NoCompute

SHAPE = (37, 42, 40)
LABELS = {"01": ["face", "rest"] * 4, "02": ["cat"] * 3 + ["rest"] * 7, "03": ["rest", "face", "cat"] * 3}


@pytest.fixture(scope="module")
def whole_brain(tmp_path_factory):
    """Three runs of unequal lengths, all voxels of the grid, and a compact region of 125 voxels."""
    folder = tmp_path_factory.mktemp("reads")
    rng = np.random.default_rng(0)
    affine = np.diag([3.0, 3.0, 3.5, 1.0])
    runs = []
    for name, labels in LABELS.items():
        path = folder / f"run-{name}.nii"
        nib.save(nib.Nifti1Image(rng.integers(0, 900, (*SHAPE, len(labels)), dtype=np.int16), affine), path)
        runs.append(dd.Run(path, labels=labels, run=name, repetition_time=2.0))
    region = np.zeros(SHAPE, np.uint8)
    region[16:21, 9:14, 22:27] = 1
    store = folder / "study.zarr"
    dd.convert(runs, store, mask="none", rois={"vt": nib.Nifti1Image(region, affine)}, progress=False)
    return store


@pytest.fixture
def counted(whole_brain):
    """The store, counting, opened as a dataset; nothing is counted yet."""
    store = CountingStore(LocalStore(whole_brain))
    ds = dd.open_subject(store)
    assert not store.bold_reads
    return store, ds


def chunks_needed(ds, selected) -> set[tuple[str, int]]:
    """Run and number along voxels of every chunk that holds a selected value."""
    width = ds.bold.data.chunks[1][0]
    position = {voxel: n for n, voxel in enumerate(ds.voxel.values)}
    columns = {position[voxel] // width for voxel in selected.voxel.values}
    return {(run, column) for run in np.unique(selected.run) for column in columns}


def chunks_read(store: CountingStore) -> set[tuple[str, int]]:
    """Run and number along voxels of every chunk of ``bold`` that was read, once each (runs are whole along time)."""
    assert set(store.bold_reads.values()) <= {1}, "a chunk was read twice"
    found = [re.search(r"run-(\w+)/bold/c/0/(\d+)$", key) for key in store.bold_reads]
    return {(match[1], int(match[2])) for match in found if match}


SELECTIONS = {
    "region": lambda ds: dd.apply_mask(ds, "vt"),
    "label": lambda ds: dd.select_labels(ds, "cat"),
    "label and region": lambda ds: dd.apply_mask(dd.select_labels(ds, ["cat"]), "vt"),
    "one voxel": lambda ds: dd.apply_mask(ds, ds.voxel.values == 20_000),
    "scaled region": lambda ds: dd.standardize(dd.apply_mask(dd.select_labels(ds, ["cat", "rest"]), "vt"), "zscore_run"),
    "detrended region": lambda ds: dd.apply_mask(dd.detrend(ds), "vt"),
    "label of detrended runs": lambda ds: dd.apply_mask(dd.select_labels(dd.detrend(ds), "cat"), "vt"),
    "cleaned region": lambda ds: dd.apply_mask(dd.regress_out(ds, np.random.default_rng(1).random((ds.sizes["time"], 2))), "vt"),
}


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
def test_a_selection_reads_exactly_the_chunks_it_needs_once(counted, select):
    store, ds = counted
    with NoCompute():
        selected = select(ds)
    assert not store.bold_reads, "building read data"
    selected.bold.compute()
    assert chunks_read(store) == chunks_needed(ds, selected)


def test_a_compact_region_of_a_whole_brain_touches_few_chunks(counted):
    store, ds = counted
    dd.apply_mask(ds, "vt").bold.compute()
    n_columns = len(ds.bold.data.chunks[1])
    touched = {column for _, column in chunks_read(store)}
    in_c_order = {voxel // ds.bold.data.chunks[1][0] for voxel in ds.voxel.values[ds.mask_vt.values]}
    assert n_columns > 10
    assert len(touched) <= n_columns / 5
    assert len(touched) < len(in_c_order)


def test_runs_without_the_label_are_not_read(counted):
    store, ds = counted
    dd.select_labels(ds, "cat").bold.compute()
    assert {run for run, _ in chunks_read(store)} == {"02", "03"}


def test_the_values_are_those_of_the_images(whole_brain):
    ds = dd.apply_mask(dd.select_labels(dd.open_subject(whole_brain), "cat"), "vt")
    parts = []
    for name, labels in LABELS.items():
        data = np.asarray(nib.load(whole_brain.parent / f"run-{name}.nii").dataobj)
        rows = [n for n, label in enumerate(labels) if label == "cat"]
        parts.append(data[ds.i.values, ds.j.values, ds.k.values][:, rows].T)
    np.testing.assert_array_equal(ds.bold.values, np.concatenate(parts))


def test_the_mean_image_reads_every_chunk_once(counted):
    store, ds = counted
    dd.mean_image(ds)
    assert chunks_read(store) == chunks_needed(ds, ds)
