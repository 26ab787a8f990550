"""Every fold, class and hyperparameter from a few sweeps over the voxels.

1. Sums of cells (with screening): the voxels of every training set and problem.
2. Gram matrices of those sets of voxels (or, where voxels are few, the voxels themselves); fits and scores on them.
3. Coefficients of the chosen models, all folds and classes in one product.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning

from daskdecode.engine.fits import fit_on_columns, fit_on_gram
from daskdecode.engine.moments import Bools, Cells, Floats, Ints, Screening, class_scores, regression_scores
from daskdecode.engine.plan import Plan
from daskdecode.engine.solvers import Fits, Params, Problem, Scorer
from daskdecode.engine.sweep import VoxelBlocks

Split = tuple[Ints, Ints]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Design:
    """What is to be cross-validated.

    Attributes
    ----------
    classes : ndarray of int, shape (n_samples,), or None
        Class code of each sample; None in a regression.
    targets : ndarray of int or float64, shape (n_classes, n_samples)
        -1 or +1 for each binary problem; what is regressed on, one row.
    outer : sequence of (train, test)
        Folds that are reported.
    inner : sequence of sequences of (train, test), or None
        For each outer fold, the folds inside its training samples that choose hyperparameters. None: the held-out fold chooses.
    candidates : sequence of mappings
        Hyperparameters.
    build : callable
        See :func:`daskdecode.engine.solvers.fit_candidates`.
    scorer : callable
        ``scorer(estimator, X, y) -> float``.
    screening : Screening or None
    voxel_order : ndarray of int, shape (n_voxels,)
        Columns in canonical order: what a solver sees, and how ties are broken, does not depend on the order in storage.
    """

    classes: Ints | None
    targets: NDArray[Any]
    outer: Sequence[Split]
    inner: Sequence[Sequence[Split]] | None
    candidates: Sequence[Params]
    build: Callable[..., Any]
    scorer: Scorer
    screening: Screening | None
    voxel_order: Ints

    def cells(self, train_sets: Sequence[Ints]) -> Cells:
        """Cells of samples whose sums screening needs."""
        if self.classes is None:
            return Cells.of(train_sets, np.zeros(self.targets.shape[1], dtype=np.intp), self.targets[0])
        return Cells.of(train_sets, self.classes)

    def f_scores(self, sums: Floats, cells: Cells, train: Ints) -> Floats:
        """F of every voxel and problem for one training set, shape (n_classes, n_voxels)."""
        if self.classes is None:
            return regression_scores(sums, cells, train)[None]
        return class_scores(sums, cells, train, self.targets > 0)

    def splits(self) -> list[Split]:
        """Every (train, test) pair, outer and inner."""
        return [*self.outer, *(split for fold in self.inner or () for split in fold)]


@dataclass(frozen=True)
class TrainingSet:
    """One training set and everything it is tested on. Pairs of folds share theirs: without runs a and b is without b and a."""

    train: Ints
    tests: tuple[Ints, ...]
    outer: bool


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
    models: list[list[Any]] | None = None
    columns: list[list[Ints]] | None = None


def training_sets(design: Design) -> list[TrainingSet]:
    """Gather the distinct training sets, with the union of their test sets, in order of first appearance."""
    tests: dict[bytes, list[Ints]] = {}
    trains: dict[bytes, Ints] = {}
    for train, test in design.splits():
        key = train.tobytes()
        trains.setdefault(key, train)
        known = tests.setdefault(key, [])
        if not any(np.array_equal(test, other) for other in known):
            known.append(test)
    outer = {train.tobytes() for train, _ in design.outer}
    return [TrainingSet(trains[key], tuple(tests[key]), key in outer) for key in tests]


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
        Something else that needs the data: computed with the first sweep, so that it costs no pass of its own.

    Returns
    -------
    CrossValidated
    also
        Computed.
    """
    sets = training_sets(design)
    masks = None
    if design.screening is not None:
        masks, also = _screen_all(blocks, design, design.screening, sets, also)
    fits, also = _fit_all(blocks, design, sets, masks, plan, progress, also)
    return _gather(blocks, design, sets, masks, fits, plan), also


