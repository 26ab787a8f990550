"""What training sets see of the data: a Gram matrix of their voxels, or the voxels themselves; all that is asked for in one sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed

from daskdecode.engine import fold_sweep
from daskdecode.engine.design import Design, TrainingSet
from daskdecode.engine.moments import Bools
from daskdecode.engine.plan import Plan
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.engine.within_fold import Lesson, prepare

Pair = tuple[int, int]


@dataclass(frozen=True)
class Viewers:
    """Training sets and problems of one design, which are to see the data.

    Attributes
    ----------
    design : Design
    sets : sequence of TrainingSet
    pairs : sequence of (int, int)
        Number of the training set and of the problem.
    masks : ndarray of bool, shape (len(pairs), n_voxels), or None
        Voxels of each, where they are screened.
    """

    design: Design
    sets: Sequence[TrainingSet]
    pairs: Sequence[Pair]
    masks: Bools | None

    @cached_property
    def groups(self) -> list[list[Pair]]:
        """Pairs that see the same: those of one training set where all voxels are kept, else each by itself."""
        if self.masks is not None:
            return [[key] for key in self.pairs]
        return [[key for key in self.pairs if key[0] == s] for s in dict.fromkeys(s for s, _ in self.pairs)]

    @cached_property
    def lessons(self) -> dict[int, Lesson] | None:
        """What each training set learns of the confounds, by its number."""
        numbers = list(dict.fromkeys(s for s, _ in self.pairs))
        found = self.design.lessons([self.sets[s] for s in numbers])
        return None if found is None else dict(zip(numbers, found, strict=True))

    @property
    def scaled(self) -> bool:
        """Whether each training set weighs the voxels in its own way."""
        return self.design.within is not None and self.design.within.scale


@dataclass(frozen=True)
class Sight:
    """What a training set and the problems that share its voxels see of the data.

    Attributes
    ----------
    source : tuple
        Data as they are, lazy: the Gram matrix (n_samples, n_samples) of its voxels; or (routes columns and direct) the voxels
        (n_samples, n_columns) that the training sets of a batch see, in canonical order, and which of them are its own (None: all).
    n_voxels : int
        How many voxels it has.
    lesson : Delayed or None
        What the training set learnt of the data, by which they are prepared for its models.
    """

    source: tuple[Any, ...]
    n_voxels: int
    lesson: Delayed | None = None

    @property
    def data(self) -> Delayed:
        """What models see, lazily: a Gram matrix, or all columns of which :attr:`columns` are to be taken."""
        if self.lesson is None:
            seen: Delayed = self.source[0]
        else:
            seen = dask.delayed(prepare, pure=False)(self.lesson, *self.source)
        return seen

    @property
    def columns(self) -> Bools | None:
        """Which columns of :attr:`data` models see, (n_columns,); None: all of them, or a Gram matrix."""
        return self.source[1] if self.lesson is None and len(self.source) > 1 else None


def sights(blocks: VoxelBlocks, viewers: Sequence[Viewers], plan: Plan) -> list[list[Sight]]:
    """What each group of pairs sees, for each of the viewers; lazy, one sweep for all of them.

    Parameters
    ----------
    blocks : VoxelBlocks
    viewers : sequence of Viewers
        Designs that screen and prepare in the same way.
    plan : Plan
    """
    sources = iter(_columns(blocks, viewers) if plan.route != "gram" else _grams(blocks, viewers))
    return [_of(viewer, [next(sources) for _ in viewer.groups], blocks.shape[1]) for viewer in viewers]


def _columns(blocks: VoxelBlocks, viewers: Sequence[Viewers]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for viewer in viewers:
        order, masks = viewer.design.voxel_order, viewer.masks
        index = order if masks is None else order[np.any(masks, axis=0)[order]]
        columns = blocks.columns(index)
        found += [(columns, None if masks is None else masks[position][index]) for position in range(len(viewer.groups))]
    return found


def _grams(blocks: VoxelBlocks, viewers: Sequence[Viewers]) -> list[tuple[Any, ...]]:
    masks = None if viewers[0].masks is None else np.concatenate([viewer.masks for viewer in viewers if viewer.masks is not None])
    if viewers[0].scaled:
        lessons: list[Lesson] = []
        which: list[int] = []
        for viewer in viewers:
            assert viewer.lessons is not None
            place = {s: len(lessons) + position for position, s in enumerate(viewer.lessons)}
            lessons += viewer.lessons.values()
            which += [place[keys[0][0]] for keys in viewer.groups]
        return [(gram,) for gram in fold_sweep.grams(blocks, lessons, which, masks)]
    if masks is None:
        (gram,) = blocks.grams(None)
        return [(gram,) for viewer in viewers for _ in viewer.groups]
    # The training sets of a problem keep nearly the same voxels.
    n_problems = len(viewers[0].design.targets)
    return [(g,) for g in blocks.grams(masks, [v * n_problems + c for v, viewer in enumerate(viewers) for _, c in viewer.pairs])]


def _of(viewer: Viewers, sources: Sequence[tuple[Any, ...]], n_all: int) -> list[Sight]:
    n_voxels = [n_all] * len(sources) if viewer.masks is None else viewer.masks.sum(axis=1).tolist()
    if viewer.lessons is None:
        return [Sight(source, n) for source, n in zip(sources, n_voxels, strict=True)]
    shared = {s: dask.delayed(lesson, pure=False, traverse=False) for s, lesson in viewer.lessons.items()}
    return [Sight(source, n, shared[keys[0][0]]) for source, n, keys in zip(sources, n_voxels, viewer.groups, strict=True)]
