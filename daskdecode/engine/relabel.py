"""Scores alone, without coefficients: of one design, or of many that differ in their labels only.

Where nothing is screened, the voxels are read once, and everything else is done on one small matrix.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask
import numpy as np
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from sklearn.svm import LinearSVC

from daskdecode.engine import crossval
from daskdecode.engine.closed_form import RidgePath
from daskdecode.engine.coordinate_descent import can_solve, fit_dual
from daskdecode.engine.design import Design, Split, TrainingSet, training_sets
from daskdecode.engine.fits import fit_on_columns, fit_on_gram
from daskdecode.engine.moments import Floats, Ints
from daskdecode.engine.plan import Plan
from daskdecode.engine.solvers import Fits, Problem
from daskdecode.engine.sweep import VoxelBlocks

Judge = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True)
class Shared:
    """What all labellings of the same samples have in common: one Gram matrix, or the voxels where they are few.

    Attributes
    ----------
    small : ndarray of float64, shape (n_samples, n_samples) or (n_samples, n_voxels)
    is_gram : bool
    n_voxels : int
    """

    small: Floats
    is_gram: bool
    n_voxels: int

    @classmethod
    def of(cls, blocks: VoxelBlocks, design: Design, plan: Plan) -> Shared:
        """Read the voxels once, all of them: for designs without screening."""
        if plan.route != "gram":
            return cls(blocks.columns(design.voxel_order).compute(), False, blocks.shape[1])
        return cls(blocks.grams(None)[0].compute(), True, blocks.shape[1])

    def gram(self) -> Floats:
        """Return the Gram matrix, (n_samples, n_samples)."""
        return self.small if self.is_gram else self.small @ self.small.T


def screened_scores(blocks: VoxelBlocks, design: Design, plan: Plan) -> Floats:
    """Score one design on the voxels, each training set with its own screening; (n_folds, n_problems) float64."""
    sets = _without_weights(training_sets(design))
    masks = None
    if design.screening is not None:
        masks, _ = crossval._screen_all(blocks, design, design.screening, sets, None)
    fits, _ = crossval._fit_all(blocks, design, sets, masks, plan, None, None)
    return _choose(design, sets, fits)


def shared_scores(shared: Shared, designs: Sequence[Design], judge: Judge) -> Floats:
    """Score designs without screening that differ in labels only; what a training set has in common is done once for all of them.

    Parameters
    ----------
    shared : Shared
    designs : sequence of Design
        With the same candidates; folds may differ.
    judge : callable
        As the designs' ``scorer``, many at a time: ``judge(decision, truth) -> (n_vectors,)``, both (n_rows, n_vectors).

    Returns
    -------
    ndarray of float64, shape (n_designs, n_folds, n_problems)
        Of the candidate that each design's own tuning chose.
    """
    by_folds = {id(design.outer): _without_weights(training_sets(design)) for design in {id(d.outer): d for d in designs}.values()}
    per_design = [by_folds[id(design.outer)] for design in designs]
    users: dict[bytes, list[tuple[int, int]]] = {}
    for d, sets in enumerate(per_design):
        for s, fold in enumerate(sets):
            users.setdefault(fold.train.tobytes(), []).append((d, s))
    small, first = dask.delayed(shared.small, pure=False), designs[0]
    fit = dask.delayed(_fit_one_set, pure=False)
    tasks = []
    for members in users.values():
        problems = [
            Problem(per_design[d][s].train, target, per_design[d][s].tests, False) for d, s in members for target in designs[d].targets
        ]
        tasks.append(fit(small, shared.is_gram, problems, first.candidates, first.build, first.scorer, shared.n_voxels, judge))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        done = dask.compute(*tasks)
    fits: list[list[list[Fits]]] = [[[] for _ in sets] for sets in per_design]
    for members, results in zip(users.values(), done, strict=True):
        given = iter(results)
        for d, s in members:
            fits[d][s] = [next(given) for _ in designs[d].targets]
    return np.stack([_choose(design, sets, fit) for design, sets, fit in zip(designs, per_design, fits, strict=True)])


def _fit_one_set(small: Floats, is_gram: bool, problems: Sequence[Problem], *how: Any) -> list[Fits]:
    """Fit problems that share their training samples, many at a time where the solver can."""
    candidates, build, scorer, n_voxels, judge = how
    if not is_gram:
        return fit_on_columns(small, None, problems, candidates, build, scorer, n_voxels)
    train = problems[0].train
    models = [build(train.size, n_voxels, **params) for params in candidates]
    if not all(can_solve(model) for model in models):
        return fit_on_gram(small, problems, candidates, build, scorer, n_voxels)
    decision = _decide(small, train, [problem.target for problem in problems], models)
    scores = [np.full((len(models), len(problem.tests)), np.nan) for problem in problems]
    # Problems with the same test samples are judged together; permuted labels rarely change the folds.
    same: dict[bytes, list[tuple[int, int]]] = {}
    for p, problem in enumerate(problems):
        for t, test in enumerate(problem.tests):
            same.setdefault(test.tobytes(), []).append((p, t))
    for members in same.values():
        test = problems[members[0][0]].tests[members[0][1]]
        which = np.array([p for p, _ in members], dtype=np.intp)
        truth = np.stack([problems[p].target[test] for p in which], axis=1)
        # (n_test, n_members x n_models), one member after another
        decided = decision[np.ix_(which, np.arange(len(models)), test)].transpose(2, 0, 1).reshape(test.size, -1)
        found = judge(decided, np.repeat(truth, len(models), axis=1)).reshape(len(which), -1)
        for (p, t), values in zip(members, found, strict=True):
            scores[p][:, t] = values
    return [Fits(values, None, None, None, 0) for values in scores]


def _decide(gram: Floats, train: Ints, targets: Sequence[Ints], models: Sequence[LinearSVC]) -> Floats:
    """Decision values of all samples for each label vector and model, (n_vectors, n_models, n_samples): fits, then one product."""
    beta = np.zeros((len(targets), len(models), train.size))
    intercept = np.zeros((len(targets), len(models), 1))
    for v, target in enumerate(targets):
        for m, fit in enumerate(fit_dual(gram, train, target[train], models)):
            beta[v, m], intercept[v, m] = fit.beta, fit.intercept
    return np.asarray(beta @ gram[train] + intercept)


def ridge_scores(gram: Floats, splits: Sequence[Split], targets: Ints, alphas: Floats, judge: Judge) -> Floats:
    """Score ridge classifiers in closed form, each labelling with its own leave-one-out alpha in each fold.

    Parameters
    ----------
    gram : ndarray of float64, shape (n_samples, n_samples)
        Or (n_samples, n_voxels) with ``X``; see :class:`Shared`.
    splits : sequence of (train, test)
    targets : ndarray of int, shape (n_labellings, n_problems, n_samples)
        -1 and +1.
    alphas : ndarray of float64, shape (n_alphas,)
    judge : callable
        ``judge(decision, truth) -> (n_vectors,)``, both (n_rows, n_vectors).

    Returns
    -------
    ndarray of float64, shape (n_labellings, n_folds, n_problems)
    """
    vectors = np.ascontiguousarray(targets.reshape(-1, targets.shape[-1]).T, dtype=np.float64)
    task = dask.delayed(_ridge_fold, pure=False)
    shared, labels = dask.delayed(gram, pure=False), dask.delayed(vectors, pure=False)
    done = dask.compute(*(task(shared, labels, train, test, alphas, judge) for train, test in splits))
    return np.stack(done, axis=1).reshape(targets.shape[0], targets.shape[1], len(splits)).transpose(0, 2, 1)


def _ridge_fold(gram: Floats, vectors: Floats, train: Ints, test: Ints, alphas: Floats, judge: Judge) -> Floats:
    decision, _ = RidgePath.of(gram, train, alphas).decide(vectors, test)
    return judge(decision, vectors[test])


def _without_weights(sets: Sequence[TrainingSet]) -> list[TrainingSet]:
    return [replace(fold, outer=False) for fold in sets]


def _choose(design: Design, sets: Sequence[TrainingSet], fits: Sequence[Sequence[Fits]]) -> Floats:
    """Held-out scores of the candidates that the design's tuning chooses, (n_folds, n_problems)."""
    lookup = {fold.train.tobytes(): (position, fold) for position, fold in enumerate(sets)}
    scores = np.full((len(design.outer), len(design.targets)), np.nan)
    rows = [list(row) for row in fits]
    for f, (train, test) in enumerate(design.outer):
        position, fold = lookup[train.tobytes()]
        for c, fit in enumerate(rows[position]):
            held_out = fit.scores[:, crossval._position(fold.tests, test)]
            if design.inner is None:
                pick = crossval._last_best(held_out)
            else:
                pick = crossval._first_best(crossval._inner_scores(design.inner[f], lookup, rows, c))
            scores[f, c] = held_out[pick]
    return scores
