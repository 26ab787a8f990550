"""The default budget knows limits beside the machine's memory."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import dask
import psutil
import pytest

from daskdecode.engine import plan, workers
from daskdecode.errors import MemoryBudgetError

LIMITED = """
import resource
from daskdecode.engine.plan import free_nbytes, memory_budget
import psutil
held = psutil.Process().memory_info()
kind, taken = {"AS": (resource.RLIMIT_AS, held.vms), "DATA": (resource.RLIMIT_DATA, held.data)}["%s"]
resource.setrlimit(kind, (taken + 300_000_000, taken + 300_000_000))
print(free_nbytes(), memory_budget(None))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process that the system tells of")
@pytest.mark.parametrize("kind", ["AS", "DATA"])
def test_a_limit_of_the_process(kind):
    done = subprocess.run([sys.executable, "-c", LIMITED % kind], capture_output=True, text=True, check=True)
    free, budget = map(int, done.stdout.split())
    assert 250_000_000 < free <= 300_000_000
    assert abs(budget - free // 2) < 5_000_000


def test_a_limit_of_the_container(tmp_path, monkeypatch):
    held = psutil.Process().memory_info().rss
    (tmp_path / "memory.max").write_text(f"{held + 200_000_000}\n")
    (tmp_path / "memory.high").write_text("max\n")
    monkeypatch.setattr(plan, "_CGROUP_LIMITS", [str(tmp_path / name) for name in ("memory.max", "memory.high", "none")])
    assert 150_000_000 < plan.free_nbytes() <= 210_000_000
    (tmp_path / "memory.max").write_text("1000\n")
    assert plan.free_nbytes() == 0


def test_a_limit_of_the_workers():
    from distributed import Client, LocalCluster

    held = psutil.Process().memory_info().rss
    limit = 2 * held + 800_000_000
    with LocalCluster(n_workers=1, processes=False, memory_limit=limit, dashboard_address=":0") as cluster, Client(cluster):
        # Seven tenths of the limit: before it is full, a worker takes no more tasks.
        assert plan.memory_budget(None) <= 0.7 * limit - held
        # What is asked for is held to what a worker that holds nothing would have.
        assert plan.memory_budget("1TB") == int(0.7 * limit) - workers._PACKAGES_NBYTES
        assert plan.memory_budget("10MB") == 10_000_000
    assert plan.memory_budget("1TB") == 10**12
    assert workers.limit_nbytes() == float("inf")


def test_workers_too_small_for_python_itself_are_named():
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=1, processes=False, memory_limit="300MB", dashboard_address=":0") as cluster, Client(cluster):
        for budget in (None, "100MB"):
            with pytest.raises(MemoryBudgetError, match=r"memory limit of a worker, 286\.10 MiB, leaves nothing for the work"):
                plan.memory_budget(budget)


def test_threads_are_those_of_whoever_works():
    from distributed import Client, LocalCluster

    with dask.config.set(num_workers=5):
        assert workers.n_threads_of_one() == workers.n_threads_of_all() == 5
    with ThreadPoolExecutor(3) as pool, dask.config.set(pool=pool):
        assert workers.n_threads_of_one() == workers.n_threads_of_all() == 3
    with LocalCluster(n_workers=2, threads_per_worker=4, processes=False, dashboard_address=":0") as cluster, Client(cluster):
        assert (workers.n_threads_of_one(), workers.n_threads_of_all()) == (4, 8)
