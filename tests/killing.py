"""Processes that are killed, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path


@contextlib.contextmanager
def killing(kill, every_s):
    """Call ``kill(number)`` all the time; gives a list that grows with each call that killed something."""
    ended, killed = threading.Event(), []

    def work():
        while not ended.wait(every_s):
            if kill(len(killed)):
                killed.append(time.monotonic())

    killer = threading.Thread(target=work, daemon=True)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


def every_life(client, began, lives=1.0):
    """Seconds between kills: 3, or as many more as workers that were asked for at a time take until they can do anything, times ``lives``.

    Of two that are killed in turn each lives for two such times. What one has to do at one go must fit into that, or work never ends.
    """
    client.run(_import)
    return max(3, lives * (time.monotonic() - began))


def killing_workers(client, lives=1.0):
    """Kill the two worker processes of a local cluster in turn, whenever both are there."""
    began = time.monotonic()
    client.restart()

    def kill(number):
        there = set(client.cluster.scheduler.workers)
        pids = [pid for w in client.cluster.workers.values() if (pid := w.pid) and w.worker_address in there]
        if len(pids) < 2:
            return False
        with contextlib.suppress(ProcessLookupError):  # it would end the killing, and tests that wait for it would not
            os.kill(pids[number % 2], signal.SIGKILL)
            return True
        return False

    return killing(kill, every_life(client, began, lives))


def _import():
    import daskdecode.tuning.pooled.stream
    import daskdecode.tuning.search  # noqa: F401


def child_env(**more):
    """Environment of a process that can import these tests."""
    where = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": where, **more}
