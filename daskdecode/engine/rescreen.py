"""Screening of many labellings in one sweep: sums over all samples once, and for each labelling only those that know its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

from daskdecode.engine import crossval
from daskdecode.engine.design import Design, TrainingSet
from daskdecode.engine.moments import Bools, Cells, Floats, Ints, f_statistic, regression_scores
from daskdecode.engine.sweep import VoxelBlocks


def screen_all(blocks: VoxelBlocks, designs: Sequence[Design], per_design: Sequence[Sequence[TrainingSet]]) -> list[Bools] | None:
    """Voxels that designs keep, for each (n_sets, n_problems, n_voxels); None where nothing is screened.

    Designs with the same folds are screened together, in one sweep. Those whose folds differ, or whose voxels are cleaned of confounds
    inside each fold, need a sweep each.
    """
    first, screening = designs[0], designs[0].screening
    if screening is None:
        return None
    if first.within is not None or any(sets is not per_design[0] for sets in per_design):
        return [crossval.screen_all(blocks, d, screening, sets, None)[0] for d, sets in zip(designs, per_design, strict=True)]
    sets = per_design[0]
    cells = Cells.of([fold.train for fold in sets], np.zeros(blocks.shape[0], dtype=np.intp))
    values = np.stack([_values(design, design.targets) for design in designs])
    of_all, of_each = blocks.map_join(_Sums(cells, values.reshape(-1, values.shape[-1])), 2)
    parts: Any = of_each
    task = dask.delayed(_keep, pure=False)
    n = len(first.targets)
    return list(dask.compute(*(task(d, sets, cells, of_all, parts[i * n : (i + 1) * n]) for i, d in enumerate(designs))))


def _values(design: Design, targets: NDArray[Any]) -> Floats:
    """What samples are multiplied by in the sums of a problem: 1 in its class and 0 elsewhere, or the target without its mean."""
    if design.classes is None:
        return np.asarray(targets - targets.mean(axis=1, keepdims=True), dtype=np.float64)
    return np.asarray(targets > 0, dtype=np.float64)


@dataclass(frozen=True)
class _Sums:
    """Sums of a block over cells: of the data and their squares, (2, n_cells, n_voxels); of products with each value, (n_values, ...)."""

    cells: Cells
    values: Floats

    def __call__(self, x: NDArray[np.floating]) -> tuple[Floats, Floats]:
        n_cells = self.cells.first.size
        of_all = np.empty((2, n_cells, x.shape[1]))
        of_each = np.empty((len(self.values), n_cells, x.shape[1]))
        for cell in range(n_cells):
            rows = np.flatnonzero(self.cells.of_sample == cell)
            inside = np.asarray(x[rows], dtype=np.float64)
            of_all[0, cell], of_all[1, cell] = inside.sum(axis=0), np.einsum("ij,ij->j", inside, inside)
            of_each[:, cell] = self.values[:, rows] @ inside
        return of_all, of_each


def _keep(design: Design, sets: Sequence[TrainingSet], cells: Cells, of_all: Floats, of_each: Floats) -> Bools:
    masks = np.zeros((len(sets), len(of_each), of_all.shape[-1]), dtype=bool)
    assert design.screening is not None
    for s, fold in enumerate(sets):
        for c, scores in enumerate(_f_scores(design, cells, of_all, of_each, fold.train)):
            masks[s, c, design.voxel_order] = design.screening.keep(scores[design.voxel_order])
    return masks


def _f_scores(design: Design, cells: Cells, of_all: Floats, of_each: Floats, train: Ints) -> list[Floats]:
    """F of every voxel for each problem, as :meth:`daskdecode.engine.crossval.Design.f_scores`."""
    if design.classes is None:
        known = replace(cells, target=_values(design, design.targets)[0])
        return [regression_scores(np.concatenate([of_all, of_each]), known, train)]
    inside = cells.within(train).astype(np.float64)
    total, squares = inside @ of_all
    n_positive = (design.targets[:, train] > 0).sum(axis=1).tolist()
    return [f_statistic(total, inside @ own, squares, train.size, n) for own, n in zip(of_each, n_positive, strict=True)]
