"""Whole analyses for a batch system: a driver job that asks for workers of its own, and a small folder that says how it goes.

The folder of a submission holds ``job.json`` (what was asked), ``cluster.yaml`` (where it works), ``driver.sh``, ``batch.json`` (what
the batch system calls the job), ``driver.log``, the logs of the workers, and, once it is so, ``started.json``, ``ended.json`` and
``cancelled.json``. Each file is written once, whole.
"""

from __future__ import annotations

import asyncio
import datetime
import importlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from daskdecode._version import __version__
from daskdecode.alone import alone
from daskdecode.cluster.batch import complaint, job_options, require
from daskdecode.cluster.options import BATCH, OPTIONS, clock
from daskdecode.cluster.queues import SYSTEMS, job_states
from daskdecode.cluster.spec import ClusterSpec
from daskdecode.errors import ClusterError, ClusterSpecError, nearest

LOG: Final = "driver.log"
CLUSTER: Final = "cluster.yaml"
_LOCK: Final = ".submit.lock"
_PATIENCE_S: Final = 60.0
"""Batch systems under load take a while to accept a job."""
_WORKERS: Final = "workers"
_JOB: Final = "job.json"
_BATCH: Final = "batch.json"
_KEYS: Final = {"commands", "cwd", "kind", "workers", "submitted"}
"""What a job.json has to say."""


@dataclass(frozen=True)
class Status:
    """How a submission goes.

    Attributes
    ----------
    id, folder, command : str
    state : str
        ``queued``, ``running``, ``done``, ``failed``, ``cancelled``, ``lost`` (it ended without saying so: walltime, memory, a node) or
        ``unknown`` (the batch system does not answer, or a file of the submission does not say what it should).
    detail : str
        What the batch system says, or the exit status and the last error, or line, of the log.
    batch_id : str
    submitted, started, ended : str or None
        ISO 8601, UTC.
    exit_status : int or None
    """

    id: str
    state: str
    detail: str
    command: str
    folder: str
    batch_id: str
    submitted: str
    started: str | None = None
    ended: str | None = None
    exit_status: int | None = None


def submit(commands: Sequence[Sequence[str]], spec: ClusterSpec, jobs: Path, *, workers: Sequence[bool] | None = None) -> Status:
    """Hand command lines to a batch system, to be run one after another; returns at once.

    Parameters
    ----------
    commands : sequence of sequence of str
        Arguments of ``daskdecode``, for each command. They are kept as JSON and never see a shell.
    spec : ClusterSpec
        A batch system; its ``driver`` says what the driver's own job is like, where that is not as a worker's.
    jobs : Path
        Folder in which the submission gets one of its own; every node has to see it.
    workers : sequence of bool, optional
        For each command whether the driver asks for workers; not where it says itself where to work. Default: for all.

    Raises
    ------
    ClusterSpecError
        Not a batch system, or not enough said of it.
    ClusterError
        The batch system refused the job, or has the same commands already, queued or running. Nothing is left behind.
    """
    if spec.kind not in BATCH:
        raise ClusterSpecError(
            f"Only a batch system takes a whole analysis ({', '.join(sorted(BATCH))}), but the cluster is of the kind {spec.kind!r}: "
            "run the command itself, with --scheduler or --cluster."
        )
    require(spec.kind, "dask_jobqueue", "jobqueue")
    jobs = jobs.absolute()
    try:
        OPTIONS["log_folder"].read(str(jobs))
    except ValueError as error:
        raise ClusterSpecError(f"The folder of the jobs is {jobs}: expected {error}. Give --jobs.") from None
    busy = f"Something else is being submitted in {jobs}"
    with alone(jobs / _LOCK, busy, ClusterError, patience_s=_PATIENCE_S):  # it takes folders that stay empty away
        _refuse_twice(jobs, commands)
        folder = _new_folder(jobs, commands[0][0])
        said: dict[str, Any] = {"commands": [list(c) for c in commands], "cwd": str(Path.cwd()), "kind": spec.kind}
        said |= {"workers": [True] * len(commands) if workers is None else list(workers)}
        said |= {"submitted": now(), "daskdecode_version": __version__}
        try:
            logged = {"log_folder": str(folder / _WORKERS), **spec.options}
            _write_spec(folder / CLUSTER, replace(spec, options=logged))
            # Before the batch system has the job: the driver finds what it is to do, even if nobody is left here to write it.
            write_json(folder / _JOB, said)
            batch_id, cancel = _hand_over(spec, folder)
        except BaseException:
            shutil.rmtree(folder)
            raise
        write_json(folder / _BATCH, {"batch_id": batch_id, "cancel": cancel})
    return status(jobs, folder.name)


