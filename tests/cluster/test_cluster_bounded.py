"""Starting and closing end in time, whatever a batch system, a server or a process does; what may be left is named."""

from __future__ import annotations

import gc
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import types

import psutil
import pytest

import daskdecode as dd
from daskdecode.cluster import batch, connect, gateway, kubernetes
from daskdecode.cluster.bounded import within
from daskdecode.errors import ClusterError


def _said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "daskdecode"]


@pytest.fixture
def quickly(monkeypatch):
    """Limits that a test can wait for."""
    monkeypatch.setattr(gateway, "_STOP_S", 1.0)
    monkeypatch.setattr(kubernetes, "_STOP_S", 1.0)


def test_what_does_not_return_is_given_up_and_undone_when_it_does():
    goes_on, undone = threading.Event(), []
    with pytest.raises(TimeoutError):
        within(0.05, lambda: goes_on.wait() and 7, undo=undone.append)
    goes_on.set()
    end = time.monotonic() + 10
    while not undone and time.monotonic() < end:
        time.sleep(0.01)
    assert undone == [7]
    assert within(10, lambda: 3, undo=undone.append) == 3
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 / 0)
    assert undone == [7]


def test_the_interpreter_does_not_wait_for_it():
    script = "import threading\nfrom daskdecode.cluster.bounded import within\nwithin(0.1, threading.Event().wait)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert ended.stderr.rstrip().endswith("TimeoutError")


# --- this machine -----------------------------------------------------------------------------------------------------------------


def _script(tmp_path, body):
    """A driver of its own: what it leaves behind, and whether it ends, is seen from outside."""
    path = tmp_path / "driver.py"
    lines = [
        "import asyncio, dask, os, psutil",
        "from distributed import LocalCluster",
        "import daskdecode as dd",
        "from daskdecode.cluster import connect",
    ]
    path.write_text("\n".join([*lines, "if __name__ == '__main__':", *(f"    {line}" for line in body.splitlines())]))
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=50, check=False)


def test_processes_that_do_not_come_up_are_named_and_gone(tmp_path):
    ended = _script(
        tmp_path,
        """dask.config.set({"distributed.worker.preload": ["import time; time.sleep(1000)"]})
try:
    dd.connect("local", n_workers=2, threads_per_worker=1, timeout_s=3)
finally:
    print([child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())])""",
    )
    said = ended.stderr.splitlines()[-1]
    assert said.startswith("daskdecode.errors.ClusterError: 2 worker processes have not come up within 3 s.")
    assert "timeout_s= waits longer." in said
    assert ended.stdout == "[]\n"


def test_a_local_cluster_that_does_not_close_is_killed(tmp_path, until):
    ended = _script(
        tmp_path,
        """connect.CLOSE_S = 1.0
client = dd.connect("local", n_workers=1, threads_per_worker=1)
print(*client.run(os.getpid).values())
LocalCluster._close = lambda self: asyncio.sleep(1000)
client.close()
print(dask.base.get_scheduler())
client.close()""",
    )
    pid, scheduler = ended.stdout.split()
    assert scheduler == "None"
    assert ended.stderr.count(f"The local workers have not ended within 1 s. Its processes were killed ({pid}).") == 1
    until(lambda: not psutil.pid_exists(int(pid)))
    assert ended.returncode == 0


def test_a_local_cluster_that_is_closed_while_it_starts_a_worker_ends_all_the_same(tmp_path, until):
    """What distributed 2026.8 raises then, now and then."""
    ended = _script(
        tmp_path,
        """async def close(self):
    raise AssertionError("Status.starting")
LocalCluster._close = close
with dd.connect("local", n_workers=1, threads_per_worker=1) as client:
    print(*client.run(os.getpid).values())""",
    )
    assert (ended.returncode, "Error" in ended.stderr) == (0, False), ended.stderr
    until(lambda: not psutil.pid_exists(int(ended.stdout)))  # whoever inherits it may take a moment to notice its end


# --- a batch system ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm_of(tmp_path, monkeypatch):
    """Commands of a Slurm as scripts."""
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def make(**commands):
        for name, line in commands.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / "bin" / name).chmod(0o755)

    return make


def _stuck(number):
    """A command that does not end, told from those of tests beside this one."""
    return f"sleep 12{number}{os.getpid()}"


def _running(command):
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == command.split()]


