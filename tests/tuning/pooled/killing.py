"""Processes that are killed, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path


@contextlib.contextmanager
def killing_workers(client, every_s):
    """Kill the two workers of a cluster of processes in turn, whenever both are there; gives a list that grows with each."""
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


def child_env(**more):
    """Environment of a process that can import these tests."""
    where = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": where, **more}
