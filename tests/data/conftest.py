"""Synthetic subject datasets, built by hand to daskdecode.schema: no store is needed to test what is lazy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

AFFINE = np.array([[-3.5, 0, 0, 20], [0, 3.75, 0.2, -40], [0, -0.2, 4.0, -10], [0, 0, 0, 1.0]])


def make_subject(
    lengths: Sequence[int] = (11, 14, 9),
    *,
    shape: tuple[int, int, int] = (7, 8, 9),
    n_voxels: int = 61,
    chunks: Any = (11, 16),
    dtype: str = "float32",
    seed: int = 0,
    session: bool = False,
) -> xr.Dataset:
    """A subject with runs of unequal lengths, a trend in every voxel, and a random order of voxels, as a store may have."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    run = np.repeat([f"{number:02d}" for number in range(len(lengths), 0, -1)], lengths)  # first run last in the alphabet
    time = np.concatenate([2.5 * np.arange(length) for length in lengths])
    voxel = rng.permutation(np.prod(shape))[:n_voxels]
    bold = 1000 + 300 * rng.random(n_voxels) + 40 * rng.standard_normal((n, n_voxels)) + time[:, None] * rng.standard_normal(n_voxels)
    i, j, k = (index.astype("int32") for index in np.unravel_index(voxel, shape))
    coords = {
        "time": ("time", time, {"units": "s"}),
        "run": ("time", run),
        "label": ("time", np.resize(["rest", "face", "face", "cat"], n)),
        "subject": ("time", np.full(n, "1")),
        "voxel": ("voxel", voxel),
        "i": ("voxel", i),
        "j": ("voxel", j),
        "k": ("voxel", k),
        "mask_vt": ("voxel", rng.random(n_voxels) < 0.4),
        "mask_empty": ("voxel", np.zeros(n_voxels, bool)),
    }
    if session:
        coords["session"] = ("time", np.resize(np.repeat(["a", "b"], n // 2), n))
    attrs = {
        "affine": AFFINE.tolist(),
        "shape": list(shape),
        "repetition_time": 2.5,
        "subject": "1",
        "sform_code": 4,
        "format_version": 1,
    }
    return xr.Dataset({"bold": (("time", "voxel"), da.from_array(bold.astype(dtype), chunks=chunks))}, coords, attrs)


@pytest.fixture
def subject() -> Callable[..., xr.Dataset]:
    return make_subject


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("something was computed while a lazy result was being built")


@pytest.fixture
def nothing_computes() -> Any:
    """While it is active, computing anything raises."""
    return dask.config.set(scheduler=_refuse)
