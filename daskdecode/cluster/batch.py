"""Workers as jobs of a batch system, by way of dask-jobqueue: one worker a job, replaced when it is lost or its walltime ends."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import dask
from distributed import Status
from distributed.deploy.spec import ProcessInterface
from distributed.security import Security
from tornado.ioloop import PeriodicCallback

from daskdecode.cluster.local import LOOPBACK, dashboard_address
from daskdecode.cluster.options import OPTIONS, clock
from daskdecode.cluster.queues import PATIENCE_S, SYSTEMS, BatchSystem, job_states
from daskdecode.cluster.spec import ClusterSpec
from daskdecode.errors import ClusterSpecError

N_WORKERS: Final = 4
"""Workers where nothing is said: few enough for any queue, enough to be worth the wait."""
_LOOK_S: Final = 30.0
"""How often jobs whose worker has not come are looked for in the queue, seconds."""
_LOG_TAIL: Final = 3
"""Lines of a job's log that are quoted."""


def start(spec: ClusterSpec, security: Security | None) -> Any:
    """Start a scheduler here and ask for jobs; returns before any of them runs.

    Raises
    ------
    ClusterSpecError
        dask-jobqueue is missing, cores and memory are said nowhere, or the batch system's commands are not here.
    """
    system = SYSTEMS[spec.kind]
    jobqueue = require(spec.kind, "dask_jobqueue", "jobqueue")
    if shutil.which(system.submit) is None:
        raise ClusterSpecError(f"The command {system.submit} is not here: {spec.kind} can be used only where jobs are submitted.")
    base = getattr(jobqueue, system.cluster)
    # Whatever a job fails with is kept for the message: by itself it would go to a log and leave the cluster in pieces.
    job_class = type("Job", (_Submitted, base.job_cls), {"failures": [], "left": []})
    job = job_options(spec)
    Path(job["log_directory"]).mkdir(parents=True, exist_ok=True)  # credentials go there before the first log does
    cluster = type(base.__name__, (_Tidy, base), {})(job_cls=job_class, security=security, scheduler_options=_scheduler(spec), **job)
    fewest, most = spec.workers(N_WORKERS)
    # adapt() rather than scale(), even for a fixed number: only it replaces jobs that were lost.
    cluster.adapt(minimum_jobs=fewest, maximum_jobs=most)
    cluster.loop.add_callback(_keep, cluster, system)
    return cluster


def require(kind: str, module: str, extra: str) -> Any:
    """Import a package that only one kind of cluster needs.

    Raises
    ------
    ClusterSpecError
        It is not installed, or can only be imported in the main thread.
    """
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ClusterSpecError(
            f'A cluster of the kind {kind!r} needs {error.name}, which is not installed: pip install "daskdecode[{extra}]".'
        ) from error
    except ValueError as error:
        if threading.current_thread() is threading.main_thread():
            raise
        raise ClusterSpecError(f"{module} can be imported in the main thread only ({error}): import it there first.") from error
    finally:
        if signal.getsignal(signal.SIGINT) is not ctrl_c:  # dask-jobqueue (0.9) has Ctrl-C end Python with status 0, without a word
            signal.signal(signal.SIGINT, ctrl_c)


def _configured(spec: ClusterSpec, name: str) -> Any:
    return dask.config.get(f"jobqueue.{spec.kind}.{name}", None)


def job_options(spec: ClusterSpec) -> dict[str, Any]:
    """What dask-jobqueue is told of a job; what is not said here is as the site's jobqueue.yaml says.

    Raises
    ------
    ClusterSpecError
    """
    cores, memory = (
        spec.get(ours, _configured(spec, theirs)) for ours, theirs in (("threads_per_worker", "cores"), ("memory_limit", "memory"))
    )
    if cores is None or memory is None:
        raise ClusterSpecError(
            f"How large a job of {spec.kind} should be is said nowhere: give threads_per_worker= and memory_limit= (or cores and memory in "
            f"Dask's jobqueue.yaml)."
        )
    log_folder = spec.get("log_folder", _configured(spec, "log-directory")) or str(Path.cwd() / "daskdecode-logs")
    try:
        OPTIONS["log_folder"].read(log_folder)
    except ValueError as error:
        raise ClusterSpecError(f"Logs of jobs would go to {log_folder}: expected {error}. Give log_folder=.") from None
    said: dict[str, Any] = {
        "cores": cores,
        "memory": f"{memory} B" if isinstance(memory, int) else memory,
        "processes": 1,
        "job_name": "daskdecode",
        "python": shlex.quote(spec.get("python", _configured(spec, "python") or sys.executable)),
        "log_directory": log_folder,
        "shared_temp_directory": log_folder,
        "local_directory": spec.get("local_folder"),
        "interface": spec.get("interface"),
        "queue": spec.get("queue"),
        "job_script_prologue": spec.get("setup"),
        "job_extra_directives": spec.get("directives"),
        "resource_spec": spec.get("resource_spec"),
        "worker_extra_args": [*(_configured(spec, "worker-extra-args") or []), *_worker_arguments(spec)],
    }
    said |= _of_kind(spec)
    return {name: value for name, value in said.items() if value is not None}


