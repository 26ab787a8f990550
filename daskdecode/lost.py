"""Why work ended that had no worker or no scheduler left, in words.

Nothing here imports distributed, which is slow: its errors cannot be raised before somebody else has imported it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any, Final

from daskdecode.errors import ClusterError

NO_WORKERS: Final = "no workers"
"""The reason that :class:`daskdecode.cluster.client.PatientClient` gives for what it gives up."""


@contextlib.contextmanager
def ends_in_words() -> Iterator[None]:
    """Work on a cluster that has no worker or no scheduler left raises a ClusterError; a context manager, and a decorator.

    What is public and computes ends so, whoever made the client: one of :func:`daskdecode.connect`, or :class:`distributed.Client`.

    Raises
    ------
    ClusterError
        Workers died on the same task again and again, or all have gone, or the scheduler has.
    """
    try:
        yield
    except (*deadly(), *gone()) as error:  # looked up when something is raised
        raise ClusterError(lost(error)) from error


def deadly() -> tuple[type[Any], ...]:
    """What a task ends with on which workers died again and again."""
    if "distributed" not in sys.modules:
        return ()
    from distributed import KilledWorker

    return (KilledWorker,)


def gone() -> tuple[type[Exception], ...]:
    """What all work ends with where no worker is left, or the scheduler has gone."""
    if "distributed" not in sys.modules:
        return ()
    from distributed import scheduler
    from distributed.comm import CommClosedError

    # Older releases have no NoWorkerError.
    names = [name for name in ("NoValidWorkerError", "NoWorkerError") if hasattr(scheduler, name)]
    return (*(getattr(scheduler, name) for name in names), CancelledError, CommClosedError)


def lost(error: Any) -> str:
    """Why work ended that had no worker or no scheduler left, and what to do."""
    if isinstance(error, deadly()):
        died, n = getattr(error.last_worker, "address", error.last_worker), error.allowed_failures + 1
        who = f"{n} workers died while they" if n > 1 else "1 worker died while it"
        return (
            f"{who} worked on {error.task!r}, the last at {died}. Most often they lack memory: give memory_budget= or a mask, or workers "
            "a larger memory_limit= or fewer threads; their logs may say. Where nodes are taken away "
            "often, raise allowed_failures= (distributed.scheduler.allowed-failures where the scheduler starts)."
        )
    kept = "What was written until then is kept, and the same call goes on from there."
    if not isinstance(error, CancelledError | OSError):  # a scheduler with a no-workers-timeout of its own
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
