"""Problems of one set of voxels, fitted on their Gram matrix or on the voxels themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from daskdecode.engine.coordinate_descent import can_solve, fit_dual
from daskdecode.engine.moments import Bools, Floats
from daskdecode.engine.rotation import Factor
from daskdecode.engine.scoring import score_decisions
from daskdecode.engine.solvers import Fits, Params, Problem, Scorer, fit_candidates


def fit_on_gram(
    gram: Floats, problems: Sequence[Problem], candidates: Sequence[Params], build: Callable[..., Any], scorer: Scorer, n_voxels: int
) -> list[Fits]:
    """Fit problems that share their voxels and their training samples; weights are on samples (``w = X' weights``).

    Parameters
    ----------
    gram : ndarray of float64, shape (n_samples, n_samples)
    problems : sequence of Problem
        All with the same ``train``.
    candidates, build, scorer, n_voxels
        See :func:`daskdecode.engine.solvers.fit_candidates`.

    Notes
    -----
    Coordinate descent works on the Gram matrix itself; other solvers see its factor.
    """
    train = problems[0].train
    if all(can_solve(build(train.size, n_voxels, **params)) for params in candidates):
        return [_descend(gram, problem, candidates, build, scorer, n_voxels) for problem in problems]
    factor = Factor.of(gram, train)
    fits = [fit_candidates(factor.z, problem, candidates, build, scorer, n_voxels) for problem in problems]
    return [f if f.weights is None else replace(f, weights=factor.dual(f.weights)) for f in fits]


def _descend(
    gram: Floats,
    problem: Problem,
    candidates: Sequence[Params],
    build: Callable[..., Any],
    scorer: Scorer,
    n_voxels: int,
) -> Fits:
    models = [build(problem.train.size, n_voxels, **params) for params in candidates]
    own = None if problem.sample_weight is None else problem.sample_weight[problem.train]
    fitted = fit_dual(gram, problem.train, problem.target[problem.train], models, own)
    weights = np.zeros((len(models), gram.shape[0]))
    weights[:, problem.train] = [fit.beta for fit in fitted]
    intercepts = np.array([fit.intercept for fit in fitted])
    # Weights are 0 outside the training samples: a product with all samples copies none.
    decision = weights @ gram + intercepts[:, None]
    scores = np.array([[score_decisions(scorer, d[test], problem.target[test]) for test in problem.tests] for d in decision])
    n_unconverged = sum(fit.n_iter >= model.max_iter for fit, model in zip(fitted, models, strict=True))
    if not problem.keep:
        return Fits(scores, None, None, None, n_unconverged)
    return Fits(scores, weights, intercepts, decision, n_unconverged, tuple(candidates))


def fit_on_columns(
    columns: Floats,
    chosen: Bools | None,
    problems: Sequence[Problem],
    candidates: Sequence[Params],
    build: Callable[..., Any],
    scorer: Scorer,
    n_voxels: int,
) -> list[Fits]:
    """Fit problems on the voxels themselves, (n_samples, n_columns) in canonical order; weights are on the chosen columns."""
    z = columns if chosen is None else np.ascontiguousarray(columns[:, chosen])
    return [fit_candidates(z, problem, candidates, build, scorer, n_voxels) for problem in problems]