def _of_kind(spec: ClusterSpec) -> dict[str, Any]:
    """What one batch system calls otherwise than the others."""
    if spec.kind == "htcondor":
        return {"disk": f"{spec.get('disk', 4 * 10**9)} B"}
    account = {"account" if spec.kind in ("slurm", "pbs") else "project": spec.get("account")}
    if (seconds := walltime_s(spec)) is None:
        return account
    # LSF has hours and minutes.
    return account | {"walltime": clock(60 * math.ceil(seconds / 60)).removesuffix(":00") if spec.kind == "lsf" else clock(seconds)}


def _worker_arguments(spec: ClusterSpec) -> list[str]:
    """Workers show no dashboard, and close before their walltime ends: what they hold is handed on, and nothing is cut off."""
    lifetime = [] if (seconds := walltime_s(spec)) is None else _lifetime(seconds)
    return ["--no-dashboard", "--dashboard-address", LOOPBACK, *lifetime]


def walltime_s(spec: ClusterSpec) -> int | None:
    """Walltime of a job, as asked for or as the site's jobqueue.yaml has it."""
    if "walltime" in spec.options or spec.kind == "htcondor":
        return spec.options.get("walltime")
    configured = _configured(spec, "walltime")
    if configured is None:
        return None
    text = str(configured) + (":00" if spec.kind == "lsf" else "")
    try:
        return int(OPTIONS["walltime"].read(text))
    except ValueError:
        raise ClusterSpecError(f"walltime in Dask's jobqueue.yaml is {configured!r}: expected HH:MM:SS. Give walltime=.") from None


