"""The cluster behind the active scheduler, where there is one: asked without importing distributed, as whoever uses it has imported it."""

from __future__ import annotations

from typing import Any, Final

import cloudpickle
import dask
from dask.base import get_scheduler
from dask.system import CPU_COUNT
from dask.utils import format_bytes

from daskdecode.errors import ClusterError, DecodingError, MemoryBudgetError

_USABLE: Final = 0.7
"""Share of a worker's memory limit that may be filled: at 0.8 the worker pauses, for ever where nothing is freed; at 0.95 it is killed."""
_PACKAGES_NBYTES: Final = 320 * 2**20
"""What Python takes on a worker once it has imported all that a decode needs (370 MB were seen with a client and a first fit in it)."""

_N_QUESTIONS: Final = 5
"""How often a scheduler is asked for its workers, at most."""


def active_client() -> Any | None:
    """The :class:`distributed.Client` that is the active scheduler, None where that is another one."""
    client = getattr(get_scheduler(), "__self__", None)
    return client if hasattr(client, "scheduler_info") else None


def n_threads_of_one() -> int:
    """Tasks that one process runs at a time: the worker with the most threads, or the threads of this one."""
    client = active_client()
    if client is None:
        return _n_local_threads()
    return int(max(client.nthreads().values(), default=1))


def n_threads_of_all() -> int:
    """Tasks that run at a time on all workers together."""
    client = active_client()
    if client is None:
        return _n_local_threads()
    return int(max(1, sum(client.nthreads().values())))


def _n_local_threads() -> int:
    pool = dask.config.get("pool", None)
    return int(getattr(pool, "_max_workers", None) or dask.config.get("num_workers", None) or CPU_COUNT)


def limit_nbytes() -> float:
    """Bytes that the smallest worker of the active cluster has for work; infinite without a cluster, or where workers have no limits."""
    limits = [worker["memory_limit"] for worker in _limited_workers()]
    return room_nbytes(min(limits), _PACKAGES_NBYTES) if limits else float("inf")


def free_on_workers_nbytes() -> float:
    """As :func:`limit_nbytes`, less what workers hold at the moment."""
    left = [_USABLE * worker["memory_limit"] - worker["metrics"]["memory"] for worker in _limited_workers() if "metrics" in worker]
    return float(min([limit_nbytes(), *(max(0, nbytes) for nbytes in left)]))


def workers_of(client: Any) -> list[dict[str, Any]]:
    """What the scheduler of a :class:`distributed.Client` knows of each of its workers."""
    info: dict[str, Any] = {"workers": {}}
    # Every 2 s the client asks by itself, for no workers at all, and may put that answer in the place of ours (distributed 2026.8). Of a
    # scheduler that has gone it keeps that answer, so we do not ask for ever: whoever sends it work is told what has happened.
    for _ in range(_N_QUESTIONS):
        info = client.scheduler_info(n_workers=-1)
        if len(info["workers"]) >= info.get("n_workers", 0):
            break
    return list(info["workers"].values())


def _limited_workers() -> list[dict[str, Any]]:
    client = active_client()
    return [] if client is None else [worker for worker in workers_of(client) if worker["memory_limit"]]


def room_nbytes(memory_limit: int, packages_nbytes: int) -> int:
    """Bytes that work may take on a worker: what its limit leaves beside Python and packages.

    Raises
    ------
    MemoryBudgetError
        Nothing is left.
    """
    room = int(_USABLE * memory_limit) - packages_nbytes
    if room <= 0:
        raise MemoryBudgetError(
            f"The memory limit of a worker, {format_bytes(memory_limit)}, leaves nothing for the work: Python and its packages take "
            f"{format_bytes(packages_nbytes)} there, and a worker pauses when it is nearly full. Give workers more memory, or have fewer "
            "of them."
        )
    return room


def check_workers_have(value: Any, what: str) -> None:
    """Refuse what the workers of the active cluster cannot load.

    A worker takes tasks apart before it runs them, and ends where it misses a module; so does the next, and the call would wait for ever.

    Parameters
    ----------
    value : object
    what : str
        What it is, in a sentence of an error.

    Raises
    ------
    DecodingError
        It cannot be pickled.
    ClusterError
        A worker cannot import what it is made of.
    """
    client = active_client()
    if client is None:
        return
    try:
        pickled = cloudpickle.dumps(value)
    except Exception as error:  # whatever a class raises that does not let itself be pickled
        raise DecodingError(f"{what} cannot be sent to workers: {type(error).__name__}: {error}.") from error
    # A worker that is lost meanwhile says nothing.
    missing = {address: why for address, why in client.run(_why_not, pickled, on_error="ignore").items() if why}
    if missing:
        address, why = next(iter(missing.items()))
        raise ClusterError(
            f"{what} cannot be loaded on {len(missing)} of the workers ({address}): {why}. Install the module there, put its folder in "
            "PYTHONPATH of the workers, or send it: client.upload_file('module.py')."
        )


def _why_not(pickled: bytes) -> str | None:
    try:
        cloudpickle.loads(pickled)
    except Exception as error:  # of imports, or of what is imported
        return f"{type(error).__name__}: {error}"
    return None
