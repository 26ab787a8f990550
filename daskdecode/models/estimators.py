"""From what a user asks for to what the engine runs: estimator, candidates, scorer, screening; checked before data are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.metrics import get_scorer
from sklearn.model_selection import ParameterGrid, ParameterSampler

from daskdecode.data.mask import voxel_volume_mm3
from daskdecode.engine.moments import Screening
from daskdecode.engine.registry import CLASSIFIERS, REGRESSORS, Kind, Model, TimesMinC, model_of
from daskdecode.engine.solvers import in_turn, resolve
from daskdecode.errors import DecodingError, nearest
from daskdecode.quiet import quiet

BRAIN_VOLUME_MM3 = 1_882_989.0
"""Volume of the MNI152 brain mask: nilearn's reference for the screening percentile."""

FEWEST_VOXELS_TO_SCREEN = 100
"""Screening is left out at this many voxels or fewer, as in nilearn."""

N_DRAWN = 10
"""Settings drawn where a grid has a distribution (with a seed of 0)."""


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a value that is not one of the known ones, naming the nearest."""
    if value not in known:
        raise DecodingError(f"{name}={value!r} is not known. {nearest(str(value), map(str, known))}")


def resolve_estimator(estimator: Any, kind: Kind) -> Model:
    """Find an estimator by its name, or take a scikit-learn estimator as it is.

    Parameters
    ----------
    estimator : str or estimator
    kind : {"classifier", "regressor"}
        What is asked for.

    Raises
    ------
    DecodingError
        For an unknown name, something that is no estimator, or one of the other kind.
    """
    known, others = (CLASSIFIERS, REGRESSORS) if kind == "classifier" else (REGRESSORS, CLASSIFIERS)
    other = "DecoderRegressor" if kind == "classifier" else "Decoder"
    if isinstance(estimator, str):
        if estimator in others and estimator not in known:
            raise DecodingError(f"estimator={estimator!r} is no {kind}: use daskdecode.{other}. Known here: {', '.join(map(repr, known))}.")
        check_choice("estimator", estimator, list(known))
        return known[estimator]
    if isinstance(estimator, type) or not (hasattr(estimator, "fit") and hasattr(estimator, "set_params")):
        raise DecodingError(f"estimator must be a name or a scikit-learn estimator, but it is {estimator!r}. Known: {', '.join(known)}.")
    if not (is_classifier if kind == "classifier" else is_regressor)(estimator):
        raise DecodingError(f"{type(estimator).__name__} is no {kind}. Pass a {kind}, or use daskdecode.{other}.")
    return model_of(estimator)


def build_and_candidates(
    model: Model, param_grid: Any, estimator_args: Mapping[str, Any] | None
) -> tuple[Callable[..., Any], list[dict[str, Any]]]:
    """Return the estimator's builder, with the user's arguments in it, and the hyperparameter settings to try.

    Raises
    ------
    DecodingError
        For an unknown parameter, one that the estimator's name fixes, or a value that scikit-learn refuses.
    """
    fixed = dict(estimator_args or {})
    try:
        candidates = _settings(model.param_grid if param_grid is None else _lists_of(param_grid, model))
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, DecodingError) else DecodingError(f"param_grid={param_grid!r}: {error}") from error
    for params in candidates:
        _check_params(model, fixed | params)
    # Settings of a list of grids may name different parameters; where one is silent, it means the estimator's own value.
    names = dict.fromkeys(name for params in candidates for name in params)
    own = model.build(10, 20, **fixed).get_params()
    if model.dual:
        own["dual"] = fixed.get("dual", "auto")
    return partial(_build, model, fixed), [{name: params.get(name, own[name]) for name in names} for params in candidates]


def _build(model: Model, fixed: Mapping[str, Any], n_train: int, n_voxels: int, **params: Any) -> Any:
    return model.build(n_train, n_voxels, **{**fixed, **params})


def _settings(grids: Any) -> list[dict[str, Any]]:
    """Every setting of a grid or of a list of them; as many as :data:`N_DRAWN` where a parameter is a distribution."""
    grids = [grids] if isinstance(grids, Mapping) else grids
    drawn = any(hasattr(value, "rvs") for grid in grids for value in grid.values())
    return [dict(p) for p in (ParameterSampler(grids, N_DRAWN, random_state=0) if drawn else ParameterGrid(grids))]


def resolve_scorer(scoring: Any, default: str) -> Callable[..., float]:
    """Return scikit-learn's scorer; ``default`` where nothing is asked."""
    try:
        scorer: Callable[..., float] = get_scorer(default if scoring is None else scoring)
    except ValueError as error:
        raise DecodingError(
            f"scoring={scoring!r} is not a scikit-learn scorer: give a name of sklearn.metrics.get_scorer_names(), or a callable "
            f"(estimator, X, y), such as sklearn.metrics.make_scorer gives. ({error})"
        ) from error
    return scorer