def _lifetime(walltime: int) -> list[str]:
    """A tenth of the walltime, at most ten minutes, is for closing; the workers do not close all at once, but spread over as long."""
    spread = max(1, min(600, walltime // 20))
    return ["--lifetime", f"{walltime - 3 * spread}s", "--lifetime-stagger", f"{spread}s"]


def _scheduler(spec: ClusterSpec) -> dict[str, Any]:
    configured = _configured(spec, "scheduler-options") or {}
    said = {"dashboard_address": dashboard_address(spec), "dashboard": bool(spec.get("dashboard", True))}
    return {**said, **configured, **({"host": spec.get("host")} if spec.get("host") else {})}


def close(cluster: Any, timeout_s: float) -> str:
    """End it, and its jobs. Returns which of them may be left, and what removes them."""
    jobs = [job.job_id for job in cluster.workers.values() if job.job_id]
    try:
        cluster.close(timeout=timeout_s)
        jobs = cluster.job_cls.left
    except TimeoutError:
        cluster.status = Status.closed  # or it would be tried again at the end of the interpreter
    if not jobs:
        return ""
    cancel = cluster.job_cls.cancel_command
    return f"{cancel.split()[0]} does not answer: jobs may be left in the queue. Once it does, remove them: {cancel} {' '.join(jobs)}"


class _Submitted(ProcessInterface):
    """A job that could not be submitted is no reason to fall over: it is tried again by :func:`_keep`."""

    failures: list[str]
    left: list[str]
    job_id: str
    default_config_name: Callable[[], str]

    async def start(self) -> None:
        """Submit."""
        try:
            await super().start()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError) as error:
            refused = not isinstance(error, TimeoutError)
            self.failures.append(f"{self.default_config_name()} refused a job: {complaint(str(error))}" if refused else str(error))
            await ProcessInterface.start(self)

    async def close(self) -> None:
        """Cancel."""
        try:
            await super().close()  # type: ignore[no-untyped-call]
        except TimeoutError:
            self.left.append(self.job_id)
        await ProcessInterface.close(self)

    @staticmethod
    async def _call(command: list[str], *, shell: bool = False, **options: Any) -> str:
        """Run a command of the batch system; as dask-jobqueue's own, but one that does not answer is ended.

        Its job may be there all the same: the worker of that ends by itself, when it finds no scheduler.
        """
        start: Any = asyncio.create_subprocess_shell if shell else asyncio.create_subprocess_exec
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        process = await start(*command, **pipes, start_new_session=True, **options)
        try:
            output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        except TimeoutError:
            raise TimeoutError(f"{command[0].split()[0]} has not answered within {PATIENCE_S:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}.\nstderr:\n{errors.decode()}")
        return str(output.decode())


def complaint(said: str) -> str:
    """What a submit command wrote to stderr, out of dask-jobqueue's message, on one line."""
    found = re.search(r"stderr:\n(.*)", said, re.DOTALL)
    return " ".join((found.group(1) if found else said).split())


class _Tidy:
    """A cluster that takes the credentials it wrote for its jobs away when it closes, not when it is collected as garbage."""

    async def _close(self) -> None:
        try:
            await super()._close()  # type: ignore[misc]
        finally:
            for name in ("_job_ca_file", "_job_cert", "_job_key"):
                if (file := getattr(self, name, None)) is not None:
                    file.close()


async def _keep(cluster: Any, system: BatchSystem) -> None:
    """From now on look for jobs that ended before their worker came; ``adapt`` asks for others in their place."""

    async def look() -> None:
        waiting = _waiting(cluster)
        states = await cluster.loop.run_in_executor(None, job_states, system, [job.job_id for job in waiting.values() if job.job_id])
        if states is None:
            return
        for name, job in waiting.items():
            if job.job_id not in states and cluster.workers.get(name) is job and name in _waiting(cluster):
                del cluster.workers[name]

    keeper = PeriodicCallback(look, 1000 * _LOOK_S)
    cluster.periodic_callbacks["daskdecode-keep"] = keeper  # stopped when the cluster closes
    keeper.start()


def _waiting(cluster: Any) -> dict[str, Any]:
    """Jobs whose worker has not come, by the name of the worker."""
    come = {str(worker["name"]) for worker in cluster.scheduler_info.get("workers", {}).values()}
    return {name: job for name, job in cluster.workers.items() if str(name) not in come}


def why_no_workers(cluster: Any) -> str:
    """What the batch system says of jobs whose worker has not come."""
    kind = cluster.job_cls.default_config_name()
    jobs = [job.job_id for job in _waiting(cluster).values() if job.job_id]
    states = job_states(_system(cluster), jobs)
    if states is None:
        return f"{kind} does not answer when it is asked for jobs {', '.join(jobs)}."
    said = [f"{kind} says of job {job}: {state}." for job, state in list(states.items())[:3]]
    if cluster.job_cls.failures:
        said.append(f"{cluster.job_cls.failures[-1]}.")
    if not said and set(cluster.worker_spec) - set(cluster.workers):
        said.append(f"{_system(cluster).submit} has not answered yet.")
    ended = [job for job in jobs if job not in states]
    if ended:
        said.append(f"Job {ended[0]} has ended before its worker came{_log_of(cluster, ended[0])}")
    return " ".join(said) or f"No job is queued with {kind}."


def hopeless(cluster: Any) -> str | None:
    """Why no worker comes, where nothing is left in the queue that could become one: every job was refused, or has ended already."""
    waiting = _waiting(cluster).values()
    jobs = [job.job_id for job in waiting if job.job_id]
    if not jobs and not cluster.job_cls.failures:
        return None  # nothing has been submitted yet
    return why_no_workers(cluster) if job_states(_system(cluster), jobs) == {} else None


def _system(cluster: Any) -> BatchSystem:
    return SYSTEMS[cluster.job_cls.default_config_name()]


def _log_of(cluster: Any, job: str) -> str:
    """The end of a job's log, quoted."""
    folder = Path(cluster._job_kwargs["log_directory"])
    logs = [path for path in folder.glob(f"*{job}*") if path.is_file() and path.stat().st_size]
    lines = [line for path in sorted(logs) for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return f": {' / '.join(lines[-_LOG_TAIL:])}" if lines else f" (its log would be in {folder})."
