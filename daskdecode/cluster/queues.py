"""Batch systems: what their commands are called, and what they say of jobs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PATIENCE_S: Final = 30
"""Seconds after which a batch system that does not answer is asked again later."""


@dataclass(frozen=True)
class JobState:
    """A job in the queue.

    Attributes
    ----------
    word : str
        The batch system's own, such as ``PENDING`` or ``R``.
    reason : str
        Why it waits, as the batch system says; may be empty.
    """

    word: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.word} ({self.reason})" if self.reason and self.reason != "None" else self.word


@dataclass(frozen=True)
class BatchSystem:
    """One kind of batch system.

    Attributes
    ----------
    cluster, job : str
        Classes of dask-jobqueue, which knows how to write job scripts, submit and cancel.
    submit : str
        The command that submits.
    ask : callable
        Command lines that ask for the states of jobs, given their ids; their output is joined.
    read : callable
        Takes that output and gives states by id. Jobs that have ended are not there.
    """

    cluster: str
    job: str
    submit: str
    ask: Callable[[Sequence[str]], list[list[str]]]
    read: Callable[[str], dict[str, JobState]]


def job_states(system: BatchSystem, ids: Sequence[str]) -> dict[str, JobState] | None:
    """States of those jobs that are queued or running.

    Returns
    -------
    dict or None
        None where the batch system does not answer: nothing is known then.
    """
    if not ids:
        return {}
    said = []
    for command in system.ask(ids):
        try:
            # Most fail where one of the jobs has ended, and still tell of the others.
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode and _UNREACHABLE.search(done.stderr):
            return None
        said.append(done.stdout)
    found = system.read("\n".join(said))
    return {job: found[job] for job in ids if job in found}


_UNREACHABLE: Final = re.compile(r"unable to contact|connection|communication|cannot connect|timed? ?out|not responding", re.IGNORECASE)


def _lines(output: str, separator: str) -> list[list[str]]:
    return [line.strip().split(separator, 2) for line in output.splitlines() if line.strip().count(separator) >= 1]


def _table(separator: str, words: Mapping[str, str] | None = None) -> Callable[[str], dict[str, JobState]]:
    """Read lines of id, state and reason; states that mean the end are left out."""

    def read(output: str) -> dict[str, JobState]:
        rows = [[*row, ""][:3] for row in _lines(output, separator)]
        found = {job: JobState((words or {}).get(word, word), reason.strip()) for job, word, reason in rows}
        return {job: state for job, state in found.items() if state.word not in _ENDED}

    return read


_ENDED: Final = frozenset(
    [
        *("COMPLETED", "COMPLETING", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"),  # Slurm
        *("OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),  # Slurm
        *("DONE", "EXIT"),  # LSF
        *("F", "C", "E"),  # PBS
        *("removed", "completed"),  # HTCondor, as below
    ]
)


def _read_pbs(output: str) -> dict[str, JobState]:
    """``qstat -f``: a paragraph a job, long lines continued after a tab. An id is known by its number and by its full name."""
    found: dict[str, JobState] = {}
    for paragraph in re.split(r"(?m)^Job Id:", output.replace("\n\t", ""))[1:]:
        name = paragraph.split(None, 1)[0]
        fields = dict(re.findall(r"(?m)^\s+(job_state|comment) = (.*)$", paragraph))
        state = JobState(fields.get("job_state", "?"), fields.get("comment", "").strip())
        if state.word not in _ENDED:
            found |= {name: state, name.split(".")[0]: state}
    return found


def _read_sge(output: str) -> dict[str, JobState]:
    """``qstat``: columns id, priority, name, user, state; ``qstat -j``: why a job waits."""
    rows = [line.split() for line in output.splitlines() if re.match(r"\s*\d+\s+[\d.]+\s", line)]
    reasons: dict[str, str] = {}
    job = ""
    for line in output.splitlines():
        key, _, value = line.partition(":")
        if key == "job_number":
            job = value.strip()
        elif key.startswith(("scheduling info", "error reason")):
            reasons[job] = value.strip()
    return {row[0]: JobState(row[4], reasons.get(row[0], "")) for row in rows if len(row) > 4}


_CONDOR: Final = {"1": "idle", "2": "running", "3": "removed", "4": "completed", "5": "held", "6": "transferring", "7": "suspended"}

_CONDOR_FORMAT: Final = [
    *("-format", "%d.", "ClusterId", "-format", "%d|", "ProcId", "-format", "%d|", "JobStatus"),
    *("-format", "%s", "HoldReason", "-format", "%.0s\\n", "ProcId"),
]

SYSTEMS: Final = {
    "slurm": BatchSystem(
        "SLURMCluster", "SLURMJob", "sbatch", lambda ids: [["squeue", "-h", "-o", "%i|%T|%r", "-j", ",".join(ids)]], _table("|")
    ),
    "pbs": BatchSystem("PBSCluster", "PBSJob", "qsub", lambda ids: [["qstat", "-f", *ids]], _read_pbs),
    "sge": BatchSystem("SGECluster", "SGEJob", "qsub", lambda ids: [["qstat"], ["qstat", "-j", ",".join(ids)]], _read_sge),
    "lsf": BatchSystem(
        "LSFCluster",
        "LSFJob",
        "bsub",
        lambda ids: [["bjobs", "-noheader", "-o", "jobid stat pend_reason delimiter='|'", *ids]],
        _table("|"),
    ),
    "htcondor": BatchSystem(
        "HTCondorCluster",
        "HTCondorJob",
        "condor_submit",
        lambda ids: [["condor_q", *ids, *_CONDOR_FORMAT]],
        _table("|", _CONDOR),
    ),
}
"""Batch systems by kind."""
