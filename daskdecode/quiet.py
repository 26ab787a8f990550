"""Warnings left out while something runs, in tasks too: Python's filters are those of the whole process."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

_lock = threading.RLock()
_inside: list[warnings.catch_warnings[None]] = []
_n_inside = 0


@contextlib.contextmanager
def quiet(*ignored: type[Warning] | str) -> Iterator[None]:
    """Leave out warnings of some categories, or whose message begins in some way (a regular expression), while the block runs.

    ``warnings.catch_warnings`` puts back the filters that it found. Of two threads the second finds those of the first, and puts them back
    when it ends last: they then stay for good, and a caller who makes warnings errors no longer gets them. Here the first one in keeps
    the filters, and the last one out puts them back.
    """
    global _n_inside
    with _lock:
        if not _n_inside:
            _inside.append(warnings.catch_warnings())
            _inside[-1].__enter__()
        _n_inside += 1
        for what in ignored:
            if isinstance(what, str):
                warnings.filterwarnings("ignore", message=what)
            else:
                warnings.simplefilter("ignore", what)
    try:
        yield
    finally:
        with _lock:
            _n_inside -= 1
            if not _n_inside:
                _inside.pop().__exit__(None, None, None)
