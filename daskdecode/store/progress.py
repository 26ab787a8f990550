"""How far tasks of this process have come in the files they read, for the bar to ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

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
