"""From what a user asks for to what the engine runs: estimator, candidates, scorer, screening; checked before data are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import xarray as xr
from sklearn.metrics import get_scorer
from sklearn.model_selection import ParameterGrid

from daskdecode.data.mask import voxel_volume_mm3
from daskdecode.engine.moments import Screening
from daskdecode.engine.solvers import MODELS, LinearModel
from daskdecode.errors import DecodingError, nearest

BRAIN_VOLUME_MM3 = 1_882_989.0
"""Volume of the MNI152 brain mask: nilearn's reference for the screening percentile."""

FEWEST_VOXELS_TO_SCREEN = 100
"""Screening is left out at this many voxels or fewer, as in nilearn."""


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a value that is not one of the known ones, naming the nearest."""
    if value not in known:
        raise DecodingError(f"{name}={value!r} is not known. {nearest(str(value), map(str, known))}")


def build_and_candidates(
    estimator: str, param_grid: Any, estimator_args: Mapping[str, Any] | None
) -> tuple[Callable[..., Any], list[dict[str, Any]]]:
    """Return the estimator's builder, with the user's arguments in it, and the hyperparameter settings to try.

    Raises
    ------
    DecodingError
        For an unknown estimator or parameter, or a value that scikit-learn refuses.
    """
    check_choice("estimator", estimator, list(MODELS))
    model, fixed = MODELS[estimator], dict(estimator_args or {})
    try:
        candidates = [dict(params) for params in ParameterGrid(_as_lists(model.param_grid if param_grid is None else param_grid))]
    except (TypeError, ValueError) as error:
        raise DecodingError(f"param_grid={param_grid!r}: {error}") from error
    for params in candidates:
        _check_params(model, fixed | params)
    # Settings of a list of grids may name different parameters; where one is silent, it means the estimator's own value.
    names = dict.fromkeys(name for params in candidates for name in params)
    own = {**model.build(10, 20, **fixed).get_params(), "dual": fixed.get("dual", "auto")}
    return partial(_build, model, fixed), [{name: params.get(name, own[name]) for name in names} for params in candidates]


def _build(model: LinearModel, fixed: Mapping[str, Any], n_train: int, n_voxels: int, **params: Any) -> Any:
    return model.build(n_train, n_voxels, **{**fixed, **params})


def resolve_scorer(scoring: Any) -> Callable[..., float]:
    """Return scikit-learn's scorer; ROC AUC where nothing is asked."""
    try:
        scorer: Callable[..., float] = get_scorer("roc_auc" if scoring is None else scoring)
    except ValueError as error:
        raise DecodingError(
            f"scoring={scoring!r} is not a scikit-learn scorer: give a name of sklearn.metrics.get_scorer_names(), or a callable "
            f"(estimator, X, y), such as sklearn.metrics.make_scorer gives. ({error})"
        ) from error
    return scorer


def check_screening(percentile: Any, n_features: Any) -> None:
    """Refuse screening parameters that exclude each other or lie out of range."""
    if n_features is not None and percentile is not None:
        raise DecodingError("screening_n_features and screening_percentile exclude each other: set screening_percentile=None.")
    if percentile is not None and (not isinstance(percentile, Real) or not 0 < float(percentile) <= 100):
        raise DecodingError(f"screening_percentile={percentile} must be a number above 0 and up to 100.")
    if n_features is not None and (not isinstance(n_features, Integral) or n_features < 1):
        raise DecodingError(f"screening_n_features={n_features} must be a whole number, at least 1.")


def effective_percentile(percentile: float | None, grid: xr.Dataset | None, n_voxels: int) -> float:
    """Percentile of these voxels that is ``percentile`` of a standard brain: nilearn's ``int(min(100, p * 1882989 / volume))``.

    Without a grid there is no volume, and the percentile is taken as it is.
    """
    if percentile is None:
        return 100
    if grid is None or percentile >= 100:
        return float(percentile)
    return int(min(100.0, percentile * (BRAIN_VOLUME_MM3 / (voxel_volume_mm3(grid) * n_voxels))))


def resolve_screening(percentile: float | None, n_features: int | None, grid: xr.Dataset | None, n_voxels: int) -> Screening | None:
    """Return how many voxels each fold keeps; None where all are."""
    if n_voxels <= FEWEST_VOXELS_TO_SCREEN:
        return None
    if n_features is not None:
        return None if n_features >= n_voxels else Screening(n_features=int(n_features))
    effective = effective_percentile(percentile, grid, n_voxels)
    if effective >= 100:
        return None
    if int(n_voxels * effective / 100) < 1:
        raise DecodingError(f"screening_percentile leaves none of {n_voxels} voxels (percentile in effect: {effective}). Raise it.")
    return Screening(percentile=effective)


def _as_lists(grid: Any) -> Any:
    """Let a single value stand for a list of one, as users write ``{"C": 1}``."""
    if isinstance(grid, Mapping):
        return {k: list(v) if isinstance(v, Sequence | np.ndarray) and not isinstance(v, str) else [v] for k, v in grid.items()}
    if isinstance(grid, Sequence) and grid and all(isinstance(part, Mapping) for part in grid):
        return [_as_lists(part) for part in grid]
    raise DecodingError(f"param_grid must be a dict or a list of dicts; found {type(grid).__name__}.")


def _check_params(model: LinearModel, params: Mapping[str, Any]) -> None:
    """Build an estimator and let scikit-learn check its settings."""
    try:
        model.build(10, 20, **params)._validate_params()
    except DecodingError:
        raise
    except ValueError as error:  # first: scikit-learn's InvalidParameterError is both
        raise DecodingError(str(error)) from error
    except TypeError as error:
        known = model.build(10, 20).get_params()
        wrong = next((k for k in params if k not in known), str(error))
        raise DecodingError(f"The estimator has no parameter {wrong!r}. {nearest(wrong, known)}") from error


def check_on_small_problem(build: Callable[..., Any], candidates: Sequence[Mapping[str, Any]], scorer: Callable[..., float]) -> None:
    """Fit and score each candidate on a few numbers: what scikit-learn refuses only when it fits is then known before data are read."""
    x = np.random.default_rng(0).standard_normal((8, 12))
    y = np.tile([-1, 1], 4)
    for params in candidates:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                score = scorer(build(8, 12, **params).fit(x, y), x, y)
                float(score)
        except Exception as error:
            raise DecodingError(f"scikit-learn refuses the estimator or the scorer with {dict(params)}: {error}") from error
