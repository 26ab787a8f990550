"""Every fold, class and hyperparameter from a few sweeps over the voxels.

1. Sums of cells (with screening): the voxels of every training set and problem.
2. Gram matrices of those sets of voxels (or, where voxels are few, the voxels themselves); fits and scores on them.
3. Coefficients of the chosen models, all folds and classes in one product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed

from daskdecode.engine import fold_sweep
from daskdecode.engine.choice import choose
from daskdecode.engine.design import Design, TrainingSet, training_sets
from daskdecode.engine.fits import fit_on_columns, fit_on_gram
from daskdecode.engine.moments import Bools, Floats, Ints, Screening
from daskdecode.engine.plan import Plan
from daskdecode.engine.ranking import Rank, cell_scores, n_candidates, sums_are_less
from daskdecode.engine.sight import Viewers, sights
from daskdecode.engine.solvers import OF_FITS, Fits, Params, Problem
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.engine.within_fold import Lesson, fit_on_prepared_columns, fit_on_prepared_gram, screening_scores
from daskdecode.quiet import quiet

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CrossValidated:
    """What cross-validation found; F folds, C problems.

    Attributes
    ----------
    scores : ndarray of float64, shape (F, C)
        Of the chosen candidate on the held-out fold.
    chosen : ndarray of int, shape (F, C)
        Index of the candidate.
    intercepts : ndarray of float64, shape (F, C)
    decision : ndarray of float64, shape (F, C, n_samples)
        Decision values of the chosen models on all samples.
    coef, std_coef : ndarray of float64, shape (C, n_voxels), or None
        Mean and standard deviation over folds; voxels that a fold screened out count as 0. None where the models have no weights.
    pattern : ndarray of float64, shape (C, n_voxels), or None
        Haufe patterns.
    n_unconverged : int
        Fits that stopped at their largest number of iterations.
    params : list of lists of mappings
        What was chosen, indexed [fold][problem].
    models : list of lists of estimators, or None
        The chosen models, where they have no weights, with ``columns``, what they see of the data.
    columns : list of lists of int arrays, or None
        Voxels that each of ``models`` sees, in its order.
    preparations : list of lists of Preparation or None, or None
        What these voxels go through first.
    optimistic : ndarray of float64, shape (F, C)
        Scores of the candidates that the held-out folds themselves would choose.
    slopes : ndarray of float64, shape (C, n_confounds), or None
        Mean over folds of the weights on confounds.
    """

    scores: Floats
    chosen: Ints
    intercepts: Floats
    decision: Floats
    coef: Floats | None
    std_coef: Floats | None
    pattern: Floats | None
    n_unconverged: int
    params: list[list[Params]]
    optimistic: Floats
    models: list[list[Any]] | None = None
    columns: list[list[Ints]] | None = None
    preparations: list[list[Any]] | None = None
    slopes: Floats | None = None


def cross_validate(
    blocks: VoxelBlocks, design: Design, plan: Plan, progress: Progress | None = None, also: Delayed | None = None
) -> tuple[CrossValidated, Any]:
    """Fit and score every training set, problem and candidate.

    Parameters
    ----------
    blocks : VoxelBlocks
        Scaled data, (n_samples, n_voxels).
    design : Design
    plan : Plan
        From :func:`daskdecode.engine.plan.make_plan`.
    progress : callable, optional
        Called with (problems done, problems in all) after each batch.
    also : Delayed, optional
        Something else that needs the data: computed with a sweep that shares what it reads, so that it costs no pass of its own.

    Returns
    -------
    CrossValidated
    also
        Computed.
    """
    sets = training_sets(design)
    masks = None
    if design.screening is not None:
        masks, also = screen_all(blocks, design, design.screening, sets, also)
    fits, also = _fit_all(blocks, design, sets, masks, plan, progress, also)
    return _gather(blocks, design, sets, masks, fits, plan, also)


def screen_all(blocks: VoxelBlocks, design: Design, screening: Screening, sets: Sequence[TrainingSet], also: Any) -> tuple[Bools, Any]:
    """Voxels of each (training set, problem), shape (n_sets, n_classes, n_voxels)."""
    n_voxels, n_classes = blocks.shape[1], len(design.targets)
    trains, lessons = [s.train for s in sets], design.lessons(sets)
    cells, most = design.cells(trains), n_candidates(screening, n_voxels)
    masks = np.zeros((len(sets), n_classes, n_voxels), dtype=bool)
    if lessons is None and sums_are_less(len(sets) * n_classes, most, cells.n_sums * cells.first.size, n_voxels):
        parts, also = dask.compute(blocks.map(cells.sums), also)
        for s, train in enumerate(trains):
            scores = np.concatenate([design.f_scores(part, cells, train) for part in parts], axis=-1)
            for c in range(n_classes):
                masks[s, c, design.voxel_order] = screening.keep(scores[c, design.voxel_order])
        return masks, also
    if lessons is None:
        score = partial(cell_scores, trains=trains, cells=cells, f_scores=design.f_scores)
    else:
        score = partial(screening_scores, lessons=lessons, cells=cells, f_scores=design.f_scores)
    rank = Rank(score, most, last=screening.n_features is not None)
    candidates, also = dask.compute(blocks.accumulate(rank, np.argsort(design.voxel_order)), also)
    for s, c in np.ndindex(len(sets), n_classes):
        masks[s, c, design.voxel_order] = candidates.choose(screening, s * n_classes + c, n_voxels)
    return masks, also


def _fit_all(
    blocks: VoxelBlocks,
    design: Design,
    sets: Sequence[TrainingSet],
    masks: Bools | None,
    plan: Plan,
    progress: Progress | None,
    also: Any,
) -> tuple[list[list[Fits]], Any]:
    """Fits of each training set and problem, indexed [set][problem]."""
    n_classes = len(design.targets)
    every = _in_order(len(sets), n_classes, masks)
    found: dict[tuple[int, int], Fits] = {}
    size = len(every)
    if masks is not None:
        size = plan.batch
    elif _scaled_grams(design, plan):
        size = plan.batch * n_classes
    for start in range(0, len(every), size):
        batch = every[start : start + size]
        chosen = None if masks is None else np.stack([masks[s, c] for s, c in batch])
        viewers = Viewers(design, sets, batch, chosen)
        tasks = _batch(blocks, viewers, plan)
        with quiet(*OF_FITS):
            if _scaled_grams(design, plan):
                # Their sums read blocks by themselves, and share them with nothing else.
                (computed,) = dask.compute(tasks)
            else:
                computed, also = dask.compute(tasks, also)
        for key, fits in zip(viewers.groups, computed, strict=True):
            found.update(zip(key, fits, strict=True))
        if progress is not None:
            progress(len(found), len(every))
    return [[found[s, c] for c in range(n_classes)] for s in range(len(sets))], also


def _in_order(n_sets: int, n_classes: int, masks: Bools | None) -> list[tuple[int, int]]:
    """Every (training set, problem), those that share work beside each other."""
    if masks is None:
        return [(s, c) for s in range(n_sets) for c in range(n_classes)]
    # Class by class: the training sets of a class select nearly the same voxels, and share most of their products.
    return [(s, c) for c in range(n_classes) for s in range(n_sets)]


def _scaled_grams(design: Design, plan: Plan) -> bool:
    """Whether each training set weighs the voxels of its Gram matrix in its own way."""
    return plan.route == "gram" and design.within is not None and design.within.scale


def _batch(blocks: VoxelBlocks, viewers: Viewers, plan: Plan) -> list[Delayed]:
    """One sweep for the sets of voxels of a batch, then its fits, as one Dask graph; lazy."""
    as_it_is, prepared = (fit_on_gram, fit_on_prepared_gram) if plan.route == "gram" else (fit_on_columns, fit_on_prepared_columns)
    as_it_is, prepared = dask.delayed(as_it_is, pure=False), dask.delayed(prepared, pure=False)
    design, tasks = viewers.design, []
    for keys, sight in zip(viewers.groups, sights(blocks, [viewers], plan)[0], strict=True):
        fold = viewers.sets[keys[0][0]]
        problems = [Problem(fold.train, design.targets[c], fold.tests, fold.outer, design.sample_weight) for _, c in keys]
        how = (problems, design.candidates, design.build, design.scorer, sight.n_voxels)
        tasks.append(as_it_is(*sight.source, *how) if sight.lesson is None else prepared(*sight.source, sight.lesson, *how))
    return tasks


def _gather(
    blocks: VoxelBlocks, design: Design, sets: Sequence[TrainingSet], masks: Bools | None, fits: list[list[Fits]], plan: Plan, also: Any
) -> tuple[CrossValidated, Any]:
    """Choose a candidate for each fold and problem, and average the chosen models."""
    lookup = {s.train.tobytes(): (position, s) for position, s in enumerate(sets)}
    choices = choose(design, sets, fits)
    scores = np.array([[c.score for c in row] for row in choices])
    optimistic = np.array([[c.held_out[c.luckiest] for c in row] for row in choices])
    picked = [[(c.fits, c.pick) for c in row] for row in choices]
    chosen = np.array([[pick for _, pick in row] for row in picked], dtype=np.intp)
    intercepts = np.array([[0.0 if fit.intercepts is None else fit.intercepts[pick] for fit, pick in row] for row in picked])
    decision = np.array([[fit.decision[pick] for fit, pick in row if fit.decision is not None] for row in picked])
    outer_masks = None if masks is None else np.stack([masks[lookup[train.tobytes()][0]] for train, _ in design.outer])
    n_unconverged = sum(fit.n_unconverged for row in fits for fit in row)
    params = [[fit.params[pick] for fit, pick in row] for row in picked]
    found = CrossValidated(scores, chosen, intercepts, decision, None, None, None, n_unconverged, params, optimistic)
    if any(fit.weights is None for row in picked for fit, _ in row):
        models = [[fit.models[pick] if fit.models else None for fit, pick in row] for row in picked]
        preparations = [[fit.preparation for fit, _ in row] for row in picked]
        return replace(found, models=models, columns=_columns(outer_masks, design), preparations=preparations), also
    lessons = design.lessons([lookup[train.tobytes()][1] for train, _ in design.outer])
    if lessons is not None:
        slopes = np.array([[fit.slopes[pick] for fit, pick in row if fit.slopes is not None] for row in picked])
        found = replace(found, slopes=slopes.mean(axis=0))
    return _with_weights(blocks, design, found, picked, outer_masks, lessons, plan, also)


def _with_weights(
    blocks: VoxelBlocks,
    design: Design,
    found: CrossValidated,
    picked: list[list[tuple[Fits, int]]],
    masks: Bools | None,
    lessons: list[Lesson] | None,
    plan: Plan,
    also: Any,
) -> tuple[CrossValidated, Any]:
    """Coefficients and patterns of the chosen models, one sweep; ``masks`` and ``lessons`` are those of the outer folds."""
    weights = [[fit.weights[pick] for fit, pick in row if fit.weights is not None] for row in picked]
    pattern = _haufe_weights(found.decision.mean(axis=0))
    if lessons is not None:
        # The pattern is of the data that the models saw: of their mean over folds.
        pattern = np.mean([lesson.on_samples(pattern) for lesson in lessons], axis=0)
    patterns = blocks.project(pattern.T)
    if plan.route != "gram":
        coef, std_coef = _scatter(weights, masks, design.voxel_order)
        patterns, also = dask.compute(patterns, also)
        return replace(found, coef=coef, std_coef=std_coef, pattern=patterns.T), also
    dual = np.array(weights)
    kept = np.ones((1, 1, blocks.shape[1]), dtype=bool) if masks is None else masks
    if lessons is None or not lessons[0].scale:
        (coef, std_coef), patterns, also = dask.compute(blocks.ensemble(dual, kept), patterns, also)
    else:
        (coef, std_coef), offsets, patterns, also = dask.compute(*fold_sweep.ensemble(blocks, lessons, dual, kept), patterns, also)
        found = replace(found, intercepts=found.intercepts - offsets)
    return replace(found, coef=coef, std_coef=std_coef, pattern=patterns.T), also


def _columns(masks: Bools | None, design: Design) -> list[list[Ints]]:
    """Voxels that the models of each outer fold and problem saw, in the order in which they saw them."""
    order, problems = design.voxel_order, range(len(design.targets))
    return [[order if masks is None else order[masks[f, c][order]] for c in problems] for f in range(len(design.outer))]


def _scatter(weights: list[list[Floats]], masks: Bools | None, voxel_order: Ints) -> tuple[Floats, Floats]:
    """Put weights on columns (canonical order) back on voxels; mean and standard deviation over folds, each (C, n_voxels)."""
    full = np.zeros((len(weights), len(weights[0]), voxel_order.size))
    for f, row in enumerate(weights):
        for c, w in enumerate(row):
            kept = voxel_order if masks is None else voxel_order[masks[f, c][voxel_order]]
            full[f, c, kept] = w
    return full.mean(axis=0), full.std(axis=0)


def _haufe_weights(decision: Floats) -> Floats:
    """Weights on samples that give each problem's pattern, ``cov(X, s) / var(s) = X' (s - mean s) / sum (s - mean s)^2``.

    Haufe et al. 2014, NeuroImage 87:96-110, for one decision value ``s`` at a time.
    """
    centred = decision - decision.mean(axis=1, keepdims=True)
    power = np.square(centred).sum(axis=1, keepdims=True)
    return np.asarray(np.divide(centred, power, out=np.zeros_like(centred), where=power > 0))
