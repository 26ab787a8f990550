"""A search over folds and settings on worker processes, beside joblib and scikit-learn's GridSearchCV on the same ones; and Hyperband.

    python benchmarks/search.py                  # 216 x 40,000, 12 folds x 20 values of C, screening; 2 workers of 1 thread
    python benchmarks/search.py --hyperband      # pooled subjects, four times the memory of the workers; --keep: with path= as well
    python benchmarks/search.py --voxels 4000 --settings 5

CPU seconds are those of the workers and of the driver; the peak is the largest resident memory of a worker, above what it held before.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import machine


class Watch:
    """Wall seconds, CPU seconds of the workers and the driver, and the largest memory of a worker, while a block runs."""

    def __init__(self, pids: list[int]) -> None:
        self.workers = [psutil.Process(pid) for pid in pids]

    def _cpu(self) -> float:
        times = [p.cpu_times() for p in (*self.workers, psutil.Process())]
        return sum(t.user + t.system for t in times)

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            self.peak_nbytes = max(self.peak_nbytes, *(p.memory_info().rss for p in self.workers))

    def __enter__(self) -> Watch:
        self.before_nbytes = self.peak_nbytes = max(p.memory_info().rss for p in self.workers)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        self._cpu_before, self._began = self._cpu(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self._began, self._cpu() - self._cpu_before
        self._ended.set()
        self._thread.join()

    def __str__(self) -> str:
        above = (self.peak_nbytes - self.before_nbytes) / 1e6
        peak = f"{self.peak_nbytes / 1e6:6.0f} MB at peak, {above:6.0f} MB above the imports"
        return f"{self.wall_s:8.1f} s {self.cpu_s:8.1f} CPU s   worker {peak}"


def on_workers(work: Callable[[list[int]], Any], n_workers: int = 2, **how: Any) -> Any:
    """Start fresh worker processes, let them import everything, and run ``work(pids)``."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", **how) as cluster,
        Client(cluster) as client,
    ):
        client.run(_import)
        return work([nanny.pid for nanny in cluster.workers.values()])


def _import() -> None:
    import nilearn.decoding  # noqa: F401
    import sklearn.svm  # noqa: F401

    import daskdecode.tuning.pooled.hyperband
    import daskdecode.tuning.search

    x = np.random.default_rng(0).standard_normal((24, 40))
    import dask

    import daskdecode as dd

    with dask.config.set(scheduler="synchronous"):  # compiles
        dd.search(dd.Decoder("svc"), x, {"C": [1, 2]}, ["a", "b"] * 12, np.repeat([0, 1, 2], 8), refit=False)


