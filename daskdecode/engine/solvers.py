"""One training set of one problem: fit every candidate, score it on every test set that asks for it.

Pure functions on NumPy arrays; the estimators are scikit-learn's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.base import is_regressor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from sklearn.linear_model import LassoCV, LogisticRegression, LogisticRegressionCV, RidgeClassifierCV, RidgeCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from daskdecode.engine.registry import TimesMinC, takes_turns
from daskdecode.errors import DecodingError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Params = Mapping[str, Any]
Scorer = Callable[[Any, Floats, NDArray[Any]], float]

OF_FITS: tuple[type[Warning] | str, ...] = (ConvergenceWarning, UndefinedMetricWarning, "The least populated class in y has only")
"""Warnings that are counted and reported once, by name, instead of once a fit; the last is of estimators that split training samples."""

_ONE_LIBLINEAR = threading.Lock()
"""liblinear draws from one random generator a process and releases the GIL: fits that overlap in threads disturb each other's draws, and
coefficients change by about 1e-5 from one run to the next. Fits of a process therefore take turns; Gram matrices and factors overlap."""


@dataclass(frozen=True)
class Problem:
    """A training set of a binary problem or of a regression, with the test sets to score it on.

    Attributes
    ----------
    train : ndarray of int
        Sample indices.
    target : ndarray, shape (n_samples,)
        -1 or +1 (int), or what is regressed on (float64).
    tests : tuple of int arrays
        Sample indices of each test set.
    keep : bool
        Whether weights and decision values are wanted (outer folds), or scores alone (inner folds).
    sample_weight : ndarray of float64, shape (n_samples,), or None
        Weight of each sample in the fit; scores do not know it.
    """

    train: Ints
    target: NDArray[Any]
    tests: tuple[Ints, ...]
    keep: bool
    sample_weight: Floats | None = None


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
        Decision values (of a regression: predictions) of all samples; without weights, of those in test sets, else NaN.
    n_unconverged : int
        Candidates that stopped at ``max_iter``.
    params : tuple of mappings
        What each candidate was: its hyperparameters, and what its estimator chose by itself.
    models : tuple of estimators, or None
        The fitted estimators, where weights may not be all of them.
    slopes : ndarray of float64, shape (n_candidates, n_confounds), or None
        Weights on confounds, where training samples learnt to take them from the voxels.
    preparation : callable or None
        ``preparation(x, confounds)``: what the models' columns went through first, learnt from the training samples.
    """

    scores: Floats
    weights: Floats | None
    intercepts: Floats | None
    decision: Floats | None
    n_unconverged: int
    params: tuple[Params, ...] = ()
    models: tuple[Any, ...] | None = None
    slopes: Floats | None = None
    preparation: Callable[[Floats, Floats], Floats] | None = None


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
    settings = [resolve(params, z_train, target) for params in candidates]
    unfitted = [build(problem.train.size, n_voxels, **params) for params in settings]
    with in_turn(unfitted):
        fitted = [fit_named(model, z_train, target, weighted(model, problem.sample_weight, problem.train)) for model in unfitted]
    scores = np.array([[float(scorer(model, z[test], problem.target[test])) for test in problem.tests] for model in fitted])
    n_unconverged = sum(at_max_iter(model) for model in fitted)
    if not problem.keep:
        return Fits(scores, None, None, None, n_unconverged)
    chosen = tuple({**params, **_own_choice(model)} for params, model in zip(settings, fitted, strict=True))
    lines = [linear_part(model, z_train) for model in fitted]
    if any(line is None for line in lines):
        decision = np.full((len(fitted), z.shape[0]), np.nan)
        for row, model in zip(decision, fitted, strict=True):
            for test in problem.tests:
                row[test] = decision_values(model, z[test])
        return Fits(scores, None, None, decision, n_unconverged, chosen, tuple(fitted))
    weights = np.stack([line[0] for line in lines if line is not None])
    intercepts = np.array([line[1] for line in lines if line is not None])
    # On voxels the models are kept as well: in another fold, weights may not be all of them.
    models = tuple(fitted) if z.shape[1] == n_voxels else None
    return Fits(scores, weights, intercepts, weights @ z.T + intercepts[:, None], n_unconverged, chosen, models)


def fit_named(model: Any, x: Floats, target: NDArray[Any], weights: Mapping[str, Any]) -> Any:
    """Fit an estimator; an error of its own says which estimator it was, and on what."""
    try:
        return model.fit(x, target, **weights)
    except Exception as error:
        named, why = " ".join(str(model).split()), f"{type(error).__name__}: {error}"
        raise DecodingError(
            f"{named} could not be fitted on {x.shape[0]} training samples x {x.shape[1]} features: {why.rstrip('.')}. "
            "A training set is what a fold leaves, and nested tuning takes one more fold from it."
        ) from error


