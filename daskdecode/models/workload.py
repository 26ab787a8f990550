"""Which blocks of voxels, and which plan: as large and as fast as the memory budget allows."""

from __future__ import annotations

import dask.array as da

from daskdecode.engine.design import Design, training_sets
from daskdecode.engine.plan import Engine, Plan, Workload, block_nbytes, make_plan
from daskdecode.engine.registry import Model, takes_turns
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.engine.workers import n_threads_of_one
from daskdecode.errors import MemoryBudgetError


def plan_blocks(x: da.Array, design: Design, model: Model, engine: Engine, budget: str | int | None) -> tuple[Plan, VoxelBlocks]:
    """Plan a workload on blocks of the size that suits the budget, or on smaller ones where only these fit.

    Parameters
    ----------
    x : dask array, shape (n_samples, n_voxels)
    design : Design
    model : Model
    engine : {"auto", "dual", "gram", "direct"}
    budget : str or int, optional

    Raises
    ------
    DecodingError, MemoryBudgetError
        As :func:`daskdecode.engine.plan.make_plan`. What it says to be needed at least is that of the smallest blocks, so that a budget of
        that size is enough.
    """
    nbytes, smallest = block_nbytes(budget), VoxelBlocks(x, 1).widest
    while True:
        blocks = VoxelBlocks(x, nbytes)
        try:
            return make_plan(_workload(blocks, design, model, engine), budget), blocks
        except MemoryBudgetError:
            if blocks.widest <= smallest:
                raise
        nbytes //= 2


def _workload(blocks: VoxelBlocks, design: Design, model: Model, engine: Engine) -> Workload:
    sets = training_sets(design)
    n_samples, n_voxels = blocks.shape
    screening = design.screening
    n_kept = n_voxels if screening is None else screening.n_kept(n_voxels)
    n_threads = n_threads_of_one()
    at_once = 1 if takes_turns(design.build(10, 20)) else n_threads
    estimators = [design.build(n_samples, n_kept, **params) for params in design.candidates]
    needs_voxels = any(map(model.needs_voxels, estimators))
    return Workload(
        n_samples=n_samples,
        n_voxels=n_voxels,
        itemsize=blocks.x.dtype.itemsize,
        n_kept=n_kept,
        n_training_sets=len(sets),
        n_folds=len(design.outer),
        n_classes=len(design.targets),
        n_candidates=len(design.candidates),
        n_cells=0 if screening is None else int(design.cells([s.train for s in sets]).counts.size),
        n_blocks=blocks.n_blocks,
        block_voxels=blocks.widest,
        n_sums=2 if design.classes is not None else 3,
        needs_voxels=needs_voxels,
        fit_nbytes=max(model.nbytes(e, n_samples, n_kept) for e in estimators) * at_once if needs_voxels or engine == "direct" else 0,
        scaled=design.within is not None and design.within.scale,
        n_confounds=0 if design.within is None else design.within.confounds.shape[1],
        engine=engine,
        n_threads=n_threads,
    )