def _refuse_twice(jobs: Path, commands: Sequence[Sequence[str]]) -> None:
    """Another submission of the same commands, which has not ended, would write the same files."""
    asked = {"commands": [list(command) for command in commands], "cwd": str(Path.cwd())}
    for path in sorted(jobs.glob(f"*/{_JOB}")):
        try:
            same = asked.items() <= read_json(path).items()
        except ClusterError:  # one that is broken does not run
            continue
        if same and (found := status(jobs, path.parent.name)).state in ("queued", "running"):
            raise ClusterError(
                f"The same was submitted at {found.submitted}, as {found.id}, and is {found.state} ({found.detail}; job {found.batch_id}). "
                f"Wait until it has ended, or end it: daskdecode cancel {found.id}."
            )


def _new_folder(jobs: Path, command: str) -> Path:
    """A folder of its own: two submissions of one second differ by a number."""
    stem = f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{command}"
    for n in range(100):
        folder = jobs / (stem + (f"-{n + 1}" if n else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ClusterError(f"There are a hundred submissions called {stem} in {jobs}: something submits in a loop.")


def _write_spec(path: Path, spec: ClusterSpec) -> None:
    """The description as a file again, so that later changes of the site's file do not reach what is queued."""
    path.write_text(yaml.safe_dump({"kind": spec.kind, **_as_said(spec.options)}), encoding="utf-8")


def _as_said(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are read."""
    said = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    said |= {"walltime": clock(options["walltime"])} if "walltime" in options else {}
    return said | ({"driver": _as_said(options["driver"])} if "driver" in options else {})


def _hand_over(spec: ClusterSpec, folder: Path) -> tuple[str, list[str]]:
    """Submit the driver's job; return its id and the command that cancels it."""
    system = SYSTEMS[spec.kind]
    if shutil.which(system.submit) is None:
        raise ClusterSpecError(f"The command {system.submit} is not here: submit where jobs of {spec.kind} are submitted.")
    own = {**spec.options, **spec.get("driver", {}), "log_folder": str(folder)}
    told = job_options(ClusterSpec(spec.kind, own))
    del told["shared_temp_directory"]
    job = getattr(importlib.import_module(f"dask_jobqueue.{spec.kind}"), system.job)(scheduler="", name="driver", **told)
    # Paths are quoted for the shell; the commands themselves are read from job.json. -u: the log can be followed.
    python, log = told["python"], shlex.quote(str(folder / LOG))
    run = f"exec {python} -u -m daskdecode.cli driver {shlex.quote(str(folder))} > {log} 2>&1"
    setup = told.get("job_script_prologue", []) if spec.kind == "htcondor" else []  # it has no lines before the command
    job._command_template = "; ".join([*setup, run])
    script = folder / "driver.sh"
    script.write_text(job.job_script(), encoding="utf-8")
    try:
        said = asyncio.run(job._submit_job(str(script)))
        return str(job._job_id_from_submit_output(said)), shlex.split(job.cancel_command)
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"{spec.kind} refused the job: {complaint(str(error))}. Nothing was submitted.") from error


# --- following --------------------------------------------------------------------------------------------------------------------


def statuses(jobs: Path) -> list[Status]:
    """All submissions of a folder, the oldest first."""
    return [status(jobs, path.parent.name) for path in sorted(jobs.glob(f"*/{_JOB}"))]


def status(jobs: Path, id: str) -> Status:  # noqa: A002  # what users call it
    """How a submission goes.

    Raises
    ------
    ClusterError
        There is none of this name.
    """
    folder = folder_of(jobs, id)
    try:
        return _status(folder)
    except ClusterError as error:  # one that is broken does not hide the others
        return Status(id, "unknown", str(error), command="", folder=str(folder), batch_id="", submitted="")


def _status(folder: Path) -> Status:
    job, batch, started, ended = _job(folder), *(read_json(folder / f"{name}.json") for name in ("batch", "started", "ended"))
    cancelled = (folder / "cancelled.json").exists()
    if ended:
        state = "done" if ended["exit_status"] == 0 else "cancelled" if cancelled else "failed"
        detail = f"exit status {ended['exit_status']}: {_last_line(folder)}" if state == "failed" else ""
    else:
        state, detail = _in_queue(job["kind"], batch.get("batch_id"), folder, running=bool(started), cancelled=cancelled)
    return Status(
        id=folder.name,
        state=state,
        detail=detail,
        command=" -- ".join(shlex.join(command) for command in job["commands"]),
        folder=str(folder),
        batch_id=batch.get("batch_id", ""),
        submitted=job["submitted"],
        started=started.get("time"),
        ended=ended.get("time"),
        exit_status=ended.get("exit_status"),
    )


def _job(folder: Path) -> dict[str, Any]:
    """What was asked.

    Raises
    ------
    ClusterError
        The file is not there, or says something else.
    """
    path = folder / _JOB
    job = read_json(path)
    if not job:
        raise ClusterError(f"{path} is not there, which says what was submitted. Submit again, and delete this folder.")
    if not job.keys() >= _KEYS or job["kind"] not in SYSTEMS:
        raise ClusterError(f"{path} does not say what was submitted (of {', '.join(sorted(_KEYS))}). Submit again, and delete this folder.")
    return job


def _in_queue(kind: str, batch_id: str | None, folder: Path, *, running: bool, cancelled: bool) -> tuple[str, str]:
    """State and detail of a submission that has not said that it ended."""
    if batch_id is None:
        return "unknown", f"submitting was cut off before the number of the job was written down; {kind} may have it"
    states = job_states(SYSTEMS[kind], [batch_id])
    if states is None:
        return "unknown", f"{kind} does not answer"
    if (found := states.get(batch_id)) is not None:
        host = read_json(folder / "started.json").get("host", "")
        return ("running", f"on {host}") if running else ("queued", str(found))
    if cancelled:
        return "cancelled", ""
    if ended := read_json(folder / "ended.json"):  # it said so while the batch system was asked
        return ("done" if ended["exit_status"] == 0 else "failed"), ""
    return "lost", f"it ended without saying so (walltime, memory, a node): {_last_line(folder)}"


def cancel(jobs: Path, id: str) -> Status:  # noqa: A002
    """Cancel a submission; its driver cancels its workers. What was written is kept.

    Raises
    ------
    ClusterError
        There is none of this name, or the batch system does not do it.
    """
    found = status(jobs, id)
    if found.state not in ("queued", "running", "unknown"):
        return found
    folder = folder_of(jobs, id)
    kind, batch = _job(folder)["kind"], read_json(folder / _BATCH)
    if not batch:
        raise ClusterError(f"{folder} does not say which job of {kind} it is: {found.detail}. Cancel the job with {kind}'s own command.")
    write_json(folder / "cancelled.json", {"time": now()})
    try:
        subprocess.run([*batch["cancel"], batch["batch_id"]], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        (folder / "cancelled.json").unlink()
        said = getattr(error, "stderr", None) or str(error)
        raise ClusterError(f"{kind} did not cancel job {batch['batch_id']}: {' '.join(said.split())}.") from error
    return status(jobs, id)


def logs(jobs: Path, id: str, *, workers: bool = False) -> list[Path]:  # noqa: A002
    """Files of the log of the driver, or of its workers; those that are empty are left out.

    Raises
    ------
    ClusterError
        There is none of this name.
    """
    folder = folder_of(jobs, id)
    if workers:
        said = yaml.safe_load((folder / CLUSTER).read_text(encoding="utf-8"))
        return _filled(Path(said["log_folder"]).glob("*"))
    # What the batch system itself wrote tells why a driver never began.
    return _filled([*folder.glob("*.out"), *folder.glob("*.err"), *folder.glob("*.[oe][0-9]*"), folder / LOG])


def _filled(paths: Any) -> list[Path]:
    return [path for path in sorted(paths) if path.is_file() and path.stat().st_size]


def folder_of(jobs: Path, id: str) -> Path:  # noqa: A002
    """The folder of a submission."""
    known = [path.parent.name for path in sorted(jobs.glob(f"*/{_JOB}"))]
    if id not in known:
        raise ClusterError(f"There is no submission {id!r} in {jobs}. {nearest(id, known[::-1])} Give --jobs where they are elsewhere.")
    return jobs.absolute() / id


def _last_line(folder: Path) -> str:
    lines = [line for path in logs(folder.parent, folder.name) for line in path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]  # other libraries may log more while work ends
    return [*lines, *errors][-1].strip() if lines else "nothing was logged"


# --- on the node of the driver ----------------------------------------------------------------------------------------------------


def begin(folder: Path) -> dict[str, Any]:
    """Say that the driver has started, go where the user was, and return what was asked.

    Raises
    ------
    ClusterError
        Nothing says what was asked.
    """
    write_json(folder / "started.json", {"time": now(), "host": socket.gethostname(), "pid": os.getpid(), "python": sys.executable})
    job = _job(folder)
    os.chdir(job["cwd"])
    return job


def end(folder: Path, exit_status: int) -> None:
    """Say that the driver has ended."""
    write_json(folder / "ended.json", {"time": now(), "exit_status": exit_status})


def now() -> str:
    """The time, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_json(path: Path, value: Any) -> None:
    """Write a file at once: whoever reads it finds all of it or none."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2), encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file; nothing where it is not there.

    Raises
    ------
    ClusterError
        It is no JSON.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ClusterError(f"{path} cannot be read ({error}). Submit again, and delete this folder.") from error
    return found if isinstance(found, dict) else {}