def _screen_all(blocks: VoxelBlocks, design: Design, screening: Screening, sets: Sequence[TrainingSet], also: Any) -> tuple[Bools, Any]:
    """Voxels of each (training set, problem), shape (n_sets, n_classes, n_voxels)."""
    cells = design.cells([s.train for s in sets])
    sums, also = dask.compute(blocks.sums(cells), also)
    masks = np.zeros((len(sets), len(design.targets), blocks.shape[1]), dtype=bool)
    for s, fold in enumerate(sets):
        for c, scores in enumerate(design.f_scores(sums, cells, fold.train)):
            masks[s, c, design.voxel_order] = screening.keep(scores[design.voxel_order])
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
    # Class by class: the training sets of a class select nearly the same voxels, and share most of their products.
    every = [(s, c) for c in range(n_classes) for s in range(len(sets))]
    found: dict[tuple[int, int], Fits] = {}
    size = plan.batch if masks is not None else len(every)
    for start in range(0, len(every), size):
        batch = every[start : start + size]
        chosen = None if masks is None else np.stack([masks[s, c] for s, c in batch])
        tasks = _batch(blocks, design, sets, batch, chosen, plan)
        with warnings.catch_warnings():
            # Both are counted and reported once, by name, instead of once a fit.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            # A search of the estimator's own splits the training samples by itself, and says so once a fit.
            warnings.filterwarnings("ignore", message="The least populated class in y has only")
            computed, also = dask.compute(tasks, also)
        for key, fits in zip(_keys(batch, masks), computed, strict=True):
            found.update(zip(key, fits, strict=True))
        if progress is not None:
            progress(len(found), len(every))
    return [[found[s, c] for c in range(n_classes)] for s in range(len(sets))], also


def _keys(batch: Sequence[tuple[int, int]], masks: Bools | None) -> list[list[tuple[int, int]]]:
    """Group the problems of a batch that share a factor: those of one training set where all voxels are kept, else each its own."""
    if masks is not None:
        return [[key] for key in batch]
    return [[key for key in batch if key[0] == s] for s in dict.fromkeys(s for s, _ in batch)]


def _batch(
    blocks: VoxelBlocks, design: Design, sets: Sequence[TrainingSet], batch: Sequence[tuple[int, int]], masks: Bools | None, plan: Plan
) -> list[Delayed]:
    """One sweep for the sets of voxels of a batch, then its fits, as one Dask graph; lazy."""
    columns_fit, gram_fit = dask.delayed(fit_on_columns, pure=False), dask.delayed(fit_on_gram, pure=False)
    tasks: list[Delayed] = []
    for keys, sight in zip(_keys(batch, masks), sights(blocks, design, sets, batch, masks, plan), strict=True):
        fold = sets[keys[0][0]]
        problems = [Problem(fold.train, design.targets[c], fold.tests, fold.outer) for _, c in keys]
        how = (problems, design.candidates, design.build, design.scorer, sight.n_voxels)
        tasks.append(gram_fit(sight.data, *how) if plan.route == "gram" else columns_fit(sight.data, sight.columns, *how))
    return tasks


@dataclass(frozen=True)
class Sight:
    """What a training set and the problems that share its voxels see of the data.

    Attributes
    ----------
    data : Delayed
        ndarray of float64: the Gram matrix (n_samples, n_samples) of its voxels, or (routes columns and direct) the voxels
        (n_samples, n_columns) that the training sets of a batch see, in canonical order.
    columns : ndarray of bool, shape (n_columns,), or None
        Which of the columns are its own; None: all of them, or a Gram matrix.
    n_voxels : int
        How many voxels it has.
    """

    data: Delayed
    columns: Bools | None
    n_voxels: int


def sights(
    blocks: VoxelBlocks,
    design: Design,
    sets: Sequence[TrainingSet],  # noqa: ARG001  # what is seen may depend on the training samples themselves
    batch: Sequence[tuple[int, int]],
    masks: Bools | None,
    plan: Plan,
) -> list[Sight]:
    """What each group of (training set, problem) of a batch that shares a factor sees; lazy, one sweep.

    Parameters
    ----------
    blocks : VoxelBlocks
    design : Design
    sets : sequence of TrainingSet
    batch : sequence of (int, int)
        Number of the training set and of the problem.
    masks : ndarray of bool, shape (len(batch), n_voxels), or None
        Voxels of each, where they are screened. Then each is a group of its own; else all problems of a training set are one.
    plan : Plan
    """
    if plan.route == "gram":
        grams = blocks.grams(masks, [c for _, c in batch])
        if masks is None:
            return [Sight(grams[0], None, blocks.shape[1]) for _ in _keys(batch, masks)]
        return [Sight(gram, None, int(mask.sum())) for gram, mask in zip(grams, masks, strict=True)]
    index = design.voxel_order if masks is None else design.voxel_order[np.any(masks, axis=0)[design.voxel_order]]
    columns = blocks.columns(index)
    if masks is None:
        return [Sight(columns, None, index.size) for _ in _keys(batch, masks)]
    return [Sight(columns, mask[index], int(mask.sum())) for mask in masks]