def grid_search(n_voxels: int, n_settings: int) -> None:
    """Time both searches on fresh workers each, and compare what they found."""
    import dask.array as da
    import zarr

    import daskdecode as dd

    n_runs, n_samples = 12, 216
    rng = np.random.default_rng(0)
    y, groups = np.tile([0, 1], n_samples // 2), np.repeat(np.arange(n_runs), n_samples // n_runs)
    x = rng.standard_normal((n_samples, n_voxels), dtype=np.float32) + 0.25 * y[:, None] * (np.arange(n_voxels) < n_voxels // 100)
    x = x.astype(np.float32)
    values = np.geomspace(1e-5, 1, n_settings)
    decoder = dd.Decoder("svc", screening_percentile=20)
    with tempfile.TemporaryDirectory() as folder:
        zarr.create_array(f"{folder}/x.zarr", data=x, chunks=(n_samples, 2048))
        lazy = da.from_zarr(f"{folder}/x.zarr")

        def ours(pids: list[int], *, nested: bool) -> tuple[Watch, Any]:
            dd.search(decoder, x[:, :2000], {"C": values[:2]}, y, groups, refit=False)  # compiles in the workers
            with Watch(pids) as watch:
                found = dd.search(decoder, lazy, {"C": values}, y, groups, refit=False, nested=nested)
            return watch, found

        def theirs(pids: list[int]) -> tuple[Watch, Any]:
            return _scikit_learn(pids, x, y, groups, values)

        mine, found = on_workers(lambda pids: ours(pids, nested=False))
        print(f"daskdecode                  {mine}")
        with_nested, nested = on_workers(lambda pids: ours(pids, nested=True))
        print(f"daskdecode, nested as well  {with_nested}")
        peer, reference = on_workers(theirs)
        print(f"joblib + scikit-learn       {peer}")
    difference = np.abs(found.cv_results_["mean_test_score"] - reference.cv_results_["mean_test_score"]).max()
    best = reference.cv_results_["params"][int(np.argmax(np.round(reference.cv_results_["mean_test_score"], 12)))]["linearsvc__C"]
    print(
        f"best C {found.best_params_['C']:.4g} and {best:.4g}; scores differ by at most {difference:.1g}; nested score {nested.score_:.4f}"
    )
    ratios = [peer.wall_s / mine.wall_s, peer.cpu_s / mine.cpu_s, peer.peak_nbytes / mine.peak_nbytes]
    print("the peer takes {:.1f} times the wall time, {:.1f} the CPU, {:.2f} the memory".format(*ratios))


def _scikit_learn(pids: list[int], x: Any, y: Any, groups: Any, values: Any) -> tuple[Watch, Any]:
    import dask.array as da
    import joblib
    from sklearn.feature_selection import SelectPercentile, f_classif
    from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    from daskdecode.data.preprocess import standardize_samples

    z = standardize_samples(da.from_array(x), groups, "zscore_run").compute(scheduler="threads")  # not counted
    pipeline = make_pipeline(SelectPercentile(f_classif, percentile=20), LinearSVC(dual=True, max_iter=10_000, random_state=0))
    search = GridSearchCV(pipeline, {"linearsvc__C": values}, cv=LeaveOneGroupOut(), scoring="roc_auc", refit=False)
    with Watch(pids) as watch, joblib.parallel_config("dask"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(z, y, groups=groups)
    return watch, search


def hyperband(limit: str, times: float, *, keep: bool) -> None:
    """Pool a study ``times`` as large as the memory of two workers, and search it; then with ``path=``, and once more when all is kept."""
    from dask.utils import parse_bytes
    from scipy.stats import loguniform
    from sklearn.linear_model import SGDClassifier

    import daskdecode as dd

    nbytes = int(2 * parse_bytes(limit) * times)
    with tempfile.TemporaryDirectory() as folder:
        ds = _pooled_study(Path(folder), nbytes)

        def work(pids: list[int], path: str | None = None) -> None:
            decoder = dd.Decoder(SGDClassifier(random_state=0), screening_percentile=20)
            with Watch(pids) as watch:
                found = dd.search(decoder, ds, {"alpha": loguniform(1e-4, 1e2)}, method="hyperband", n_iter=27, path=path)
            alive = [psutil.pid_exists(pid) for pid in pids]
            print(f"study {ds['bold'].nbytes / 1e9:.1f} GB, two workers of {limit}: {watch}; none restarted: {all(alive)}")
            print("\n".join(str(found).splitlines()[:8]), flush=True)

        on_workers(work, memory_limit=limit)
        for _ in range(2 if keep else 0):
            on_workers(partial(work, path=f"{folder}/kept"), memory_limit=limit)
            kept = [p.stat().st_size for p in Path(folder, "kept").iterdir()]
            print(f"kept: {sum(kept) / 1e6:.0f} MB in {len(kept)} files")


def _pooled_study(folder: Path, nbytes: int) -> Any:
    """Subjects in a Zarr array of int16, a run a chunk along time; read as float32."""
    import dask.array as da
    import xarray as xr
    import zarr

    n_voxels, n_volumes, n_runs = 40_000, 120, 5
    shape = (40, 40, 25)
    n_subjects = max(3, -(-nbytes // (4 * n_voxels * n_volumes * n_runs)))
    n = n_subjects * n_runs * n_volumes
    store = zarr.create_array(f"{folder}/pooled.zarr", shape=(n, n_voxels), chunks=(n_volumes, 4000), dtype="int16")
    rng, labels = np.random.default_rng(0), np.tile([0, 1], n // 2)
    for start in range(0, n, n_volumes):
        noise = rng.integers(900, 1100, (n_volumes, n_voxels), dtype=np.int16)
        noise[:, :500] += (12 * labels[start : start + n_volumes, None]).astype(np.int16)
        store[start : start + n_volumes] = noise
    voxel = np.arange(n_voxels)
    coords = {
        "run": ("time", np.repeat([f"{r:04d}" for r in range(n_subjects * n_runs)], n_volumes)),
        "label": ("time", np.where(labels, "face", "cat")),
        "subject": ("time", np.repeat([f"{s:03d}" for s in range(n_subjects)], n_runs * n_volumes)),
        "voxel": ("voxel", voxel),
    } | {name: ("voxel", index) for name, index in zip("ijk", np.unravel_index(voxel, shape), strict=True)}
    attrs = {"affine": np.diag([3.0, 3, 3, 1]).tolist(), "shape": list(shape)}
    return xr.Dataset({"bold": (("time", "voxel"), da.from_zarr(store).astype(np.float32))}, coords=coords, attrs=attrs)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=40_000)
    parser.add_argument("--settings", type=int, default=20)
    parser.add_argument("--hyperband", action="store_true")
    parser.add_argument("--keep", action="store_true", help="Hyperband with path= as well, and once more when all is kept")
    parser.add_argument("--memory-limit", default="600MB", help="of each of two workers, for Hyperband")
    parser.add_argument("--times", type=float, default=4.0, help="the study's size in float32 over the memory of both workers")
    args = parser.parse_args()
    print(machine("dask", "dask-ml", "joblib"))
    if args.hyperband:
        hyperband(args.memory_limit, args.times, keep=args.keep)
    else:
        grid_search(args.voxels, args.settings)


if __name__ == "__main__":
    main()
