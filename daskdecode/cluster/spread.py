"""Independent pieces of work, each for a whole worker: one at a time on each, and each told as it ends or fails."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import dask
import psutil

from daskdecode.engine.workers import active_client, room_nbytes
from daskdecode.errors import ClusterError
from daskdecode.lost import deadly, ends_in_words, gone, lost

logger = logging.getLogger("daskdecode")

T = TypeVar("T")
Work = Callable[[int | None], T]
"""A piece of work: called with the bytes that it may take (None: whatever it thinks right), on an active scheduler of its own."""

_LOOK_S: Final = 2.0
"""How often the driver looks for workers that have come, seconds."""


def run_each(pieces: Mapping[str, Work[T]]) -> Iterator[tuple[str, T | Exception]]:
    """Do independent pieces of work on the active scheduler, and yield each as it ends.

    Parameters
    ----------
    pieces : mapping of name to callable
        Called with a memory budget in bytes, or None. Small to send: each loads its own input.

    Yields
    ------
    name, result or exception
        In the order in which they end. What a piece raises is yielded, not raised; so is a ClusterError, where workers kept dying on it.

    Notes
    -----
    On a :class:`distributed.Client`, one task a piece and at most one piece a worker: its own Dask graphs run on that worker's threads,
    and its budget comes from the worker's memory limit. As many are submitted as there are workers, so that a worker that dies
    takes one piece with it, which alone is blamed; workers that come later get their share. On any other scheduler the pieces run one
    after another, each on that scheduler.

    Where the caller stops early, what has not begun is cancelled.

    Raises
    ------
    ClusterError
        No worker is left, or no scheduler: no piece is to be blamed.
    """
    client = active_client()
    return _one_after_another(pieces) if client is None else _on_workers(client, pieces)


def _one_after_another(pieces: Mapping[str, Work[T]]) -> Iterator[tuple[str, T | Exception]]:
    for name, work in pieces.items():
        found: T | Exception
        try:
            found = work(None)
        except Exception as error:
            found = error
        yield name, found


def _on_workers(client: Any, pieces: Mapping[str, Work[T]]) -> Iterator[tuple[str, T | Exception]]:
    from distributed import wait  # not quick to import, and needed only here

    waiting = list(pieces.items())[::-1]
    running: dict[Any, str] = {}
    try:
        with ends_in_words():
            while waiting or running:
                workers = client.nthreads()
                while waiting and len(running) < max(1, len(workers)):
                    name, work = waiting.pop()
                    running[client.submit(_alone, work, _most_on_a_host(workers), pure=False)] = name
                with contextlib.suppress(TimeoutError):
                    wait(list(running), timeout=_LOOK_S, return_when="FIRST_COMPLETED")
                for future in [future for future in running if future.done()]:
                    found = _outcome(future)
                    if isinstance(found, gone()):
                        raise found
                    yield running.pop(future), found
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be what has gone
            client.cancel(list(running))


def _outcome(future: Any) -> Any:
    """What a piece gave, or the exception that ended it."""
    try:
        return future.result()
    except deadly() as error:
        return ClusterError(lost(error))
    except Exception as error:
        return error
    finally:
        future.release()  # or it would be done again, should the worker that holds it die


def _most_on_a_host(workers: Mapping[str, int]) -> int:
    """How many workers share a machine, at most."""
    hosts = [address.rpartition(":")[0] for address in workers]
    return max(map(hosts.count, hosts), default=1)


# --- on the worker ----------------------------------------------------------------------------------------------------------------

_one_piece = threading.Lock()
_baselines: dict[str, int] = {}


def _alone(work: Work[T], n_workers_here: int) -> T:
    """Do a piece of work with all the threads of this worker, while no other one is done in this process."""
    from distributed import get_worker

    # A worker of several threads may be given a second piece, when another worker has died: it waits.
    with _one_piece:
        worker = get_worker()
        budget = _budget(worker.memory_manager.memory_limit, n_workers_here)
        n_threads = worker.state.nthreads
        # By name: without one, Dask would take the worker's client, and wait on the cluster for tasks that wait for this one's thread.
        with ThreadPoolExecutor(n_threads, thread_name_prefix="daskdecode") as pool, dask.config.set(scheduler="threads", pool=pool):
            return work(budget)


def _budget(memory_limit: int | None, n_workers_here: int) -> int:
    """Bytes that work may take on this worker: what its limit leaves beside Python and packages, or its share of what is free."""
    if not memory_limit:
        return int(psutil.virtual_memory().available // 2 // n_workers_here)
    # Of the first time: what finished work leaves in the process is used again by the next.
    baseline = _baselines.setdefault("rss", psutil.Process().memory_info().rss)
    return room_nbytes(memory_limit, baseline)
