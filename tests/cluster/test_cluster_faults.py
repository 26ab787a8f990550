"""Workers that die all the time, a driver that dies: the same numbers in the end, and little done twice."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import dask
import numpy as np
import psutil
import pytest

import daskdecode as dd
from tests.killing import every_life, killing, killing_workers

N_PERMUTATIONS = 1000


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Enough to be caught in the middle of it: 12 runs of some 10 MB."""
    return dd.simulate_study(tmp_path_factory.mktemp("faults") / "bids", n_runs=12, shape=(30, 34, 26), n_blocks=2, signal=1.0)


def _analysis(study, store):
    """Convert, decode, and test with permutations: everything that is to be the same wherever it is done."""
    dd.convert(study, store, mask="none", progress=False)
    ds = dd.select_labels(dd.open_subject(store), ["face", "cat"])
    decoder = dd.Decoder("ridge_classifier", screening_percentile=100)
    fitted = decoder.fit(ds)
    tested = dd.permutation_test(dd.Decoder("ridge_classifier", screening_percentile=100), ds, n_permutations=N_PERMUTATIONS)
    return {"bold": _bold(store), "coef": fitted.coef_, "scores": np.array(list(fitted.cv_scores_.values())), "null": tested.null}


def _search(store):
    """Score 20 settings on 12 folds."""
    ds = dd.select_labels(dd.open_subject(store), ["face", "cat"])
    found = dd.search(dd.Decoder("svc", screening_percentile=100), ds, {"C": np.geomspace(1e-4, 10, 20)}, nested=False, refit=False)
    return np.stack([found.cv_results_[f"split{fold}_test_score"] for fold in range(12)])


def _bold(store):
    with dask.config.set(scheduler="threads"):
        return dd.open_subject(store).bold.values


@pytest.fixture(scope="module")
def expected(study, tmp_path_factory):
    with dask.config.set(scheduler="threads"):
        return _analysis(study, tmp_path_factory.mktemp("faults") / "threads.zarr")


def _assert_same(found, expected):
    np.testing.assert_array_equal(found["bold"], expected["bold"])
    for name in ("coef", "scores", "null"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_processes_that_are_killed_all_the_time(study, expected, tmp_path):
    with dd.connect("local", n_workers=2, threads_per_worker=1, allowed_failures=1000) as client, killing_workers(client) as killed:
        while len(killed) < 2:
            _assert_same(_analysis(study, tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"), expected)


@pytest.mark.slow
def test_searches_on_processes_that_are_killed_all_the_time(study, tmp_path):
    store = tmp_path / "s.zarr"
    with dask.config.set(scheduler="threads"):
        dd.convert(study, store, mask="none", progress=False)
        expected = _search(store)
    with (
        dd.connect("local", n_workers=2, threads_per_worker=1, allowed_failures=1000) as client,
        killing_workers(client, lives=1.5) as killed,
    ):
        while len(killed) < 3:
            np.testing.assert_allclose(_search(store), expected, rtol=0, atol=1e-10)


@pytest.mark.cluster
def test_jobs_that_are_killed_all_the_time(slurm, spec, study, expected, tmp_path, monkeypatch, until):
    monkeypatch.setitem(dask.config.config["distributed"]["deploy"], "lost-worker-timeout", "1s")

    begun = time.monotonic()
    with dd.connect("slurm", n_workers=2, allowed_failures=1000, **spec) as client:

        def kill(n):
            # The processes themselves: what scancel kills gets SIGTERM first, and a worker hands on what it holds.
            asked = [p for p in psutil.process_iter(["cmdline"]) if client.cluster.scheduler_address in (p.info["cmdline"] or [])]
            if len(client.cluster.scheduler.workers) < 2 or len(asked) < 2:
                return False
            for process in (asked[n % len(asked)], *asked[n % len(asked)].children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return True

        with killing(kill, every_life(client, begun)) as killed:
            _assert_same(_analysis(study, tmp_path / "s.zarr"), expected)
            searched = _search(tmp_path / "s.zarr")
    assert len(killed) >= 2
    with dask.config.set(scheduler="threads"):
        np.testing.assert_allclose(searched, _search(tmp_path / "s.zarr"), rtol=0, atol=1e-10)
    until(lambda: not slurm())


@pytest.mark.cluster
def test_slurm_gives_what_threads_give_and_both_nodes_work(slurm, spec, study, expected, tmp_path, until):
    from distributed.diagnostics.plugin import SchedulerPlugin

    class Where(SchedulerPlugin):
        def __init__(self):
            self.workers = {}

        def transition(self, key, start, finish, *args, worker=None, **kwargs):
            if (start, finish) == ("processing", "memory"):
                self.workers[worker] = self.workers.get(worker, 0) + 1

    with dd.connect("slurm", n_workers=3, **spec) as client:
        client.wait_for_workers(3, timeout=60)
        where = Where()
        client.cluster.scheduler.add_plugin(where)
        nodes = client.run(lambda: os.environ["SLURMD_NODENAME"])
        _assert_same(_analysis(study, tmp_path / "s.zarr"), expected)
        searched = _search(tmp_path / "s.zarr")
    with dask.config.set(scheduler="threads"):
        np.testing.assert_allclose(searched, _search(tmp_path / "s.zarr"), rtol=0, atol=1e-10)
    assert len({nodes[worker] for worker in where.workers}) == 2
    until(lambda: not slurm())


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_was(study, expected, tmp_path):
    """Killed while it converts on processes of its own: started again, it writes only what was not whole."""
    store = tmp_path / "s.zarr"
    code = (
        "import daskdecode as dd\n"
        "if __name__ == '__main__':\n"
        "    with dd.connect('local', n_workers=1, threads_per_worker=1):\n"
        f"        dd.convert({str(study)!r}, {str(store)!r}, mask='none', progress=False)\n"
    )
    (tmp_path / "driver.py").write_text(code)

    def whole():
        found = store.rglob("zarr.json")
        return {path.parent for path in found if path.parent.name.startswith("run-") and '"fingerprint"' in path.read_text()}

    driver = subprocess.Popen([sys.executable, str(tmp_path / "driver.py")], start_new_session=True)
    try:
        while len(whole()) < 4:
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    time.sleep(3)  # its workers notice that their scheduler has gone
    kept = {path: max(file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()) for path in whole()}
    assert 4 <= len(kept) < 12
    with dask.config.set(scheduler="threads"):
        dd.convert(study, store, mask="none", progress=False)
    assert len(whole()) == 12
    # consolidated metadata are written anew for all; values are not
    for path, written in kept.items():
        assert max(file.stat().st_mtime_ns for file in (path / "bold").rglob("*") if file.is_file()) <= written
    np.testing.assert_array_equal(_bold(store), expected["bold"])
