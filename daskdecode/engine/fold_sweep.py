"""Sweeps over blocks of voxels in which every training set prepares the voxels by itself (see :mod:`daskdecode.engine.within_fold`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from daskdecode.engine.gram import n_pairs
from daskdecode.engine.moments import Bools, Cells, Floats
from daskdecode.engine.sweep import InPlace, VoxelBlocks, squared, tree_sum
from daskdecode.engine.within_fold import Lesson, add_weighted_grams, pieces, weighted_coefficients
from daskdecode.engine.workers import n_threads_of_all


def grams(blocks: VoxelBlocks, lessons: Sequence[Lesson], which: Sequence[int], masks: Bools | None) -> list[Delayed]:
    """Gram matrices of voxels scaled by ``lessons[which[s]]``, lazily; for each s an ndarray of float64, (n_samples, n_samples).

    As :meth:`VoxelBlocks.grams`: each of a few shares of the sets is added up in place.
    """
    cells, square = cells_of(lessons), dask.delayed(squared, pure=False)
    shares = [share for share in np.array_split(np.arange(len(which)), n_threads_of_all()) if share.size]
    sums = []
    for share in shares:
        own = sorted({which[s] for s in share})
        how = ([lessons[i] for i in own], cells, [own.index(which[s]) for s in share])
        sums.append(InPlace((share.size, n_pairs(blocks.shape[0])), add_weighted_grams, None if masks is None else masks[share], how))
    totals = blocks.running(sums)
    return [square(total, position) for share, total in zip(shares, totals, strict=True) for position in range(share.size)]


def ensemble(blocks: VoxelBlocks, lessons: Sequence[Lesson], dual: Floats, masks: Bools) -> tuple[Delayed, Delayed]:
    """Coefficients (2, n_classes, n_voxels) and offsets (n_folds, n_classes) of :func:`weighted_coefficients`, lazily."""
    parts: list[Any] = blocks.map(partial(_coefficients_of_block, lessons, cells_of(lessons), dual), masks)
    return dask.delayed(np.concatenate)([part[0] for part in parts], axis=-1), tree_sum([part[1] for part in parts])


def cells_of(lessons: Sequence[Lesson]) -> Cells:
    """Cells of samples that the training sets do not tell apart, whatever their classes."""
    n_samples = lessons[0].spread.shape[0]
    return Cells.of([lesson.train for lesson in lessons], np.zeros(n_samples, dtype=np.intp))


def _coefficients_of_block(
    lessons: Sequence[Lesson], cells: Cells, dual: Floats, x: NDArray[np.floating], masks: Bools
) -> tuple[Floats, Floats]:
    found = [weighted_coefficients(x[:, few], lessons, cells, dual, masks[..., few]) for few in pieces(x.shape[1])]
    return np.concatenate([coef for coef, _ in found], axis=-1), np.sum([offsets for _, offsets in found], axis=0)
