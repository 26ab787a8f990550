"""What may never return: libraries that ask a server without a limit of time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TypeVar

T = TypeVar("T")


def within(timeout_s: float, call: Callable[[], T], undo: Callable[[T], object] = lambda _: None) -> T:
    """Call something in a thread of its own, and give it up after a time.

    Parameters
    ----------
    timeout_s : float
    call : callable
    undo : callable
        Called, in that thread, with what comes after nobody waits for it any more.

    Raises
    ------
    TimeoutError
        It has not returned. Its thread goes on, but the interpreter does not wait for it at its end.
    """
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            found = call()
        except BaseException as error:
            with contextlib.suppress(InvalidStateError):
                outcome.set_exception(error)
            return
        try:
            outcome.set_result(found)
        except InvalidStateError:
            with contextlib.suppress(Exception):
                undo(found)

    threading.Thread(target=work, name="daskdecode-bounded", daemon=True).start()
    try:
        return outcome.result(timeout_s)
    except BaseException:  # Ctrl-C too
        outcome.cancel()
        raise
