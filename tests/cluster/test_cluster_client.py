"""The client: work does not wait for ever for workers that have gone, whoever started the scheduler, and does wait for those that come."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from threading import Thread, Timer

import numpy as np
import pytest
from dask.delayed import delayed
from distributed.client import AllExit
from sklearn.linear_model import SGDClassifier

import daskdecode as dd
from daskdecode.cluster.spec import read_spec
from daskdecode.cluster.spread import run_each
from daskdecode.errors import ClusterError

RNG = np.random.default_rng(0)
X, Y, RUNS = RNG.standard_normal((24, 30)), ["a", "b"] * 12, np.repeat([0, 1, 2], 8)


class Slowly(SGDClassifier):
    """Time enough for the workers to go while it is fitted."""

    def fit(self, *args, **kwargs):
        time.sleep(2)
        return super().fit(*args, **kwargs)

    def partial_fit(self, *args, **kwargs):
        time.sleep(2)
        return super().partial_fit(*args, **kwargs)


def _decode():
    dd.Decoder(Slowly(), screening_percentile=None).fit(X, Y, RUNS)


def _search():
    dd.search(dd.Decoder(Slowly(), screening_percentile=None), X, {"alpha": [1e-3, 1e-2]}, Y, RUNS)


def _permute():
    dd.permutation_test(dd.Decoder(Slowly(), screening_percentile=None), X, Y, RUNS, n_permutations=20)


def _hyperband():
    dd.search(dd.Decoder(Slowly(), screening_percentile=None), X, {"alpha": [1e-3, 1e-2]}, Y, RUNS, method="hyperband", n_iter=3)


def _study():
    list(run_each({"a": lambda nbytes: time.sleep(20), "b": lambda nbytes: time.sleep(20)}))


def _graph():
    delayed(time.sleep)(20).compute()


@pytest.mark.slow
@pytest.mark.timeout(120)  # of what waits for ever otherwise
@pytest.mark.parametrize("work", [_decode, _search, _permute, _hyperband, _study, _graph])
def test_workers_that_go_and_do_not_come_back_are_an_error_though_the_scheduler_would_wait(running, work):
    with dd.connect(running.address) as client:
        client.patience_s, client._n_looks = 2.0, 1  # the time to come up, which workers need on a busy machine, is not that to wait here
        timer = Timer(3, running.kill_workers)
        timer.start()
        with pytest.raises(ClusterError, match=r"gone and none came back within 2 s\. .*dask worker.*timeout_s=.*same call goes on"):
            work()
        timer.join()
        running.start_worker()
        client.wait_for_workers(1, timeout=60)  # it may need longer to come up than work is to wait here
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3  # the client is as good as before


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_conversion_whose_workers_go_and_do_not_come_back_is_an_error_and_goes_on(running, until, tmp_path):
    bids = dd.simulate_study(tmp_path / "bids", n_subjects=2, n_runs=3, shape=(7, 8, 9))
    with dd.connect(running.address) as client:
        client.patience_s, client._n_looks = 2.0, 1

        def kill():
            until(lambda: client.futures)  # the first thing that a conversion asks for; a worker has to import a lot before
            running.kill_workers()

        killer = Thread(target=kill)
        killer.start()
        with pytest.raises(ClusterError, match=r"gone and none came back within 2 s\. .*dask worker.*same call goes on"):
            dd.convert(bids, tmp_path / "study.zarr", progress=False)
        killer.join()
        running.start_worker()
        client.wait_for_workers(1, timeout=60)
        assert not dd.verify(dd.convert(bids, tmp_path / "study.zarr", progress=False), progress=False).problems


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_workers_that_come_back_in_time_go_on(running):
    with dd.connect(running.address, timeout_s=60) as client:
        begun = client.submit(time.sleep, 3)
        time.sleep(1)
        running.kill_workers()
        time.sleep(5)  # looks in vain
        assert client._n_in_vain
        running.start_worker()
        assert begun.result(timeout=60) is None
        assert delayed(sum)([1, 2]).compute() == 3


@pytest.mark.timeout(60)
def test_only_the_time_in_which_work_waits_counts(until):
    with dd.connect("threads", n_workers=1, timeout_s=2) as client:
        client.cluster.scale(0)
        until(lambda: not client.nthreads())
        time.sleep(2.5)  # nobody asks for anything: adaptive clusters have no workers then
        waiting = client.submit(sum, [1, 2])
        time.sleep(0.6)  # more than from one look to the next
        client.cluster.scale(1)
        assert waiting.result(timeout=30) == 3


@pytest.mark.timeout(60)
def test_what_is_known_of_the_workers_is_said_and_asking_may_fail(until):
    with dd.connect("threads", n_workers=1, timeout_s=0.5) as client:
        client.cluster.scale(0)
        until(lambda: not client.nthreads())
        client.why = lambda: "slurm says of job 7: PENDING (Resources)."
        with pytest.raises(ClusterError, match=r"within 0\.5 s\. slurm says of job 7: PENDING \(Resources\)\. timeout_s="):
            delayed(sum)([1, 2]).compute()
        client.why = lambda: 1 / 0
        with pytest.raises(CancelledError, match="division by zero"):  # what is submitted to Dask itself ends too
            client.submit(sum, [1, 2]).result(timeout=30)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("quick", [True, False])
def test_it_is_logged_when_work_begins_to_wait_and_when_workers_are_back(until, caplog, quick):
    with dd.connect("threads", n_workers=1, timeout_s=5) as client:
        client.why = lambda: "slurm says of job 7: PENDING (Resources)." if quick else time.sleep(4)
        client.cluster.scale(0)
        until(lambda: not client.nthreads())
        waiting = client.submit(sum, [1, 2])
        until(lambda: [record for record in caplog.records if record.name == "daskdecode"])
        client.cluster.scale(1)
        assert waiting.result(timeout=30) == 3
        until(lambda: len([record for record in caplog.records if record.name == "daskdecode"]) == 2)
    begun, back = (record for record in caplog.records if record.name == "daskdecode")
    reason = " slurm says of job 7: PENDING (Resources)." if quick else ""
    assert begun.getMessage() == "There are no workers: work waits for them, at most about 5 s." + reason
    assert back.getMessage() == "Workers are back: work goes on."
    assert {begun.levelname, back.levelname} == {"WARNING"}


def test_workers_of_a_scheduler_that_runs_may_have_to_queue():
    assert (read_spec("tcp://h:1", {}).timeout_s, read_spec("tcp://h:1", {}).patience_s) == (30, 900)
    assert (read_spec("local", {}).timeout_s, read_spec("local", {}).patience_s) == (60, 60)
    assert (read_spec("slurm", {}).timeout_s, read_spec("slurm", {}).patience_s) == (900, 900)
    assert (read_spec("tcp://h:1", {"timeout_s": 7}).timeout_s, read_spec("tcp://h:1", {"timeout_s": 7}).patience_s) == (7, 7)


def test_what_distributed_stopped_is_not_logged_as_not_handled(caplog):
    """After Ctrl-C it would be a traceback a task; what else a loop cannot handle is logged as ever."""
    with dd.connect("threads", n_workers=1) as client:
        loop = client.loop.asyncio_loop
        for error in (AllExit(), ValueError("not this one")):
            loop.call_soon_threadsafe(loop.call_exception_handler, {"message": "Task exception was never retrieved", "exception": error})
        client.submit(sum, [1]).result(timeout=30)
    said = [record.exc_info[0] for record in caplog.records if record.name == "asyncio"]
    assert said == [ValueError]
