"""What tests on a real batch system need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest


def pytest_collection_modifyitems(items):
    """What stands still on a batch system is named, with all its threads, long before anybody gives up waiting."""
    for item in items:
        if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="session")
def slurm():
    """Slurm with two idle nodes or more, or a skip that says what is missing. Returns a function that lists the jobs in the queue."""
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed (on Debian: apt-get install slurm-wlm munge)")
    command = ["sinfo", "-h", "-N", "-t", "idle,mix,alloc", "-o", "%N"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"Slurm does not answer within 20 s (SLURM_CONF is {os.environ.get('SLURM_CONF')!r})")
    if said.returncode or len(set(said.stdout.split())) < 2:
        pytest.skip(f"no Slurm with two nodes answers (SLURM_CONF is {os.environ.get('SLURM_CONF')!r}): {said.stderr.strip()[:200]}")

    def jobs():
        lines = subprocess.run(["squeue", "-h", "-o", "%i %T"], capture_output=True, text=True, check=True).stdout.splitlines()
        return {job: state for job, state in map(str.split, lines) if state != "COMPLETING"}

    assert not jobs(), "the tests need a queue of their own"
    yield jobs
    assert not jobs(), "jobs are left in the queue"


@pytest.fixture
def spec(tmp_path):
    """What a job of the tests is like."""
    return {"interface": "lo", "threads_per_worker": 1, "memory_limit": "1GB", "log_folder": str(tmp_path / "logs"), "timeout_s": 90}


@pytest.fixture
def until():
    """Wait for something, at most a minute."""

    def wait(condition, seconds=60):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.2)
        return found

    return wait


class Running:
    """A scheduler in a process of its own, as ``dask scheduler`` starts it, and workers that come when they are called."""

    def __init__(self, folder):
        self.file = folder / "scheduler.json"
        self.workers = []
        self.scheduler = self._start("scheduler", "--port", "0", "--host", "127.0.0.1")
        end = time.monotonic() + 60
        while not (said := self.file.read_text() if self.file.exists() else "").rstrip().endswith("}"):  # it is not written at once
            assert time.monotonic() < end, "no scheduler came up"
            time.sleep(0.1)
        self.address = json.loads(said)["address"]

    def _start(self, role, *said):
        quiet = ["--dashboard-address", "127.0.0.1:0", "--no-dashboard"]
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", "--scheduler-file", str(self.file), *quiet, *said]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start_worker(self):
        self.workers.append(self._start("worker", "--nthreads", "1", "--no-nanny"))

    def kill_workers(self):
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.workers.clear()


@pytest.fixture
def running(tmp_path):
    """A scheduler that was running before, with one worker."""
    found = Running(tmp_path)
    try:
        found.start_worker()
        yield found
    finally:
        found.kill_workers()
        found.scheduler.kill()
        found.scheduler.wait()
