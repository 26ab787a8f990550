"""Why work ended that had no worker or no scheduler left, in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any, Final

from distributed import KilledWorker
from distributed import scheduler as _scheduler
from distributed.comm import CommClosedError

from daskdecode.errors import ClusterError

GONE: Final = (
    *(getattr(_scheduler, name) for name in ("NoValidWorkerError", "NoWorkerError") if hasattr(_scheduler, name)),
    CancelledError,
)
"""What all work ends with where no worker is left (older releases have no NoWorkerError), or the scheduler has gone."""
NO_WORKERS: Final = "no workers"
"""The reason that :class:`daskdecode.cluster.client.PatientClient` gives for what it gives up."""


@contextlib.contextmanager
def ends_in_words() -> Iterator[None]:
    """Work on a cluster that has no worker or no scheduler left raises a ClusterError.

    Raises
    ------
    ClusterError
        Workers died on the same task again and again, or all have gone, or the scheduler has.
    """
    try:
        yield
    except (KilledWorker, CommClosedError, *GONE) as error:
        raise ClusterError(lost(error)) from error


def lost(error: Exception) -> str:
    """Why work ended that had no worker or no scheduler left, and what to do."""
    if isinstance(error, KilledWorker):
        died = getattr(error.last_worker, "address", error.last_worker)
        return (
            f"{error.allowed_failures + 1} workers died while they worked on {error.task!r}, the last at {died}. Most often they lacked "
            "memory: give memory_budget= or a mask, or workers a larger memory_limit= or fewer threads; their logs may say. Where nodes "
            "are taken away often, raise allowed_failures=."
        )
    kept = "What was written until then is kept, and the same call goes on from there."
    if not isinstance(error, CancelledError | CommClosedError):  # a scheduler with a no-workers-timeout of its own
        return f"The workers have gone and none came back: {said_of(error)} {kept}"
    told = [one.msg for one in _each(error) if getattr(one, "reason", None) == NO_WORKERS]
    if told:
        return f"{told[0]} {kept}"
    return f"The connection to the scheduler was lost, or the work was cancelled there; the scheduler's log may say why. {kept}"


def _each(error: Any) -> list[Any]:
    """Errors of single futures, which those who wait for several get in groups."""
    return [one for group in getattr(error, "error_groups", []) for one in group.errors] or [error]


def said_of(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
