"""Stores large enough that a decode's memory stands out from that of the imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import daskdecode as dd

N_RUNS, REPEATS = 12, 9


def _write_store(folder: Path, n_voxels: int, repeats: int = REPEATS, noise: int = 100) -> str:
    """Convert 12 runs of ``2 * repeats`` volumes of two conditions, int16; the first 200 voxels tell the conditions apart."""
    rng = np.random.default_rng(n_voxels)
    labels = np.repeat(["a", "b"], repeats)
    runs = []
    for run in range(N_RUNS):
        values = rng.integers(1000 - noise, 1000 + noise, size=(labels.size, n_voxels), dtype=np.int16)
        values[labels == "b", :200] += 15 * noise // 100
        path = folder / f"run-{run}.nii"
        affine = np.diag([(1.7e6 / n_voxels) ** (1 / 3)] * 3 + [1.0])  # of a brain's volume, so that screening keeps a fifth
        nib.Nifti1Image(np.asfortranarray(values.T).reshape(100, -1, 1, labels.size), affine).to_filename(path)
        runs.append(dd.Run(path, run=str(run + 1), labels=labels.tolist(), repetition_time=2.0))
        del values
    region = np.zeros((100, n_voxels // 100, 1), dtype=np.uint8)
    region[:15, :10] = 1
    store = folder / "study.zarr"
    dd.convert(runs, store, mask="none", rois={"region": nib.Nifti1Image(region, affine)}, progress=False)
    for run in runs:
        Path(run.bold).unlink()
    return str(store)


@pytest.fixture(scope="session")
def write_store():
    """``write_store(folder, n_voxels, repeats=9, noise=100)``: a store of 12 runs of 18 volumes; its path."""
    return _write_store


@pytest.fixture(scope="session")
def brain(tmp_path_factory):
    """216 volumes x 40,000 voxels."""
    return _write_store(tmp_path_factory.mktemp("brain"), 40_000)


@pytest.fixture(scope="session")
def brain_4x(tmp_path_factory):
    """216 volumes x 160,000 voxels."""
    return _write_store(tmp_path_factory.mktemp("brain_4x"), 160_000)


@pytest.fixture
def decode_apart():
    """``decode_apart(store, memory_budget, **options)``: decode in another process."""

    def decode(store, memory_budget, *, decoder="Decoder", y=None, allowance_nbytes=None, **options):
        work = {"store": store, "decoder": decoder, "options": options, "y": y}
        work |= {"memory_budget": memory_budget, "allowance_nbytes": allowance_nbytes}
        command = [sys.executable, str(Path(__file__).with_name("decode_apart.py")), json.dumps(work)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        if allowance_nbytes is not None and done.returncode < 0 and "allocating memory" in done.stdout:
            return {"out_of_memory": True}  # Blosc met the limit: it says so, and dies
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return decode