def in_turn(models: Sequence[Any]) -> AbstractContextManager[Any]:
    """Hold off other fits of this process while those that must not overlap are fitted."""
    return _ONE_LIBLINEAR if any(map(takes_turns, models)) else nullcontext()


def at_max_iter(model: Any) -> bool:
    """Say whether a fitted estimator stopped before it converged."""
    # Only where reaching the largest number of iterations is a failure: to boosted trees it is the size asked for.
    n_iter, most = getattr(model, "n_iter_", None), getattr(model, "max_iter", None)
    return hasattr(model, "coef_") and n_iter is not None and most is not None and 0 < most <= int(np.max(n_iter))


def weighted(model: Any, sample_weight: Floats | None, train: Ints) -> dict[str, Floats]:
    """Argument of an estimator's ``fit`` that takes the weights of the training samples; of a pipeline, for its last step."""
    if sample_weight is None:
        return {}
    name, last = "sample_weight", model
    while isinstance(last, Pipeline):
        step, last = last.steps[-1]
        name = f"{step}__{name}"
    return {name: sample_weight[train]}


def takes_sample_weight(model: Any) -> bool:
    """Say whether :func:`weighted` gives an estimator something that it takes."""
    last = model
    while isinstance(last, Pipeline):
        last = last.steps[-1][1]
    return bool(has_fit_parameter(last, "sample_weight"))


def resolve(params: Params, x: Floats, target: NDArray[Any]) -> Params:
    """Settings for training samples: those that depend on the data become numbers."""
    return {name: value.of(x, target) if isinstance(value, TimesMinC) else value for name, value in params.items()}


def decision_values(model: Any, x: Floats) -> Floats:
    """What a fitted binary classifier or regressor says of samples, as one number each: positive speaks for +1.

    A regressor's prediction; a classifier's ``decision_function``, or else the log-odds of its probabilities, or else its labels.

    Returns
    -------
    ndarray of float64, shape (n_samples,)
    """
    if is_regressor(model):
        return np.ravel(model.predict(x)).astype(np.float64)
    if hasattr(model, "decision_function"):
        return np.ravel(model.decision_function(x)).astype(np.float64)
    if hasattr(model, "predict_joint_log_proba"):
        # Naive Bayes: over many voxels the probabilities themselves are 0 and 1 to the last bit.
        joint = model.predict_joint_log_proba(x)
        return np.asarray(joint[:, 1] - joint[:, 0])
    if hasattr(model, "predict_proba"):
        eps = np.finfo(np.float64).eps
        return np.asarray(logit(np.clip(model.predict_proba(x)[:, 1], eps, 1 - eps)))
    return np.asarray(model.predict(x), dtype=np.float64)


def gives_probabilities(estimator: Any) -> bool:
    """Say whether the logistic function turns an estimator's :func:`decision_values` into its probabilities; unfitted will do."""
    last = estimator
    while isinstance(last, Pipeline):
        last = last.steps[-1][1]
    logistic = isinstance(last, LogisticRegression | LogisticRegressionCV | LinearDiscriminantAnalysis | QuadraticDiscriminantAnalysis)
    return hasattr(estimator, "predict_proba") and (logistic or not hasattr(estimator, "decision_function"))


def linear_part(model: Any, x: Floats) -> tuple[Floats, float] | None:
    """Weights (n_columns,) and intercept of a fitted model; None where it has none, or where they are not the whole of its decision.

    Some estimators have a ``coef_`` for something else (partial least squares for centred data, Poisson regression for a logarithm):
    what they say of the samples ``x`` tells.
    """
    try:
        weights = np.ravel(model.coef_).astype(np.float64)
        intercept = float(np.ravel(model.intercept_)[0])
    except (AttributeError, TypeError, ValueError, IndexError):
        return None
    if weights.size != x.shape[1]:
        return None
    said = decision_values(model, x)
    return (weights, intercept) if np.allclose(x @ weights + intercept, said, rtol=1e-6, atol=1e-6 * np.abs(said).max()) else None


def _own_choice(model: Any) -> Params:
    """What an estimator with a search of its own has chosen, by nilearn's names."""
    if isinstance(model, RidgeCV | RidgeClassifierCV | LassoCV):
        return {"best_alpha": float(model.alpha_)}
    if isinstance(model, LogisticRegressionCV):
        return {"best_C": float(np.ravel(model.C_)[0])}
    return {}