def _gather(
    blocks: VoxelBlocks, design: Design, sets: Sequence[TrainingSet], masks: Bools | None, fits: list[list[Fits]], plan: Plan
) -> CrossValidated:
    """Choose a candidate for each fold and problem, and average the chosen models."""
    lookup = {s.train.tobytes(): (position, s) for position, s in enumerate(sets)}
    n_folds, n_classes, n_samples = len(design.outer), len(design.targets), blocks.shape[0]
    chosen = np.zeros((n_folds, n_classes), dtype=np.intp)
    scores = np.full((n_folds, n_classes), np.nan)
    intercepts = np.zeros((n_folds, n_classes))
    decision = np.zeros((n_folds, n_classes, n_samples))
    picked: list[list[tuple[Fits, int]]] = []
    for f, (train, test) in enumerate(design.outer):
        position, fold = lookup[train.tobytes()]
        picked.append([])
        for c, fit in enumerate(fits[position]):
            held_out = fit.scores[:, _position(fold.tests, test)]
            pick = _last_best(held_out) if design.inner is None else _first_best(_inner_scores(design.inner[f], lookup, fits, c))
            assert fit.decision is not None
            chosen[f, c], scores[f, c], decision[f, c] = pick, held_out[pick], fit.decision[pick]
            intercepts[f, c] = 0.0 if fit.intercepts is None else fit.intercepts[pick]
            picked[f].append((fit, pick))
    outer_masks = None if masks is None else np.stack([masks[lookup[train.tobytes()][0]] for train, _ in design.outer])
    n_unconverged = sum(fit.n_unconverged for row in fits for fit in row)
    params = [[fit.params[pick] for fit, pick in row] for row in picked]
    found = CrossValidated(scores, chosen, intercepts, decision, None, None, None, n_unconverged, params)
    if any(fit.weights is None for row in picked for fit, _ in row):
        models = [[fit.models[pick] if fit.models else None for fit, pick in row] for row in picked]
        return replace(found, models=models, columns=_columns(outer_masks, design))
    weights = [[fit.weights[pick] for fit, pick in row if fit.weights is not None] for row in picked]
    pattern = _haufe_weights(decision.mean(axis=0))
    if plan.route == "gram":
        kept = np.ones((1, 1, blocks.shape[1]), dtype=bool) if outer_masks is None else outer_masks
        (coef, std_coef), patterns = dask.compute(blocks.ensemble(np.array(weights), kept), blocks.project(pattern.T))
    else:
        coef, std_coef = _scatter(weights, outer_masks, design.voxel_order)
        patterns = blocks.project(pattern.T).compute()
    return replace(found, coef=coef, std_coef=std_coef, pattern=patterns.T)


def _columns(masks: Bools | None, design: Design) -> list[list[Ints]]:
    """Voxels that the models of each outer fold and problem saw, in the order in which they saw them."""
    order, problems = design.voxel_order, range(len(design.targets))
    return [[order if masks is None else order[masks[f, c][order]] for c in problems] for f in range(len(design.outer))]


def _position(tests: Sequence[Ints], test: Ints) -> int:
    return next(i for i, other in enumerate(tests) if np.array_equal(test, other))


def _inner_scores(splits: Sequence[Split], lookup: dict[bytes, tuple[int, TrainingSet]], fits: list[list[Fits]], problem: int) -> Floats:
    """Mean score of each candidate over the inner folds where it is defined, shape (n_candidates,); minus infinity where none is."""
    columns = []
    for train, test in splits:
        position, fold = lookup[train.tobytes()]
        columns.append(fits[position][problem].scores[:, _position(fold.tests, test)])
    scores = np.stack(columns, axis=1)
    defined = np.isfinite(scores)
    means = np.where(defined, scores, 0.0).sum(axis=1) / np.maximum(defined.sum(axis=1), 1)
    return np.asarray(np.where(defined.any(axis=1), means, -np.inf))


def _first_best(scores: Floats) -> int:
    """First of the best, as scikit-learn's searches: the strongest regularisation where the grid ascends in C.

    Scores that differ by rounding count as equal: the order in which a score was summed must not choose a model.
    """
    return int(np.argmax(scores >= np.max(scores) - 1e-12))


def _last_best(scores: Floats) -> int:
    """Last of the best, as nilearn's ``score >= best_score``; a score that is not defined never replaces one."""
    best = 0
    for candidate, score in enumerate(scores):
        if score >= scores[best]:
            best = candidate
    return best


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
