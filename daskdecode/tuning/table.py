"""What stands between dask-ml and the data: rows to split, and estimators that look up what their training set sees.

dask-ml splits samples and hands them to an estimator. Here a sample is a number, and the estimator (or the first step of a pipeline) looks
up what the training set has of the data: the Gram matrix of its own voxels, or the voxels. So the data travel once to a worker that needs
them, whatever the number of settings, and screening is each training set's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline

from daskdecode.engine.coordinate_descent import DualFit, fit_dual
from daskdecode.engine.registry import model_of
from daskdecode.engine.scoring import score_decisions
from daskdecode.engine.solvers import Scorer, at_max_iter, fit_named, in_turn, resolve
from daskdecode.errors import DecodingError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]
Form = Literal["gram", "factor", "columns"]


@dataclass(frozen=True)
class Entry:
    """What one training set of one problem sees, and the sets of rows that it is tested on.

    Attributes
    ----------
    data : ndarray of float64
        Gram matrix (n_samples, n_samples), a factor of it (n_samples, rank), or voxels (n_samples, n_columns).
    columns : ndarray of bool, shape (n_columns,), or None
    tests : tuple of int arrays
    """

    data: Floats
    columns: Bools | None
    tests: tuple[Ints, ...]


class Table:
    """Rows to split: row ``c * n_samples + i`` is sample i of problem c, so that one against the rest is one more split.

    Parameters
    ----------
    trains, tests : sequences of ndarray and of tuples of ndarrays of int
        Rows of each training set, and the sets of rows that it is tested on.
    data, columns : sequences
        What each sees; see :class:`Entry`.
    n_samples, n_problems : int
    """

    def __init__(
        self,
        trains: Sequence[Ints],
        tests: Sequence[tuple[Ints, ...]],
        data: Sequence[Floats],
        columns: Sequence[Bools | None],
        n_samples: int,
        n_problems: int,
    ) -> None:
        known = zip(trains, data, columns, tests, strict=True)
        self._entries = {train.tobytes(): Entry(d, kept, tested) for train, d, kept, tested in known}
        self.n_samples = n_samples
        self.shape = (n_samples * n_problems,)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Ints) -> Rows:
        return Rows(self, np.asarray(rows, dtype=np.intp))

    def entry(self, train: Ints) -> Entry:
        """Look up a training set by its rows."""
        return self._entries[train.tobytes()]


@dataclass(frozen=True)
class Rows:
    """Some rows of a :class:`Table`: what dask-ml takes for training or test samples."""

    table: Table
    rows: Ints

    def __getitem__(self, at: Ints) -> Rows:
        return Rows(self.table, self.rows[at])

    @property
    def shape(self) -> tuple[int]:
        """Number of rows."""
        return (self.rows.size,)

    @property
    def samples(self) -> Ints:
        """The samples that the rows stand for."""
        return self.rows % self.table.n_samples


class Seen(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """From rows to the features that their training set sees.

    Parameters
    ----------
    form : {"gram", "factor", "columns"}
        Inner products with the training samples (n_rows, n_train); a factor of their Gram matrix (n_rows, rank), see
        :class:`daskdecode.engine.rotation.Factor`; or voxels (n_rows, n_voxels of the training set).
    """

    def __init__(self, form: Form = "columns") -> None:
        self.form = form

    def fit(self, X: Rows, y: Any = None) -> Self:  # noqa: ARG002  # scikit-learn's signature
        """Remember the training set."""
        self.train_ = X.rows
        return self

    def transform(self, X: Rows) -> Floats:
        """Features of rows of the same problem."""
        entry = X.table.entry(self.train_)
        if self.form == "gram":
            return entry.data[np.ix_(X.samples, self.train_ % X.table.n_samples)]
        found = entry.data[X.samples]
        return found if entry.columns is None else np.ascontiguousarray(found[:, entry.columns])


class Fit(BaseEstimator):  # type: ignore[misc]
    """Build an estimator with the settings that the search gives, and fit it: on rows of a :class:`Table`, or as a pipeline's last step.

    Parameters
    ----------
    build : callable
        ``build(n_train, n_voxels, **params)``: an unfitted estimator.
    form : {"gram", "factor", "columns"}
        What its features are; see :class:`Seen`.
    n_voxels : int
        Voxels that a Gram matrix stands for.
    params : dict, optional
        Settings.
    """

    def __init__(self, build: Callable[..., Any], form: Form, n_voxels: int, params: dict[str, Any] | None = None) -> None:
        self.build = build
        self.form = form
        self.n_voxels = n_voxels
        self.params = params

    def set_params(self, **params: Any) -> Self:
        """Take settings, whatever their names."""
        self.params = {**(self.params or {}), **params}
        return self

    def fit(self, X: Rows | Floats, y: NDArray[Any], sample_weight: Floats | None = None) -> Self:
        """Fit the estimator; a support vector machine on inner products by coordinate descent."""
        if isinstance(X, Rows):
            self.seen_ = Seen(self.form).fit(X)
            X = self.seen_.transform(X)
        n_voxels = X.shape[1] if self.form == "columns" else self.n_voxels
        model = self.build(y.size, n_voxels, **resolve(self.params or {}, X, y))
        if self.form == "gram":
            everyone = np.arange(y.size)
            self.model_: Any = model
            self.dual_: DualFit = fit_dual(X, everyone, y, [model], sample_weight)[0]
            return self
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        with in_turn([model]):
            self.model_ = fit_named(model, X, y, weights)
        return self

    @property
    def unconverged_(self) -> bool:
        """Whether the solver stopped at its largest number of iterations."""
        return self.dual_.n_iter >= self.model_.max_iter if self.form == "gram" else at_max_iter(self.model_)

    def score_with(self, scorer: Scorer, steps: Sequence[tuple[str, Any]], X: Floats, y: NDArray[Any]) -> float:
        """Score features (n_rows, n_features) before they pass the steps between."""
        if self.form == "gram":
            return score_decisions(scorer, X @ self.dual_.beta + self.dual_.intercept, y)
        model = Pipeline([*steps, ("model", self.model_)]) if steps else self.model_
        return float(scorer(model, X, y))


def _parts(model: Fit | Pipeline) -> tuple[Seen, list[tuple[str, Any]], Fit]:
    """What looks up the data, the steps between, and what was fitted."""
    if isinstance(model, Fit):
        return model.seen_, [], model
    between = [(name, step) for name, step in model.steps[1:-1] if step is not None]
    return model.steps[0][1], between, model.steps[-1][1]


@dataclass(frozen=True)
class HeldOut:
    """Score a fitted model on one of the sets of rows that its training set is tested on; NaN where it has fewer.

    Pairs of folds share a training set (without runs a and b is without b and a): it is fitted once and scored twice.
    """

    scorer: Scorer
    position: int
    failed: float | None = None
    """Score of a fit that cannot be scored, such as one that gives NaN; None: what the scorer raises comes out."""

    def __call__(self, model: Fit | Pipeline, X: Rows, y: NDArray[Any]) -> float:
        """Score the rows of the test set among X, all that the training set is tested on."""
        seen, between, fitted = _parts(model)
        tests = X.table.entry(seen.train_).tests
        if self.position >= len(tests):
            return float("nan")
        at = np.searchsorted(X.rows, tests[self.position])
        try:
            return fitted.score_with(self.scorer, between, seen.transform(X[at]), y[at])
        except Exception as error:  # whatever an estimator or a scorer raises
            if self.failed is not None:
                return self.failed
            raise DecodingError(
                f"{' '.join(str(fitted.model_).split())} with {fitted.params} could not be scored on {at.size} test samples: "
                f"{type(error).__name__}: {str(error).rstrip('.')}. Leave that setting out, or pass error_score=np.nan to rank it last."
            ) from error


def unconverged(model: Fit | Pipeline, X: Rows, y: Any) -> float:  # noqa: ARG001  # a scorer's signature
    """1.0 where the fit stopped before it converged; a scorer, so that dask-ml brings it back with the scores."""
    return float(_parts(model)[2].unconverged_)


def searched(build: Callable[..., Any], form: Form, n_voxels: int) -> Fit | Pipeline:
    """Estimator for dask-ml, with the parameters of the user's own.

    The steps of a user's pipeline are steps of this one, so that dask-ml fits those once that settings share. A single estimator looks up
    its data by itself: fitting and scoring it is then one task, where each step of a pipeline is a task with its own overhead.
    """
    estimator = build(10, 20)
    if not isinstance(estimator, Pipeline):
        return Fit(build, form, n_voxels)
    *steps, (name, last) = [(n, None if isinstance(s, str) and s == "passthrough" else s) for n, s in estimator.steps]
    return Pipeline([("seen", Seen(form)), *steps, (name, Fit(model_of(last).build, form, n_voxels))])
