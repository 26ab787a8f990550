"""Pooled samples: `search(route="stream")` beside one scan a model by dask-ml's Incremental; processor time, and how often a chunk is read.

python benchmarks/stream.py
"""

from __future__ import annotations

import tempfile
import time

import dask
import dask.array as da
import numpy as np
import zarr
from dask_ml.wrappers import Incremental
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GroupKFold

import daskdecode as dd
from daskdecode.data.preprocess import standardize_samples
from daskdecode.testing import CountingStore
from daskdecode.tuning import pooled

N_VOXELS, N_VOLUMES, N_RUNS = 10_000, 120, 24
ALPHAS = [1e-4, 1e-3, 1e-2, 1e-1]


def main() -> None:
    """Four folds, four settings, two threads."""
    pooled.BLOCK_NBYTES = 2**23  # a study this small would else be two blocks
    y, runs = np.tile([0, 1], N_VOLUMES * N_RUNS // 2), np.repeat([f"{r:02d}" for r in range(N_RUNS)], N_VOLUMES)
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="threads", num_workers=2):
        store = CountingStore(zarr.storage.LocalStore(folder))
        array = zarr.create_group(store).create_array("s/bold", shape=(y.size, N_VOXELS), chunks=(N_VOLUMES, 2000), dtype="int16")
        rng = np.random.default_rng(0)
        for start in range(0, y.size, N_VOLUMES):
            noise = rng.integers(900, 1100, (N_VOLUMES, N_VOXELS), dtype=np.int16)
            noise[:, :300] += (12 * y[start : start + N_VOLUMES, None]).astype(np.int16)
            array[start : start + N_VOLUMES] = noise
        x = da.from_zarr(array)
        for name, work in (("stream", by_stream), ("Incremental, one scan a model", by_incremental)):
            store.reset()
            start_s = time.process_time()
            work(x, y, runs)
            n_reads = sum(store.bold_reads.values()) / len(store.bold_reads)
            print(f"{name}: {time.process_time() - start_s:.1f} CPU s, a chunk read {n_reads:.1f} times", flush=True)


def by_stream(x: da.Array, y: np.ndarray, runs: np.ndarray) -> None:
    """All models side by side."""
    decoder = dd.Decoder(SGDClassifier(random_state=0), cv=GroupKFold(4), screening_percentile=None)
    dd.search(decoder, x, {"alpha": ALPHAS}, y, runs, route="stream", nested=False, refit=False)


def by_incremental(x: da.Array, y: np.ndarray, runs: np.ndarray) -> None:
    """One model after another."""
    for train, test in GroupKFold(4).split(y, y, runs):
        z, held_out = (scaled(x, runs, part) for part in (train, test))
        for alpha in ALPHAS:
            model = Incremental(SGDClassifier(alpha=alpha, random_state=0), shuffle_blocks=False, scoring="accuracy")
            model.fit(z, da.from_array(y[train], chunks=2 * N_VOLUMES), classes=[0, 1])
            model.predict(held_out).compute()


def scaled(x: da.Array, runs: np.ndarray, part: np.ndarray) -> da.Array:
    """Runs z-scored each by itself, two a block."""
    own = [standardize_samples(x[runs == run], np.zeros(N_VOLUMES, dtype=str), "zscore_run") for run in np.unique(runs[part])]
    return da.concatenate(own).rechunk((2 * N_VOLUMES, N_VOXELS))


if __name__ == "__main__":
    main()
