"""One training set of one binary problem: fit every candidate, score it on every test set that asks for it.

Pure functions on NumPy arrays; the estimators are scikit-learn's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import LinearSVC

from daskdecode.errors import DecodingError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Params = Mapping[str, Any]
Scorer = Callable[[Any, Floats, Ints], float]


_ONE_LIBLINEAR = threading.Lock()
"""liblinear draws from one random generator a process and releases the GIL: fits that overlap in threads disturb each other's draws, and
coefficients change by about 1e-5 from one run to the next. Fits of a process therefore take turns; Gram matrices and factors overlap."""


@dataclass(frozen=True)
class LinearModel:
    """A linear estimator by its name in :class:`daskdecode.Decoder`.

    Attributes
    ----------
    build : callable
        ``build(n_train, n_voxels, **params)``: an unfitted scikit-learn estimator, as it would be for the full problem.
    param_grid : mapping
        The grid that is searched where the user gives none.
    """

    build: Callable[..., Any]
    param_grid: Mapping[str, Sequence[Any]]


def _linear_svc(n_train: int, n_voxels: int, **params: Any) -> LinearSVC:
    # dual="auto" would look at the factor, which never has more columns than samples, and take the primal solver: another tolerance,
    # other numbers. The choice is made on the problem that the factor stands for.
    settings = {"dual": "auto", "max_iter": 10_000, "random_state": 0} | params
    if settings["dual"] == "auto":
        settings["dual"] = n_train < n_voxels or settings.get("loss") == "hinge"
    if settings.get("penalty", "l2") != "l2":
        raise DecodingError(f"estimator='svc' has an L2 penalty; penalty={settings['penalty']!r} cannot be given to it.")
    return LinearSVC(**settings)


_SVC = LinearModel(build=_linear_svc, param_grid={"C": (1, 10, 100)})

MODELS: Mapping[str, LinearModel] = {"svc": _SVC, "svc_l2": _SVC}
"""Estimators that the Gram route knows, by name."""


@dataclass(frozen=True)
class Problem:
    """A training set of a binary problem, with the test sets to score it on.

    Attributes
    ----------
    train : ndarray of int
        Sample indices.
    target : ndarray of int, shape (n_samples,)
        -1 or +1.
    tests : tuple of int arrays
        Sample indices of each test set.
    keep : bool
        Whether weights and decision values are wanted (outer folds), or scores alone (inner folds).
    """

    train: Ints
    target: Ints
    tests: tuple[Ints, ...]
    keep: bool


@dataclass(frozen=True)
class Fits:
    """What the candidates of one :class:`Problem` gave.

    Attributes
    ----------
    scores : ndarray of float64, shape (n_candidates, n_tests)
        NaN where the score is not defined (ROC AUC on a test set with a single class).
    weights : ndarray of float64, shape (n_candidates, n_columns), or None
        Weights on the columns that were given to the solver.
    intercepts : ndarray of float64, shape (n_candidates,), or None
    decision : ndarray of float64, shape (n_candidates, n_samples), or None
        Decision values of all samples.
    n_unconverged : int
        Candidates that stopped at ``max_iter``.
    """

    scores: Floats
    weights: Floats | None
    intercepts: Floats | None
    decision: Floats | None
    n_unconverged: int


def fit_candidates(
    z: Floats, problem: Problem, candidates: Sequence[Params], build: Callable[..., Any], scorer: Scorer, n_voxels: int
) -> Fits:
    """Fit each candidate on the training rows of ``z`` and score it.

    Parameters
    ----------
    z : ndarray of float64, shape (n_samples, n_columns)
        Voxels, or the factor that stands for them.
    problem : Problem
    candidates : sequence of mappings
        Hyperparameters.
    build : callable
        ``build(n_train, n_voxels, **params)``.
    scorer : callable
        ``scorer(estimator, z, target) -> float``.
    n_voxels : int
        Voxels of the problem that ``z`` stands for.

    Returns
    -------
    Fits
    """
    z_train, target = np.ascontiguousarray(z[problem.train]), problem.target[problem.train]
    with _ONE_LIBLINEAR:
        fitted = [build(problem.train.size, n_voxels, **params).fit(z_train, target) for params in candidates]
    scores = np.array([[float(scorer(model, z[test], problem.target[test])) for test in problem.tests] for model in fitted])
    n_unconverged = sum(_at_max_iter(model) for model in fitted)
    if not problem.keep:
        return Fits(scores, None, None, None, n_unconverged)
    weights = np.stack([np.ravel(model.coef_) for model in fitted]).astype(np.float64)
    intercepts = np.array([float(np.ravel(model.intercept_)[0]) for model in fitted])
    return Fits(scores, weights, intercepts, weights @ z.T + intercepts[:, None], n_unconverged)


def _at_max_iter(model: Any) -> bool:
    return bool(np.max(getattr(model, "n_iter_", 0)) >= getattr(model, "max_iter", np.inf))