def _connect(tmp_path, **options):
    size = {"threads_per_worker": 1, "memory_limit": "1GB", "interface": "lo", "log_folder": str(tmp_path / "logs"), "n_workers": 2}
    return dd.connect("slurm", **size, **options)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a loop that ended while a command ran
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("timeout_s", "said"), [(1.8, "sbatch has not answered yet"), (30, r"sbatch has not answered within 2 s")])
def test_a_batch_system_that_does_not_take_jobs(slurm_of, tmp_path, caplog, monkeypatch, timeout_s, said):
    monkeypatch.setattr(batch, "PATIENCE_S", 2.0)
    stuck = _stuck(1)
    slurm_of(sbatch=stuck, squeue="exit 0", scancel=stuck)
    with pytest.raises(ClusterError, match=rf"^No worker (came within|will come).*{said}"):
        _connect(tmp_path, timeout_s=timeout_s)
    assert not _said(caplog)  # there is no job to cancel
    assert not _running(stuck)
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a loop that ended while a command ran
@pytest.mark.timeout(60)
@pytest.mark.parametrize("patience_s", [1.0, 8.0])
def test_a_batch_system_that_does_not_cancel_jobs(slurm_of, tmp_path, caplog, monkeypatch, until, patience_s):
    monkeypatch.setattr(batch, "PATIENCE_S", patience_s)
    monkeypatch.setattr(connect, "CLOSE_S", 3.0)
    slurm_of(sbatch="echo Submitted batch job 12", squeue="echo '12|PENDING|Resources'", scancel=_stuck(2))
    with pytest.raises(ClusterError, match=r"No worker came within 2 s .*slurm says of job 12: PENDING \(Resources\)"):
        _connect(tmp_path, timeout_s=2)
    (said,) = _said(caplog)
    assert said == "scancel does not answer: jobs may be left in the queue. Once it does, remove them: scancel 12 12"
    until(lambda: not _running(_stuck(2)))
    gc.collect()


# --- a gateway --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """The address of a gateway that takes a cluster and never starts it, or answers nothing at all; and what it was asked."""
    pytest.importorskip("dask_gateway")
    asked, hangs = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        answers = True

        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            if not self.answers or "?wait" in self.path:
                hangs.wait()
            body = json.dumps({"cluster_options": [], "name": "lab.1"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = do_GET  # noqa: N815  # names of the standard library

        def log_message(self, *_):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield types.SimpleNamespace(address=f"http://127.0.0.1:{found.server_port}", asked=asked, handler=Handler)
    hangs.set()
    found.shutdown()
    found.server_close()


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the library's own client, when it is collected
def test_a_gateway_that_never_starts_a_cluster_is_told_to_stop_it(server, quickly):
    with pytest.raises(ClusterError, match=rf"^The gateway {server.address} does not start a cluster: it has not within 2 s\.$"):
        dd.connect("gateway", address=server.address, timeout_s=2)
    assert "DELETE /api/v1/clusters/lab.1" in server.asked


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_gateway_that_says_nothing(server, quickly):
    server.handler.answers = False
    with pytest.raises(ClusterError, match=rf"^The gateway {server.address} does not start a cluster: it has not within 1 s\.$"):
        dd.connect("gateway", address=server.address, timeout_s=1)


def test_a_cluster_that_a_gateway_does_not_end_is_named():
    stuck = threading.Event()
    cluster = types.SimpleNamespace(close=stuck.wait, name="lab.1", gateway=types.SimpleNamespace(address="http://g:1"))
    said = gateway.close(cluster, 0.1)
    assert said.endswith("remove it: dask_gateway.Gateway('http://g:1').stop_cluster('lab.1')")
    stuck.set()
    assert gateway.close(cluster, 10) == ""


# --- Kubernetes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("closes", [True, False])
def test_a_kubernetes_that_does_not_answer(monkeypatch, quickly, closes):
    """A stand-in for the operator, as there is no Kubernetes where tests run."""
    stuck, closed = threading.Event(), []

    class KubeCluster:
        def __init__(self, *, custom_cluster_spec, namespace, **_):
            self.name, self.namespace = custom_cluster_spec["metadata"]["name"], namespace
            stuck.wait()

        def close(self, timeout=3600):
            closed.append(timeout)
            if not closes:
                stuck.wait()

    monkeypatch.setitem(sys.modules, "dask_kubernetes", types.ModuleType("dask_kubernetes"))
    monkeypatch.setitem(sys.modules, "dask_kubernetes.operator", types.SimpleNamespace(KubeCluster=KubeCluster))
    left = "" if closes else r" Kubernetes has not ended cluster daskdecode-\w+ .*kubectl delete daskcluster daskdecode-\w+ -n lab"
    with pytest.raises(ClusterError, match=rf"^Kubernetes did not start a scheduler: it has not within 0\.5 s\.{left}$"):
        dd.connect("kubernetes", threads_per_worker=2, memory_limit="8GB", namespace="lab", timeout_s=0.5)
    assert closed == [1.0]
    stuck.set()


def test_a_package_that_only_the_main_thread_can_import_is_named(slurm_of, tmp_path):
    slurm_of(sbatch="exit 0", squeue="exit 0", scancel="exit 0")
    ended = _script(
        tmp_path,
        """import threading
def go():
    try:
        dd.connect("slurm")
    except dd.errors.ClusterSpecError as error:
        print(error)
thread = threading.Thread(target=go)
thread.start()
thread.join()""",
    )
    assert ended.stdout.startswith("dask_jobqueue can be imported in the main thread only"), ended.stderr
