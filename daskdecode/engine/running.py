"""A sum over blocks that is made in place: there is one of it, however many blocks are added and however many are read at a time."""

from __future__ import annotations

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
    A task that changes what it is given may not be run twice on it, as a scheduler might after an error. So a sum counts its parts, and
    refuses one that is not the next, or any after one that failed half way: it is never silently wrong. A worker that dies takes the sum
    with it, which then begins anew from the data.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.values: Floats = np.zeros(shape)
        self._next: int | None = 0

    def add(self, number: int, add: Callable[..., None], *args: Any) -> RunningSum:
        """Call ``add(values, *args)``, which adds part ``number`` in place; itself."""
        if self._next != number:
            raise RuntimeError(f"Part {number} was to be added to a sum that awaits part {self._next}: a task was run again. Start anew.")
        self._next = None
        if not self.values.flags.writeable:  # as arrays may come from another worker
            self.values = self.values.copy()
        add(self.values, *args)
        self._next = number + 1
        return self

    def __sizeof__(self) -> int:
        """Bytes, by which Dask decides what to move: the blocks to the sum, not the sum to the blocks."""
        return self.values.nbytes + 64
