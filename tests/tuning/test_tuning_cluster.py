"""Searches on worker processes: killed ones, and ones with little memory."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import xarray as xr
from dask_ml.linear_model import LogisticRegression
from distributed import Client, LocalCluster
from scipy.stats import loguniform
from sklearn.linear_model import SGDClassifier

import daskdecode as dd
from daskdecode.errors import MemoryBudgetError
from daskdecode.tuning.pooled.glm import COPIES_OF_SOLVERS

pytestmark = pytest.mark.slow

SHAPE = (40, 40, 30)


def _kill_one_after(cluster, n_done, killed):
    """Kill a worker once so many fits have ended."""
    while not killed["stop"]:
        done = sum(1 for task in list(cluster.scheduler.tasks.values()) if "fit" in str(task.key) and task.state in ("memory", "released"))
        if done >= n_done:
            victim = next(iter(cluster.workers.values())).pid
            os.kill(victim, signal.SIGKILL)
            killed["pid"] = victim
            return
        time.sleep(0.02)


@pytest.mark.parametrize("kept", [False, True])
def test_a_search_survives_a_killed_worker_with_the_same_numbers(kept, tmp_path):
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 48)
    groups = np.repeat(np.arange(8), 12)
    x = da.from_array(rng.standard_normal((96, 2000)) + 0.1 * y[:, None] * (np.arange(2000) < 200), chunks=(36, 400))
    decoder, grid = dd.Decoder("svc"), {"C": np.geomspace(1e-4, 10, 8)}
    with dask.config.set(scheduler="threads"):
        expected = dd.search(decoder, x, grid, y, groups, refit=False)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 10}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        killed = {"stop": False}
        killer = threading.Thread(target=_kill_one_after, args=(cluster, 8, killed))
        killer.start()
        try:
            found = dd.search(decoder, x, grid, y, groups, refit=False, path=tmp_path / "search.npz" if kept else None)
        finally:
            killed["stop"] = True
            killer.join()
    assert "pid" in killed, "no worker was killed: the test shows nothing"
    for name in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(found.cv_results_[name], expected.cv_results_[name], atol=1e-10)
    np.testing.assert_allclose(found.nested_scores_, expected.nested_scores_, atol=1e-10)
    assert found.nested_params_ == expected.nested_params_


def _watch(pids, peak, stop):
    while not stop.is_set():
        for pid in pids:
            peak[0] = max(peak[0], psutil.Process(pid).memory_info().rss)
        time.sleep(0.02)


def _n_spilled(dask_worker):
    return len(getattr(dask_worker.data, "disk", ()))


def pooled(n_subjects, n_runs, n_volumes, n_voxels):
    """A pooled study that exists only while a run of it is read."""
    rng = da.random.default_rng(0)
    labels = np.tile([0, 1], n_subjects * n_runs * n_volumes // 2)
    noise = rng.standard_normal((labels.size, n_voxels), chunks=(n_volumes, 5000), dtype=np.float32)
    pattern = np.zeros(n_voxels, dtype=np.float32)
    pattern[:500] = 0.2
    bold = noise + da.from_array(labels.astype(np.float32), chunks=n_volumes)[:, None] * da.from_array(pattern, chunks=5000)[None]
    coords = {
        "run": ("time", np.repeat([f"{r:02d}" for r in range(n_subjects * n_runs)], n_volumes)),
        "label": ("time", np.where(labels, "face", "cat")),
        "subject": ("time", np.repeat([f"{s:02d}" for s in range(n_subjects)], n_runs * n_volumes)),
    }
    voxel = np.arange(n_voxels)
    coords |= {"voxel": ("voxel", voxel)} | {n: ("voxel", i) for n, i in zip("ijk", np.unravel_index(voxel, SHAPE), strict=True)}
    attrs = {"affine": np.diag([3.0, 3, 3, 1]).tolist(), "shape": list(SHAPE)}
    return xr.Dataset({"bold": (("time", "voxel"), bold)}, coords=coords, attrs=attrs)


def streamed(n_runs, n_voxels=40_000, n_volumes=180):
    """Bytes made to float32 when they are read, labels, runs."""
    labels = np.tile([0, 1], n_runs * n_volumes // 2)
    noise = da.random.default_rng(0).integers(0, 256, (labels.size, n_voxels), dtype=np.uint8, chunks=(n_volumes, n_voxels))
    pattern = da.from_array(np.where(np.arange(n_voxels) < 500, 15, 0).astype(np.float32), chunks=-1)
    x = noise.astype(np.float32) + da.from_array(labels.astype(np.float32), chunks=n_volumes)[:, None] * pattern[None]
    return x, labels, np.repeat([f"{r:03d}" for r in range(n_runs)], n_volumes)


@contextlib.contextmanager
def watched(limit, *, may_spill=False):
    """One worker of one thread, which must not be killed; gives what it takes with packages only, and its peak.

    A worker begins to write to disk at 70 % of its limit, Python and the packages included: a small one may, and stay below its limit.
    """
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=limit, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        client.run(importlib.import_module, "daskdecode.tuning.pooled.stream")
        pids = [nanny.pid for nanny in cluster.workers.values()]
        took, stop = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(pids, took, stop))
        base = psutil.Process(pids[0]).memory_info().rss
        watcher.start()
        try:
            yield base, took
        finally:
            stop.set()
            watcher.join()
        assert [nanny.pid for nanny in cluster.workers.values()] == pids, "a worker was killed and begun anew"
        assert may_spill or set(client.run(_n_spilled).values()) == {0}


def test_a_stream_stays_within_a_worker_that_holds_a_quarter_of_the_study():
    limit = 900 * 2**20
    x, labels, runs = streamed(22 * 6)
    assert x.nbytes > 4 * limit
    halves = [np.flatnonzero(runs < "066"), np.flatnonzero(runs >= "066")]
    decoder = dd.Decoder(SGDClassifier(random_state=0), screening_percentile=20, cv=[tuple(halves), tuple(halves[::-1])])
    with watched(limit) as (_, peak):
        found = dd.search(decoder, x, {"alpha": [1e-4, 1e-1]}, labels, runs, route="stream", nested=False, refit=False)
    assert peak[0] < 0.7 * limit
    print(f"peak {peak[0] / 2**20:.0f} MiB of {limit / 2**20:.0f}, study {x.nbytes / 2**20:.0f} MiB")
    assert found.best_score_ > 0.9


def test_logistic_regression_takes_no_more_blocks_of_a_worker_than_are_set_aside_for_it():
    limit = 1700 * 2**20
    x, labels, runs = streamed(64)
    assert x.nbytes > limit
    # Nearly all samples train: blocks as large as they come.
    tests = [np.flatnonzero(runs == name) for name in ("000", "001")]
    splits = [(np.setdiff1d(np.arange(len(runs)), test), test) for test in tests]
    estimator = LogisticRegression(solver="lbfgs", max_iter=1, solver_kwargs={"normalize": False})
    decoder = dd.Decoder(estimator, screening_percentile=None, cv=splits)
    with watched(limit) as (base, peak):
        found = dd.search(decoder, x, {"C": [1e-3]}, labels, runs, route="stream", nested=False, refit=False)
    block = 2 * 180 * 40_000 * 4  # two runs fit into 64 MiB
    n_blocks = (peak[0] - base) / block
    print(f"{n_blocks:.1f} blocks, peak {peak[0] / 2**20:.0f} MiB of {limit / 2**20:.0f}, study {x.nbytes / 2**20:.0f} MiB")
    assert n_blocks < COPIES_OF_SOLVERS
    assert found.best_score_ > 0.8
    decoder.set_params(memory_budget=COPIES_OF_SOLVERS * block)
    with (
        dask.config.set(num_workers=1),
        pytest.raises(MemoryBudgetError, match=f"{COPIES_OF_SOLVERS} copies of a block"),
    ):
        dd.search(decoder, x, {"C": [1e-3]}, labels, runs, route="stream", nested=False, refit=False)


def test_hyperband_stays_within_workers_that_hold_a_quarter_of_the_study():
    limit = 640 * 2**20
    ds = pooled(n_subjects=16, n_runs=6, n_volumes=180, n_voxels=40_000)
    assert ds["bold"].nbytes > 4 * limit
    decoder = dd.Decoder(SGDClassifier(random_state=0), screening_percentile=20)
    with watched(limit, may_spill=True) as (_, peak):
        found = dd.search(decoder, ds, {"alpha": loguniform(1e-4, 1e2)}, method="hyperband", n_iter=9)
    assert peak[0] < limit
    print(f"peak {peak[0] / 2**20:.0f} MiB of {limit / 2**20:.0f}, study {ds['bold'].nbytes / 2**20:.0f} MiB, score {found.score_:.3f}")
    assert found.score_ > 0.9
