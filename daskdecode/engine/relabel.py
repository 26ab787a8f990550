"""Scores alone, without coefficients: of one design, or of many that differ in their labels only.

What labels have no part in is done once for all of them: Gram matrices where nothing is screened, the decomposition of each training set
where its solver has a closed form, the sums of screening that count all samples. What labels decide (the voxels that screening keeps) is
worked out for several labellings in one sweep over the voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask
import numpy as np

from daskdecode.engine.choice import choose
from daskdecode.engine.closed_form import closed_form
from daskdecode.engine.coordinate_descent import can_solve, fit_dual
from daskdecode.engine.design import Design, TrainingSet, training_sets
from daskdecode.engine.fits import fit_on_columns, fit_on_gram
from daskdecode.engine.judge import Judge
from daskdecode.engine.moments import Floats, Ints
from daskdecode.engine.plan import Plan
from daskdecode.engine.rescreen import screen_all
from daskdecode.engine.sight import Viewers, sights
from daskdecode.engine.solvers import OF_FITS, Fits, Problem
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.quiet import quiet


@dataclass(frozen=True)
class Seen:
    """What the fits of some training sets see, computed: where nothing is screened, the same for all labellings.

    Attributes
    ----------
    data : dict of bytes to ndarray of float64
        For each training set (the bytes of its indices) a Gram matrix (n_samples, n_samples), or voxels (n_samples, n_voxels). One under
        ``None`` where it is the same for all, also for training sets that are not known yet.
    is_gram : bool
    n_voxels : int
    """

    data: dict[bytes | None, Floats]
    is_gram: bool
    n_voxels: int

    @classmethod
    def of(cls, blocks: VoxelBlocks, design: Design, plan: Plan) -> Seen:
        """Read the voxels, all of them."""
        sets = training_sets(design)
        (seen,) = sights(blocks, [Viewers(design, sets, [(s, 0) for s in range(len(sets))], None)], plan)
        computed = dask.compute(*(sight.data for sight in seen))
        data: dict[bytes | None, Floats] = {None: computed[0]}
        if design.within is not None:
            data = {s.train.tobytes(): own for s, own in zip(sets, computed, strict=True)}
        return cls(data, plan.route == "gram", blocks.shape[1])


def shared_scores(seen: Seen, designs: Sequence[Design], judge: Judge, *, exact: bool = False) -> Floats:
    """Score designs without screening that differ in labels only; what a training set has in common is done once for all of them.

    Parameters
    ----------
    seen : Seen
    designs : sequence of Design
        With the same candidates. Folds may differ where ``seen`` is the same for all training sets.
    judge : callable
        As the designs' ``scorer``, many at a time; see :mod:`daskdecode.engine.judge`.
    exact : bool, default False
        Solve support vector machines exactly, many at a time, instead of in liblinear's steps.

    Returns
    -------
    ndarray of float64, shape (n_designs, n_folds, n_problems)
        Of the candidate that each design's own tuning chose.
    """
    per_design = _sets_of(designs)
    users: dict[bytes, list[tuple[int, int]]] = {}
    for d, sets in enumerate(per_design):
        for s, fold in enumerate(sets):
            users.setdefault(fold.train.tobytes(), []).append((d, s))
    wrapped = {key: dask.delayed(data, pure=False) for key, data in seen.data.items()}
    tasks, keys = [], []
    for train, members in users.items():
        wanted = [(d, s, c) for d, s in members for c in range(len(designs[d].targets))]
        problems = [_problem(designs[d], per_design[d][s], c) for d, s, c in wanted]
        data = wrapped[None] if None in wrapped else wrapped[train]
        tasks.append(_task(_OneSet(problems, _to_send(designs[0]), seen.is_gram, seen.n_voxels, judge, exact))(data))
        keys.append(wanted)
    return _chosen(designs, per_design, dict(_compute(keys, tasks)))


def scores_of(blocks: VoxelBlocks, design: Design, plan: Plan, judge: Judge) -> Floats:
    """Score one design, (n_folds, n_problems)."""
    if design.screening is None:
        return np.asarray(shared_scores(Seen.of(blocks, design, plan), [design], judge)[0])
    return np.asarray(swept_scores(blocks, [design], plan, judge)[0])


def swept_scores(
    blocks: VoxelBlocks, designs: Sequence[Design], plan: Plan, judge: Judge, *, together: int | None = None, exact: bool = False
) -> Floats:
    """Score designs on the voxels, each training set with its own screening, many designs in one sweep.

    Parameters
    ----------
    blocks : VoxelBlocks
    designs : sequence of Design
        With the same candidates.
    plan : Plan
        Of one design.
    judge, exact
        See :func:`shared_scores`.
    together : int, optional
        Gram matrices (or sets of columns) in memory together. Default: the plan's.

    Returns
    -------
    ndarray of float64, shape (n_designs, n_folds, n_problems)
    """
    per_design = _sets_of(designs)
    masks = screen_all(blocks, designs, per_design)
    found: dict[tuple[int, int, int], Fits] = {}
    for batch in _batches(designs, per_design, together or plan.batch):
        tasks, keys = [], []
        chosen = [None if masks is None else np.stack([masks[d][s, c] for s, c in pairs]) for d, pairs in batch]
        viewers = [Viewers(designs[d], per_design[d], pairs, own) for (d, pairs), own in zip(batch, chosen, strict=True)]
        for (d, _), viewer, seen in zip(batch, viewers, sights(blocks, viewers, plan), strict=True):
            for group, sight in zip(viewer.groups, seen, strict=True):
                problems = [_problem(viewer.design, viewer.sets[s], c) for s, c in group]
                one = _OneSet(problems, _to_send(viewer.design), plan.route == "gram", sight.n_voxels, judge, exact)
                tasks.append(_task(one)(sight.data, sight.columns))
                keys.append([(d, s, c) for s, c in group])
        found.update(_compute(keys, tasks))
    return _chosen(designs, per_design, found)


def _sets_of(designs: Sequence[Design]) -> list[list[TrainingSet]]:
    """Training sets of each design; found once for designs with the same folds."""
    known = {id(design.outer): design for design in designs}
    by_folds = {key: [replace(fold, outer=False) for fold in training_sets(design)] for key, design in known.items()}
    return [by_folds[id(design.outer)] for design in designs]


def _to_send(design: Design) -> Design:
    """Leave out what follows the number of voxels, which fits do not need."""
    return replace(design, voxel_order=design.voxel_order[:0])


def _problem(design: Design, fold: TrainingSet, c: int) -> Problem:
    return Problem(fold.train, design.targets[c], fold.tests, False, design.sample_weight)


def _batches(
    designs: Sequence[Design], per_design: Sequence[Sequence[TrainingSet]], size: int
) -> Iterator[list[tuple[int, list[tuple[int, int]]]]]:
    """Cut every (training set, problem) of every design into batches; those of a design stay together as far as that goes."""
    every = [(d, s, c) for d, design in enumerate(designs) for c in range(len(design.targets)) for s in range(len(per_design[d]))]
    for start in range(0, len(every), size):
        batch = every[start : start + size]
        yield [(d, [(s, c) for e, s, c in batch if e == d]) for d in dict.fromkeys(d for d, _, _ in batch)]


def _compute(keys: Sequence[Sequence[tuple[int, int, int]]], tasks: Sequence[Any]) -> Iterator[tuple[tuple[int, int, int], Fits]]:
    with quiet(*OF_FITS):
        done = dask.compute(*tasks)
    for members, fits in zip(keys, done, strict=True):
        yield from zip(members, fits, strict=True)


@dataclass(frozen=True, repr=False)  # Dask asks for a repr, and that of thousands of problems would take longer than their fits.
class _OneSet:
    """Fits problems that share their training samples, many at a time where the solver can; scores only."""

    problems: Sequence[Problem]
    design: Design
    is_gram: bool
    n_voxels: int
    judge: Judge
    exact: bool

    def __call__(self, data: Floats, columns: Any = None) -> list[Fits]:
        design, problems = self.design, self.problems
        train = problems[0].train
        models = [design.build(train.size, self.n_voxels, **params) for params in design.candidates]
        rows = np.unique(np.concatenate([test for problem in problems for test in problem.tests]))
        targets = np.stack([problem.target for problem in problems], axis=1)
        solve = None if design.sample_weight is not None else closed_form(models, self.n_voxels, exact=self.exact)
        if solve is not None:
            decision = solve(data if self.is_gram else _gram(data, columns), train, targets.astype(np.float64), rows)
        elif self.is_gram and all(map(can_solve, models)):
            decision = _descend(data, train, targets, models, rows, design.sample_weight)
        else:
            return self._one_by_one(problems, data, columns)
        fits = [Fits(scores, None, None, None, 0) for scores in _judge(decision, targets, problems, rows, self.judge)]
        for p in np.flatnonzero(np.isnan(decision).any(axis=(0, 1))).tolist():
            fits[p] = self._one_by_one([problems[p]], data, columns)[0]
        return fits

    def _one_by_one(self, problems: Sequence[Problem], data: Floats, columns: Any) -> list[Fits]:
        how = (problems, self.design.candidates, self.design.build, self.design.scorer, self.n_voxels)
        return fit_on_gram(data, *how) if self.is_gram else fit_on_columns(data, columns, *how)


def _task(one: _OneSet) -> Any:
    # Without looking for tasks among thousands of problems, which would take longer than their fits.
    return dask.delayed(one, pure=False, traverse=False)


def _gram(columns: Floats, chosen: Any) -> Floats:
    z = columns if chosen is None else columns[:, chosen]
    return np.asarray(z @ z.T)


def _descend(gram: Floats, train: Ints, targets: Ints, models: Sequence[Any], rows: Ints, weight: Floats | None) -> Floats:
    """Decision values of support vector machines, (n_models, n_rows, n_vectors): a fit each, then one product."""
    beta = np.zeros((len(models), train.size, targets.shape[1]))
    intercept = np.zeros((len(models), 1, targets.shape[1]))
    own = None if weight is None else weight[train]
    for v, target in enumerate(targets[train].T):
        for m, fit in enumerate(fit_dual(gram, train, target, models, own)):
            beta[m, :, v], intercept[m, 0, v] = fit.beta, fit.intercept
    return np.asarray(gram[np.ix_(rows, train)] @ beta + intercept)


def _judge(decision: Floats, targets: Floats, problems: Sequence[Problem], rows: Ints, judge: Judge) -> list[Floats]:
    """Scores of decision values (n_models, n_rows, n_vectors), for each problem (n_models, n_tests)."""
    n_models = len(decision)
    scores = [np.full((n_models, len(problem.tests)), np.nan) for problem in problems]
    # Problems with the same test samples are judged together; permuted labels rarely change the folds.
    same: dict[bytes, list[tuple[int, int]]] = {}
    for p, problem in enumerate(problems):
        for t, test in enumerate(problem.tests):
            same.setdefault(test.tobytes(), []).append((p, t))
    for members in same.values():
        test = problems[members[0][0]].tests[members[0][1]]
        which = np.array([p for p, _ in members], dtype=np.intp)
        # (n_test, n_models x n_members), one model after another
        decided = decision[:, np.searchsorted(rows, test)][:, :, which].transpose(1, 0, 2).reshape(test.size, -1)
        found = judge(decided, np.tile(targets[np.ix_(test, which)], n_models)).reshape(n_models, -1)
        for (p, t), values in zip(members, found.T, strict=True):
            scores[p][:, t] = values
    return scores


def _chosen(designs: Sequence[Design], per_design: Sequence[Sequence[TrainingSet]], fits: dict[tuple[int, int, int], Fits]) -> Floats:
    """Held-out scores of the candidates that each design's tuning chooses, (n_designs, n_folds, n_problems)."""
    found = []
    for d, (design, sets) in enumerate(zip(designs, per_design, strict=True)):
        rows = [[fits[d, s, c] for c in range(len(design.targets))] for s in range(len(sets))]
        found.append([[choice.score for choice in row] for row in choose(design, sets, rows)])
    return np.array(found)
