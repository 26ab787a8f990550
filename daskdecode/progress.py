"""A progress bar that knows nothing of the scheduler: it asks, now and then, how much is done."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PATIENCE_S = 2.0
_INTERVAL_S = 0.5


@contextlib.contextmanager
def watch(description: str, count: Callable[[], tuple[int, int | None]], *, progress: bool) -> Iterator[None]:
    """Show a bar on stderr while the block runs, once it has taken two seconds.

    Parameters
    ----------
    description : str
    count : callable
        How many are done, and how many there are in all: None while that is not known, and only the time is shown then. Called from
        another thread; asking takes at most a twentieth of the time, however slow the answer is.
    progress : bool
        No bar where false, and none where stderr is no terminal.
    """
    console = Console(stderr=True)
    if not (progress and console.is_terminal):
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(console, description, count, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(console: Console, description: str, count: Callable[[], tuple[int, int | None]], ended: threading.Event) -> None:
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
        task = bar.add_task(description, total=None)
        while True:
            began = time.monotonic()
            # The bar must never end the work: what cannot be asked just now is asked again.
            with contextlib.suppress(Exception):
                done, total = count()
                bar.update(task, completed=done, total=total)
            if ended.wait(max(_INTERVAL_S, 20 * (time.monotonic() - began))):
                return
