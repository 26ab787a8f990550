"""One run at a time: a file is locked for as long as a block runs, and says who holds it.

The lock belongs to the process: the operating system, or the server of a shared file system, frees it when the process has ended, however
it ended. So there is nothing to clear away after a run that was killed, and nothing to wait for before it is started again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

import portalocker
from portalocker import LockFlags

from daskdecode.errors import DaskDecodeError

logger = logging.getLogger("daskdecode")

_PATIENCE_S: Final = 1.0
"""Others may hold a lock for a moment, to see whether it is free."""
_RETRY_S: Final = 0.05
_JOB_IDS: Final = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Where batch systems tell a job its number."""


@contextlib.contextmanager
def alone(
    mark: Path,
    busy: str,
    error: type[DaskDecodeError],
    *,
    shared: bool = False,
    sharers: str | None = None,
    patience_s: float = _PATIENCE_S,
) -> Iterator[None]:
    """Hold a lock as long as the block runs; who comes second is refused.

    Parameters
    ----------
    mark : Path
        File that is locked. Folders that it lies in are made. It is deleted at the end, and folders that were made if they are empty.
    busy : str
        What an error says first: ``"results is written to by another run"``.
    error : type
        What is raised.
    shared : bool
        Whether others may share the lock, who then say who they are in marks of their own.
    sharers : str, optional
        Pattern of their names.
    patience_s : float
        Seconds to try.

    Raises
    ------
    DaskDecodeError
        Of the given type: somebody else has the lock. Says who: process, host, job of a batch system, since when.
    OSError
        The mark cannot be made.

    Notes
    -----
    Processes on one machine see each other's locks wherever the mark lies, those on several machines where the shared file system knows
    locks (NFS 4 does, Lustre if it is mounted with ``flock``). Where it knows none, that is logged and the block runs.
    """
    made = [folder for folder in mark.parents if not folder.exists()]
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = _locked(mark, LockFlags.SHARED if shared else LockFlags.EXCLUSIVE, patience_s)
        if file is None:
            held = [mark, *([] if sharers is None else sorted(mark.parent.glob(sharers)))]
            who = next(filter(None, map(holder, held)), None)
            raise error(f"{busy}{'' if who is None else f': {who}'}. Wait until it has ended, or end it.")
        with file:
            try:
                if not shared:
                    _say_who(file)
                yield
            finally:
                _forget(mark, file)
    finally:
        for folder in made:  # a block that wrote nothing leaves nothing behind
            with contextlib.suppress(OSError):
                folder.rmdir()


def holder(mark: Path) -> str | None:
    """Who holds a lock alone; None where nobody does."""
    if not mark.exists():
        return None
    if (file := _locked(mark, LockFlags.SHARED, 0.0)) is not None:
        file.close()
        return None
    try:
        told = json.loads(mark.read_text(encoding="utf-8"))
        job = f" (job {told['job']})" if told["job"] else ""
        return f"process {told['pid']} on {told['host']}{job}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has ended just now, has not said yet, or does not let itself be read
        return None


def began(mark: Path) -> float:
    """When a lock was last taken alone, seconds since the epoch, also by somebody who was killed; 0 where that is not known."""
    try:
        return float(json.loads(mark.read_text(encoding="utf-8"))["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _locked(mark: Path, flags: LockFlags, patience_s: float) -> TextIO | None:
    """The mark, open and locked; None where somebody else has the lock."""
    end = time.monotonic() + patience_s
    while True:
        file = mark.open("a+", encoding="utf-8")
        try:
            portalocker.lock(file, flags | LockFlags.NON_BLOCKING)
            if _is_at(mark, file):
                return file
            file.close()  # deleted by who had it until now: what is at its place is another file
            continue
        except portalocker.AlreadyLocked:
            file.close()
        except portalocker.LockException as error:
            logger.warning("%s cannot be locked (%s): see to it yourself that one run at a time writes there.", mark, error)
            return file
        except BaseException:
            file.close()
            raise
        if time.monotonic() >= end:
            return None
        time.sleep(_RETRY_S)


def _is_at(mark: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(mark.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _say_who(file: TextIO) -> None:
    job = next((os.environ[name] for name in _JOB_IDS if name in os.environ), None)
    now = datetime.datetime.now().astimezone()
    since = now.isoformat(sep=" ", timespec="seconds")
    file.truncate(0)
    file.write(json.dumps({"host": platform.node(), "pid": os.getpid(), "job": job, "since": since, "at": now.timestamp()}))
    file.flush()
    os.fsync(file.fileno())  # other machines read it too


def _forget(mark: Path, file: TextIO) -> None:
    """Delete a mark that nobody else shares, while it is locked: who opened it before finds that it is gone."""
    with contextlib.suppress(OSError, portalocker.LockException):
        portalocker.lock(file, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
        mark.unlink()
