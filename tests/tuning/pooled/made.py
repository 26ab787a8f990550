"""Pooled subjects, made for tests."""

from __future__ import annotations

import dask.array as da
import numpy as np
import xarray as xr

P = 130
SHAPE = (13, 5, 2)


def make(n_subjects=5, n_classes=2, seed=0):
    """Subjects with two runs each, of unequal lengths, a pattern that all share, and offsets of their own that z-scores take away."""
    rng = np.random.default_rng(seed)
    pattern = np.zeros((n_classes, P))
    pattern[:, :30] = rng.standard_normal((n_classes, 30))
    x, y, subjects, runs = [], [], [], []
    for s in range(n_subjects):
        for r in range(2):
            n = (20, 26, 33)[(s + r) % 3]
            labels = rng.permutation(np.arange(n) % n_classes)
            x.append(rng.standard_normal((n, P)) * (1 + s) + 100 * s + (1 + s) * 0.5 * pattern[labels])
            y.append(labels)
            subjects += [f"{s:02d}"] * n
            runs += [f"{s:02d}/{r}"] * n
    x, y = np.concatenate(x).astype(np.float32), np.array([f"c{k}" for k in np.concatenate(y)])
    return x, y, np.array(subjects), np.array(runs)


def dataset(x, y, subjects, runs, chunks=(23, 50)):
    """What ``pool_subjects`` gives of a store of them."""
    coords = {"label": ("time", y), "run": ("time", runs), "subject": ("time", subjects), "voxel": ("voxel", np.arange(P))}
    coords |= {name: ("voxel", index) for name, index in zip("ijk", np.unravel_index(np.arange(P), SHAPE), strict=True)}
    x = x if isinstance(x, da.Array) else da.from_array(x, chunks=chunks)
    return xr.Dataset({"bold": (("time", "voxel"), x)}, coords=coords, attrs={"affine": np.eye(4).tolist(), "shape": list(SHAPE)})


def zscored(x, runs):
    """Each run by itself, written out."""
    z = np.empty_like(x)
    for run in np.unique(runs):
        part = x[runs == run]
        z[runs == run] = (part - part.mean(axis=0)) / part.std(axis=0, ddof=1)
    return z
