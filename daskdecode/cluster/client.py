"""The client that users get: it says in words why work was lost, does not wait for ever for workers, and ends what was started for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from typing import Any, Final

import dask
from distributed import Client, default_client
from distributed.client import AllExit
from tornado.ioloop import PeriodicCallback

from daskdecode.lost import NO_WORKERS, ends_in_words, said_of

_LARGE: Final = {"distributed.admin.large-graph-warning-threshold": "1GB"}
"""Gram matrices and masks travel with the graph on purpose: scattered, which Dask advises, they would be lost with their worker."""
_LOOK_S: Final = 2.0
"""How often a client whose work waits looks for workers, seconds."""
_QUICK_S: Final = 2.0
"""Seconds that a warning waits for the queue's own reason."""
CLOSE_S: Final = 60.0
"""Seconds in which a client, and a cluster that was started for it, have to close."""
logger = logging.getLogger("daskdecode")


class PatientClient(Client):
    """A client whose work ends in an error where its workers have gone, and that ends the cluster that was started for it.

    Parameters
    ----------
    where : str or Cluster
        As of :class:`distributed.Client`.
    patience_s : float
        Seconds for which work waits without any worker. It is the client that counts: a scheduler has a setting of its own
        (``no-workers-timeout``), but only whoever starts it can make it.
    why : callable
        What is known of workers that do not come; may take its time.
    end : callable, optional
        Ends what was started for the client, when that is closed; limits the time that this takes.
    """

    def __init__(
        self, where: Any, *, patience_s: float, why: Callable[[], str], end: Callable[[], None] = lambda: None, **kwargs: Any
    ) -> None:
        self.patience_s, self.why, self._end = patience_s, why, end
        # Looks are counted rather than seconds: while this process stands still, no worker is heard of either.
        self._n_looks = max(5, math.ceil(patience_s / _LOOK_S))
        self._n_in_vain = 0
        Client.__init__(self, where, **kwargs)
        looking = PeriodicCallback(self._look, 1000 * patience_s / self._n_looks)
        self._periodic_callbacks["daskdecode-workers"] = looking  # stopped when the client closes
        loop: Any = self.loop
        loop.add_callback(looking.start)
        _pass_over_what_was_stopped(loop.asyncio_loop)

    async def _look(self) -> None:
        """Give up what waits, where there has been no worker for it for too long."""
        client: Any = self  # Dask's own methods have no types
        with contextlib.suppress(OSError):  # a scheduler that has gone is noticed elsewhere
            if not self._waiting() or await client.nthreads():
                if self._n_in_vain and await client.nthreads():  # short work may be done by now
                    logger.warning("Workers are back: work goes on.")
                self._n_in_vain = 0
                return
            self._n_in_vain += 1
            if self._n_in_vain == 1:
                await self._warn()
            if self._n_in_vain < self._n_looks:
                return
            why = await asyncio.get_running_loop().run_in_executor(None, self._known)
            if not await client.nthreads():  # none came while the batch system was asked
                said = f"The workers have gone and none came back within {self.patience_s:g} s. {why} timeout_s= waits longer."
                for future in self._waiting():
                    # Here only, and whoever waits releases it. Schedulers (to 2026.8) fail in cancel() on what others depend on.
                    future.cancel(reason=NO_WORKERS, msg=said)

    async def _warn(self) -> None:
        """Say that work waits, with the reason where it is quickly known."""
        asked = asyncio.get_running_loop().run_in_executor(None, self._known)
        try:
            why = await asyncio.wait_for(asked, _QUICK_S)
        except TimeoutError:
            why = ""
        logger.warning("%s", f"There are no workers: work waits for them, at most about {self.patience_s:g} s. {why}".rstrip())

    def _waiting(self) -> list[Any]:
        """States of futures that are not there yet, or not any more."""
        return [state for state in list(self.futures.values()) if state.status in ("pending", "lost")]

    def _known(self) -> str:
        try:
            return self.why()
        except Exception as error:  # whatever it is, work does not wait for its reason
            return said_of(error)

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Compute a graph, as Dask's collections ask for."""
        with ends_in_words(), dask.config.set(_LARGE):
            return Client.get(self, *args, **kwargs)

    def persist(self, *args: Any, **kwargs: Any) -> Any:
        """Keep what a graph gives on the workers."""
        with dask.config.set(_LARGE):
            return Client.persist(self, *args, **kwargs)

    def close(self, timeout: float = CLOSE_S) -> Any:
        """Close the client, then the scheduler and the workers that are its own."""
        try:
            with contextlib.suppress(TimeoutError):  # a scheduler that does not answer need not be told
                return Client.close(self, timeout)
        finally:
            end, self._end = self._end, lambda: None  # once, however often it is closed
            end()
            _leave_nothing_set()


def _pass_over_what_was_stopped(loop: asyncio.AbstractEventLoop) -> None:
    """Leave out, of what a loop logs as not handled, that distributed (to 2026.8) stopped waiting: a traceback a task after Ctrl-C."""
    before = loop.get_exception_handler() or (lambda of, context: of.default_exception_handler(context))

    def handle(of: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), AllExit):
            before(of, context)

    loop.set_exception_handler(handle)


def _leave_nothing_set() -> None:
    """Give Dask its own scheduler back, which distributed forgets where a client is closed while a later one is still open."""
    if dask.config.get("scheduler", None) == "dask.distributed":
        try:
            default_client()
        except ValueError:  # there is none
            dask.config.config.pop("scheduler")
