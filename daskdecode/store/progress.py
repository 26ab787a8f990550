"""What tasks of this process are at: how far they have come in the files they read, for the bar to ask, and whether any is left."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

_volumes_read: dict[str, int] = {}
_at_work: Counter[str] = Counter()
_changed = threading.Condition()


@contextlib.contextmanager
def at_work(path: str) -> Iterator[None]:
    """Let :func:`wait_for` know of a task on a file, as long as the block runs."""
    with _changed:
        _at_work[path] += 1
    try:
        yield
    finally:
        with _changed:
            _at_work[path] -= 1
            _changed.notify_all()


def wait_for(paths: Iterable[str]) -> None:
    """Wait until no task of this process is at these files."""
    asked = list(paths)
    with _changed:
        _changed.wait_for(lambda: not any(_at_work[path] for path in asked))


def counted(blocks: Iterable[tuple[int, np.ndarray]], path: str) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of volumes of a file, as they are; how far they have come is known to :func:`volumes_read` in this process."""
    for first, block in blocks:
        yield first, block
        _volumes_read[path] = first + len(block)


def volumes_read(path: str) -> int:
    """Volumes of a file that have been worked on in this process; none where a cluster does the work."""
    return _volumes_read.get(path, 0)


def forget(paths: Iterable[str]) -> None:
    """Count the volumes of these files from zero."""
    for path in paths:
        _volumes_read.pop(path, None)
