"""Pieces of work: one at a time on a worker, each told as it ends, blame where it belongs."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from threading import Timer

import dask
import psutil
import pytest
from dask.delayed import delayed
from distributed import Client, LocalCluster

import daskdecode as dd
from daskdecode.cluster.spread import _budget, run_each
from daskdecode.errors import ClusterError, MemoryBudgetError


@pytest.fixture
def client():
    """Two processes of two threads each, with little memory."""
    # allowed-failures is read by the scheduler when it starts.
    settings = {"distributed.scheduler.allowed-failures": 1, "distributed.scheduler.work-stealing": True}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=2, threads_per_worker=2, memory_limit="1GiB", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("limit", [None, 0, 2**34, 2**20])
def test_budgets_come_from_the_limit_of_the_worker(limit):
    if limit == 2**20:
        with pytest.raises(MemoryBudgetError, match="leaves nothing for the work"):
            _budget(limit, 1)
    elif limit:
        assert 0 < limit * 0.7 - _budget(limit, 4) < psutil.virtual_memory().total  # what Python takes
    else:
        free = psutil.virtual_memory().available
        assert _budget(limit, 4) == pytest.approx(free / 8, rel=0.2)


class Times:
    """Says in which process it ran, from when to when, and on what."""

    def __init__(self, seconds=0.3):
        self.seconds = seconds

    def __call__(self, nbytes):
        begun = time.time()
        # A graph of its own must run here: on the cluster's scheduler it would wait for this very thread.
        scheduler = dask.base.get_scheduler(collections=[delayed(1)])
        inner = dask.compute(*[delayed(os.getpid, pure=False)() for _ in range(4)])
        time.sleep(self.seconds)
        return {
            "pid": os.getpid(),
            "inner": set(inner),
            "from": begun,
            "to": time.time(),
            "nbytes": nbytes,
            "scheduler": scheduler.__module__,
        }


class Fails:
    def __call__(self, nbytes):
        raise ValueError("no such condition")


class Dies:
    def __call__(self, nbytes):
        os._exit(1)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_other_schedulers_work_one_after_another_and_yield_at_once(scheduler):
    seen = []

    def piece(name):
        return lambda nbytes: seen.append(name) or nbytes

    with dask.config.set(scheduler=scheduler):
        found = run_each({"a": piece("a"), "b": Fails(), "c": piece("c")})
        assert next(found) == ("a", None)
        assert seen == ["a"]
        name, error = next(found)
        assert name == "b"
        assert isinstance(error, ValueError)
        assert [name for name, _ in found] == ["c"]


@pytest.mark.slow
def test_one_piece_a_worker_on_its_threads_and_within_its_memory(client):
    found = dict(run_each({f"{n}": Times() for n in range(6)}))
    assert len({f["pid"] for f in found.values()}) == 2
    for pid in {f["pid"] for f in found.values()}:
        here = sorted((f["from"], f["to"]) for f in found.values() if f["pid"] == pid)
        assert len(here) == 3
        assert all(to <= begun for (_, to), (begun, _) in pairwise(here))
    assert all(f["inner"] == {f["pid"]} for f in found.values())
    assert all(f["scheduler"] == "dask.threaded" for f in found.values())
    assert all(0 < f["nbytes"] < 0.7 * 2**30 for f in found.values())


@pytest.mark.slow
def test_one_piece_a_process_where_workers_are_threads():
    with LocalCluster(n_workers=2, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster, Client(cluster):
        before = dask.config.get("scheduler")
        found = sorted((f["from"], f["to"]) for _, f in run_each({f"{n}": Times(0.1) for n in range(4)}))
        assert all(to <= begun for (_, to), (begun, _) in pairwise(found))
        assert dask.config.get("scheduler") == before


@pytest.mark.slow
def test_who_kills_workers_is_named_and_stops_nobody(client):
    pieces = {"a": Times(), "b": Dies(), "c": Fails(), "d": Times(), "e": Times()}
    found = dict(run_each(pieces))
    assert isinstance(found["b"], ClusterError)
    assert "workers died while they worked on" in str(found["b"])
    assert isinstance(found["c"], ValueError)
    assert all(isinstance(found[name], dict) for name in "ade")


def test_without_any_worker_left_the_cluster_is_blamed_and_no_piece():
    with dd.connect("threads", n_workers=1, timeout_s=1) as client:
        client.cluster.scale(0)
        while client.nthreads():
            time.sleep(0.05)
        with pytest.raises(ClusterError, match=r"workers have gone and none came back.*same call goes on"):
            list(run_each({"a": Times(), "b": Times()}))


@pytest.mark.slow
@pytest.mark.parametrize("work", [lambda: list(run_each({"a": Times(9), "b": Times(9)})), lambda: delayed(time.sleep)(9).compute()])
def test_a_scheduler_that_dies_is_blamed_and_no_piece(running, work):
    with dd.connect(running.address):
        timer = Timer(1, running.scheduler.kill)
        timer.start()
        with pytest.raises(ClusterError, match=r"connection to the scheduler was lost.*same call goes on"):
            work()
        timer.join()


@pytest.mark.slow
def test_an_active_scheduler_that_is_no_client_is_obeyed(client):
    with dask.config.set(scheduler="synchronous"):
        assert dict(run_each({"a": lambda nbytes: os.getpid()})) == {"a": os.getpid()}


@pytest.mark.slow
def test_workers_that_come_later_get_their_share(client):
    client.cluster.scale(1)
    client.wait_for_workers(1)
    pids = set()
    for n, (_, found) in enumerate(run_each({f"{n}": Times(1.0) for n in range(12)})):
        pids.add(found["pid"])
        if n == 0:
            client.cluster.scale(3)
    assert len(pids) >= 3