def check_scorer(scorer: Callable[..., float], estimator: Any) -> None:
    """Refuse one of scikit-learn's scorers that asks for what the estimator does not have."""
    asks = getattr(scorer, "_response_method", None)
    names = [asks] if isinstance(asks, str) else list(asks or [])
    if names and not any(hasattr(estimator, name) for name in names if name != "default"):
        raise DecodingError(
            f"{scorer} needs {' or '.join(names)}, which {type(estimator).__name__} does not have. Choose another scoring=."
        )


def check_on_small_problem(
    build: Callable[..., Any], candidates: Sequence[Mapping[str, Any]], scorer: Callable[..., float], kind: Kind
) -> None:
    """Fit and score each candidate on a few numbers: what scikit-learn refuses only when it fits is then known before data are read.

    For estimators by name; one that the user made may have to see more than a few samples and voxels.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 30))
    y = np.tile([-1, 1], 10) if kind == "classifier" else rng.standard_normal(20)
    for params in candidates:
        try:
            model = build(20, 30, **resolve(params, x, y))
            with quiet(Warning), in_turn([model]):  # also with fits of other threads, whose draws it would disturb
                float(scorer(model.fit(x, y), x, y))
        except Exception as error:
            raise DecodingError(f"scikit-learn refuses the estimator or the scorer with {dict(params)}: {error}") from error


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


def _lists_of(grid: Any, model: Model) -> Any:
    """Let a single value stand for a list of one, as users write ``{"C": 1}``; distributions stay as they are.

    The list of a parameter that the estimator searches by itself (``alphas`` of ridge) is one value: the estimator gets all of it.
    """
    if isinstance(grid, Mapping):
        return {
            model.aliases.get(name, name): _list_of(value, name=model.aliases.get(name, name), model=model) for name, value in grid.items()
        }
    if isinstance(grid, Sequence) and not isinstance(grid, str) and grid and all(isinstance(part, Mapping) for part in grid):
        return [_lists_of(part, model) for part in grid]
    found = "an empty list" if isinstance(grid, list) and not grid else type(grid).__name__
    raise DecodingError(f"param_grid must be a dict or a list of dicts ({{}} for the estimator's own settings); found {found}.")


def _list_of(value: Any, *, name: str, model: Model) -> Any:
    if hasattr(value, "rvs"):
        return value
    values = list(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else [value]
    return [values] if name == model.searches and values and np.ndim(values[0]) == 0 else values


def _check_params(model: Model, params: Mapping[str, Any]) -> None:
    """Build an estimator and let scikit-learn check its settings."""
    known = model.build(10, 20).get_params()
    for name in params:
        if name not in known:
            raise DecodingError(f"The estimator has no parameter {name!r}. {nearest(name, known)}")
        if name in model.fixed:
            raise DecodingError(f"{name} cannot be changed: the name of the estimator stands for {name}={model.fixed[name]!r}.")
    try:
        built = model.build(10, 20, **{name: value for name, value in params.items() if not isinstance(value, TimesMinC)})
        for part in [built, *built.get_params(deep=True).values()]:
            if isinstance(part, BaseEstimator) and hasattr(part, "_parameter_constraints"):  # scikit-learn's own state them
                part._validate_params()
    except (TypeError, ValueError) as error:
        raise DecodingError(str(error)) from error
