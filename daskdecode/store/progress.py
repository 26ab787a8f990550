"""A progress bar that knows nothing of the scheduler: it asks, now and then, how much is done."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PATIENCE_S = 2.0
_INTERVAL_S = 0.5
_volumes_read: dict[str, int] = {}


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


@contextlib.contextmanager
def watch(description: str, total: int | None, count: Callable[[], int], *, progress: bool) -> Iterator[None]:
    """Show a bar on stderr while the block runs, once it has taken two seconds.

    Parameters
    ----------
    description : str
    total : int, optional
        None where it is not known: then only the time is shown.
    count : callable
        How many are done. Called from another thread; asking takes at most a twentieth of the time, however slow the store is.
    progress : bool
        No bar where false, and none where stderr is no terminal.
    """
    console = Console(stderr=True)
    if not (progress and console.is_terminal):
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(console, description, total, count, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(console: Console, description: str, total: int | None, count: Callable[[], int], ended: threading.Event) -> None:
    if ended.wait(_PATIENCE_S):
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        while True:
            began = time.monotonic()
            # The bar must never end the work: a store that cannot be asked just now is asked again.
            with contextlib.suppress(Exception):
                bar.update(task, completed=count())
            if ended.wait(max(_INTERVAL_S, 20 * (time.monotonic() - began))):
                return
