"""The default budget knows limits beside the machine's memory."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from daskdecode.engine import plan

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
    limit = held + 400_000_000
    with LocalCluster(n_workers=1, processes=False, memory_limit=limit, dashboard_address=":0") as cluster, Client(cluster):
        assert plan.free_nbytes() <= 400_000_000
    assert plan._workers_limit() == float("inf")
