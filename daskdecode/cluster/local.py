"""Workers on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any, Final

from dask.system import CPU_COUNT
from distributed import LocalCluster, Nanny, Status
from distributed.deploy.local import nprocesses_nthreads
from distributed.security import Security
from distributed.system import MEMORY_LIMIT

from daskdecode.cluster.client import CLOSE_S
from daskdecode.cluster.spec import ClusterSpec
from daskdecode.errors import ClusterError, ClusterSpecError

_LEAST_NBYTES: Final = 2**30
"""Memory below which a process does little else than hold Python and the packages."""
_KILL_S: Final = 5.0
"""Seconds in which a process that was killed is gone."""
LOOPBACK: Final = "127.0.0.1:0"
"""Any free port that other machines cannot reach."""


def start(spec: ClusterSpec, security: Security | None) -> LocalCluster:
    """Start processes sized to cores and memory, or threads of this process."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ClusterError(
            "connect() is being called by a worker that imports your script. Put what the script does under "
            "if __name__ == '__main__':, so that only the script itself does it."
        )
    fewest, most = spec.workers(0)
    if fewest != most:
        raise ClusterSpecError(f"n_workers is {[fewest, most]}, but on this machine workers do not come and go: expected a number.")
    address = dashboard_address(spec)
    common: dict[str, Any] = {
        "security": security,
        "silence_logs": "CRITICAL",  # what fails is raised; workers log a traceback where closing cuts a heartbeat off
        "local_directory": os.path.expandvars(spec.get("local_folder", "")) or None,
        "dashboard_address": address,
        "worker_dashboard_address": LOOPBACK,  # None would be every interface for a worker in this process
        "scheduler_kwargs": {"dashboard": bool(spec.get("dashboard", True))},
    }
    if spec.kind == "threads":
        return LocalCluster(processes=False, n_workers=1, threads_per_worker=most or CPU_COUNT, **common)
    n_workers, n_threads = sizes(most, spec.get("threads_per_worker", 0))
    limit = spec.get("memory_limit", MEMORY_LIMIT // n_workers)
    size = {"n_workers": n_workers, "threads_per_worker": n_threads, "memory_limit": limit, "death_timeout": spec.timeout_s}
    cluster, began, before = None, time.monotonic(), multiprocessing.active_children()
    try:
        with _without_ctrl_c():
            cluster = LocalCluster(**size, **common)
    except KeyboardInterrupt:
        if cluster is not None:
            close(cluster, CLOSE_S)
        raise
    except Exception as error:
        # distributed (to 2026.8) leaves processes that do not come up.
        for process in set(multiprocessing.active_children()).difference(before):
            process.kill()
            process.join(_KILL_S)
        if time.monotonic() - began < spec.timeout_s:
            raise
        raise ClusterError(
            f"{n_workers} worker processes have not come up within {spec.timeout_s:g} s. {why_no_workers(cluster)} timeout_s= waits longer."
        ) from error
    return cluster


def close(cluster: LocalCluster, timeout_s: float) -> str:
    """End it; processes that do not end by themselves are killed. Returns what is to be said of that, if anything."""
    nannies = [one for one in cluster.workers.values() if isinstance(one, Nanny)]
    pids = [nanny.pid for nanny in nannies if nanny.pid]
    try:
        cluster.close(timeout=timeout_s)
        return ""
    except AssertionError:  # distributed (to 2026.8), where one was just being started in the place of one that had died
        late = False
    except TimeoutError:
        late = True
    for nanny in nannies:
        nanny.status = Status.closing  # or it would start another
    for pid in {*pids, *(nanny.pid for nanny in nannies if nanny.pid)}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.status = Status.closed  # or it would be tried again at the end of the interpreter
    killed = f"Its processes were killed ({', '.join(map(str, pids))})." if pids else "Work of its threads ends with this process."
    return f"The local workers have not ended within {timeout_s:g} s. {killed}" if late else ""


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; threads and processes that it starts never get it.

    A terminal sends it to all processes. Workers, which would end with tracebacks and be started anew, are the driver's to end, and a
    cluster that has half started cannot be closed.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it would lift the block in the thread that starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def sizes(n_workers: int, n_threads: int) -> tuple[int, int]:
    """Processes and threads a process; 0 stands for what suits cores and memory."""
    if n_workers:
        return n_workers, n_threads or max(1, CPU_COUNT // n_workers)
    n_processes = max(1, CPU_COUNT // n_threads) if n_threads else nprocesses_nthreads(CPU_COUNT)[0]
    n_processes = max(1, min(n_processes, MEMORY_LIMIT // _LEAST_NBYTES))
    return n_processes, n_threads or max(1, CPU_COUNT // n_processes)


def dashboard_address(spec: ClusterSpec) -> str:
    """Where the scheduler's web server listens, which answers health checks even without a dashboard."""
    asked = spec.get("dashboard", True)
    return asked if isinstance(asked, str) else LOOPBACK


def why_no_workers(cluster: LocalCluster | None) -> str:  # noqa: ARG001  # as of the other kinds
    """What is known of workers that do not come."""
    return "Is the machine short of memory, or too busy? Fewer processes (n_workers=) may come up."


def hopeless(cluster: LocalCluster) -> str | None:  # noqa: ARG001
    """Workers of this machine come, or starting them fails."""
    return None
