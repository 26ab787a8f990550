"""Whoever made the client: work that loses its workers or its scheduler ends in a ClusterError that says so, and keeps its cause."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import dask
import numpy as np
import pytest
from distributed import Client, KilledWorker, LocalCluster, SchedulerPlugin
from sklearn.linear_model import SGDClassifier

import daskdecode as dd
from daskdecode.errors import ClusterError

RNG = np.random.default_rng(0)
X, Y, RUNS = RNG.standard_normal((24, 30)), ["a", "b"] * 12, np.repeat([0, 1, 2], 8)
DECODER = dd.Decoder(SGDClassifier(random_state=0), screening_percentile=None)
GRID = {"alpha": [1e-3, 1e-2]}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A simulated study, and its store."""
    folder = tmp_path_factory.mktemp("study")
    bids = dd.simulate_study(folder / "bids", n_subjects=2, n_runs=2, shape=(7, 8, 9))
    return bids, dd.convert(bids, folder / "study.zarr", progress=False)


@pytest.fixture(scope="module")
def fitted():
    return dd.Decoder(SGDClassifier(random_state=0), screening_percentile=None).fit(X, Y, RUNS)


WORK = {
    "simulate": lambda s, f, tmp: dd.simulate_study(tmp / "bids", shape=(7, 8, 9), n_runs=2),
    "convert": lambda s, f, tmp: dd.convert(s[0], tmp / "s.zarr", progress=False),
    "verify": lambda s, f, tmp: dd.verify(s[1], progress=False),
    "export": lambda s, f, tmp: dd.export(dd.open_subject(s[1], "01"), tmp / "out.nii"),
    "mean_image": lambda s, f, tmp: dd.mean_image(dd.open_subject(s[1], "01")),
    "to_nifti": lambda s, f, tmp: dd.to_nifti(dd.open_subject(s[1], "01").bold, dd.open_subject(s[1], "01")),
    "decode": lambda s, f, tmp: DECODER.fit(X, Y, RUNS),
    "predict": lambda s, f, tmp: f.predict(X, RUNS),
    "permute": lambda s, f, tmp: dd.permutation_test(DECODER, X, Y, RUNS, n_permutations=5),
    "cross": lambda s, f, tmp: dd.cross_decode(DECODER, X, Y, RUNS, train={"a": 1, "b": 2}, test={"a": 1, "b": 2}),
    "times": lambda s, f, tmp: dd.temporal_generalization(DECODER, X, np.repeat(Y, 1), RUNS, lags=[0]),
    "grid": lambda s, f, tmp: dd.search(DECODER, X, GRID, Y, RUNS),
    "stream": lambda s, f, tmp: dd.search(DECODER, X, GRID, Y, RUNS, route="stream"),
    "hyperband": lambda s, f, tmp: dd.search(DECODER, X, GRID, Y, RUNS, method="hyperband", n_iter=2),
    "study": lambda s, f, tmp: dd.decode_study(s[1], dd.Decoder("lda"), progress=False),
}


class _At(SchedulerPlugin):
    """Do something to the scheduler as soon as it gives a worker a task."""

    def __init__(self, scheduler, do):
        self.scheduler, self.do, self.begun = scheduler, do, []

    def transition(self, key, start, finish, *args, **kwargs):
        if finish == "processing" and not self.begun:
            # The task that was given is told to the worker after this.
            self.begun.append(asyncio.ensure_future(self.do(self.scheduler)))


async def _lose_workers(scheduler):
    for address in list(scheduler.workers):
        await scheduler.remove_worker(address, stimulus_id="test")


async def _close(scheduler):
    await scheduler.close()


@pytest.fixture
def losing():
    """A client that daskdecode did not make, on a cluster that something happens to."""
    size = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.comm.timeouts.connect": "1s"}),
        LocalCluster(**size, silence_logs="CRITICAL") as cluster,
        Client(cluster.scheduler_address) as client,
    ):
        yield lambda do: client.sync(_add, cluster.scheduler, do)


async def _add(scheduler, do):
    scheduler.add_plugin(_At(scheduler, do), name="at")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("work", [name for name in WORK if name != "study"])
def test_workers_that_die_of_a_task_are_named_whoever_made_the_client(study, fitted, losing, tmp_path, work):
    losing(_lose_workers)
    with pytest.raises(ClusterError, match=r"^1 worker died while it worked on .*memory.*allowed_failures=") as caught:
        WORK[work](study, fitted, tmp_path)
    assert isinstance(caught.value.__cause__, KilledWorker)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("work", WORK)
def test_a_scheduler_that_goes_is_named_whoever_made_the_client(study, fitted, losing, tmp_path, work):
    losing(_close)
    with pytest.raises(ClusterError, match=r"^The connection to the scheduler was lost.*same call goes on from there") as caught:
        WORK[work](study, fitted, tmp_path)
    assert caught.value.__cause__ is not None
    assert not isinstance(caught.value.__cause__, ClusterError)  # said once


@pytest.mark.parametrize("work", ["decode", "grid"])
def test_warnings_point_at_the_caller_all_the_same(work):
    hasty = dd.Decoder(SGDClassifier(random_state=0, max_iter=1), screening_percentile=None)
    with pytest.warns(UserWarning, match="largest number of iterations") as caught:
        hasty.fit(X, Y, RUNS) if work == "decode" else dd.search(hasty, X, GRID, Y, RUNS, nested=False, refit=False)
    assert {warning.filename for warning in caught} == {__file__}


def test_words_cost_no_import_of_distributed():
    said = "import sys, daskdecode, daskdecode.lost, daskdecode.cli.main; sys.exit('distributed' in sys.modules)"
    subprocess.run([sys.executable, "-c", said], check=True)
