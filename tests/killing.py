"""Processes that are killed, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path


@contextlib.contextmanager
def killing_workers(client, lives=1.0):
    """Kill the two worker processes of a cluster in turn, whenever both are there; gives a list that grows with each.

    Every 3 s; or as much later as a new worker takes longer until it can do anything, times ``lives``: each lives for two such times. What
    a worker has to do at one go must fit into that, or work never ends.
    """
    began = time.monotonic()
    client.restart()
    client.run(_import)
    every_s = max(3, lives * (time.monotonic() - began))
    ended, killed = threading.Event(), []

    def kill():
        while not ended.wait(every_s):
            there = set(client.cluster.scheduler.workers)
            pids = [w.pid for w in client.cluster.workers.values() if w.pid and w.worker_address in there]
            if len(pids) == 2:
                os.kill(pids[len(killed) % 2], signal.SIGKILL)
                killed.append(pids)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


def _import():
    import daskdecode.tuning.pooled.stream
    import daskdecode.tuning.search  # noqa: F401


def child_env(**more):
    """Environment of a process that can import these tests."""
    where = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": where, **more}
