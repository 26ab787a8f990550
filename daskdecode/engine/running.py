"""A sum over blocks that is made in place: there is one of it, however many blocks are added and however many are read at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from daskdecode.engine.moments import Floats


class RunningSum:
    """What has been added up so far of numbered parts.

    Parameters
    ----------
    shape : tuple of int

    Attributes
    ----------
    values : ndarray of float64

    Notes
    -----
    A scheduler takes what a task returns for a value, which can be copied at any time and handed to any task that asked for it: one that it
    runs again when a worker was lost, or is about to leave and its results were copied elsewhere. A sum changes meanwhile, so

    - it counts its parts, and one that it has already is not added again: a copy that is ahead of what it is taken for goes on from there,
    - it is copied between two parts, never within one: a copy in the middle of an addition would hold half of a part and not know it,
    - after a part that failed half way it can only fail again, with the same error.

    A worker that dies takes its sums with it; where there is no copy they begin anew from the data.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.values: Floats = np.zeros(shape)
        self._n_added = 0
        self._failure: Exception | None = None
        self._lock = threading.Lock()

    def add(self, number: int, add: Callable[..., None], *args: Any) -> RunningSum:
        """Call ``add(values, *args)``, which adds part ``number`` in place, unless it is added already; itself."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if number > self._n_added:
                raise RuntimeError(f"Part {number} was to be added to a sum that awaits part {self._n_added}.")
            if number == self._n_added:
                self._add(add, *args)
        return self

    def _add(self, add: Callable[..., None], *args: Any) -> None:
        if not self.values.flags.writeable:  # as arrays may come from another worker
            self.values = self.values.copy()
        try:
            add(self.values, *args)
        except Exception as error:
            self._failure = error
            raise
        self._n_added += 1

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:  # The values are copied too: they may be sent only when the next part is being added to them.
            return {"values": self.values.copy(), "_n_added": self._n_added, "_failure": self._failure}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __sizeof__(self) -> int:
        """Bytes, by which Dask decides what to move: the blocks to the sum, not the sum to the blocks."""
        return self.values.nbytes + 64
