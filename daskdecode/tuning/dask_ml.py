"""dask-ml as today's scikit-learn and distributed need it: every way around a fault of release 2025.1.0, in one place.

=====================================================  ================================================================================
fault                                                  way around
=====================================================  ================================================================================
a fit that raises hangs for ever on a Client           the scheduler is a plain function (:func:`active_get`): dask-ml then takes no
                                                       part in retries, errors surface, and lost workers are made good for
folds are weighted by their size (``iid=True``)        ``iid=False``
every worker hoards copies of folds                    ``cache_cv=False``
``error_score=nan`` gives ranks that mean nothing      minus infinity inside, NaN in the results
scikit-learn does not see a classifier                 tags of the estimator that is searched
``"passthrough"`` is called like an estimator          None, which both libraries skip
``r2_score`` and ``log_loss`` rely on old scikit-learn scikit-learn's own scorers only, given as functions
Hyperband stops: "asynchronous Client in a synchronous a stand-in for the name ``dask`` in the module that fits, in
context" (dask-ml issue 1016)                          ``pooled/dask_ml_hyperband.py``
blocks are read ahead of the one model that            models are trained in ``pooled/chains.py``, by tasks that read their own block,
``Incremental`` trains, and fill the memory            and put into an ``Incremental`` (:func:`as_incremental`)
linear models scatter their weights, which are lost    the module that fits finds no Client (:func:`fit_linear`), and weights travel
with a worker                                          with the graph
linear models tell two classes apart, and predict True :class:`OneAgainstRest`
and False
=====================================================  ================================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import dask
import dask.array as da
import numpy as np
from dask.base import get_scheduler
from dask_glm import algorithms as dask_glm_algorithms
from dask_ml._utils import copy_learned_attributes
from dask_ml.linear_model import LogisticRegression
from dask_ml.model_selection import GridSearchCV
from dask_ml.wrappers import Incremental, ParallelPostFit
from distributed import Client
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import FitFailedWarning
from sklearn.utils import get_tags

from daskdecode.errors import DecodingError
from daskdecode.quiet import quiet

RETRIES = 2
"""Times that a task which raised is tried again on a cluster: a file system's hiccup passes, a fault of the estimator does not."""


def active_get() -> Callable[..., Any]:
    """Return the active scheduler as a plain function ``get(graph, keys)``.

    dask-ml looks for a Client behind a scheduler's method, and if it finds one, retries failed tasks without end. Behind a function it
    finds none. What a Client does by itself is enough: tasks of lost workers run again elsewhere, those that raise :data:`RETRIES` times
    more, and then the error comes out.
    """
    get = get_scheduler() or dask.threaded.get
    client = getattr(get, "__self__", None)
    if not isinstance(client, Client):
        return get

    return _OnCluster(client)


class _OnCluster:
    """What computes a graph on a Client, without being a method of it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __call__(self, graph: Any, keys: Any, **_: Any) -> Any:
        return self.client.get(graph, keys, retries=RETRIES)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        # While this is Dask's setting, a nanny that starts a worker in the place of a lost one sends it all settings.
        return str, ("dask.distributed",)


def without_passthrough(settings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say None where scikit-learn also takes ``"passthrough"``."""
    return [{k: None if isinstance(v, str) and v == "passthrough" else v for k, v in params.items()} for params in settings]


class SettingsSearch(GridSearchCV):  # type: ignore[misc]
    """dask-ml's grid search over a list of settings, each fitted and scored on every split.

    Parameters
    ----------
    estimator : estimator
        A Pipeline's leading steps are fitted once for the settings that share them.
    settings : sequence of mappings
        Parameters of the estimator.
    scoring : callable, or mapping of str to callable
        ``scorer(estimator, X, y) -> float``; several by name.
    cv : splitter, or sequence of (train, test)
    refit : bool or str, default False
        Whether to fit the best setting on all samples; with several scorers, the name of the one that says which is best.
    error_score : "raise" or float, default "raise"
        Score of a fit that fails; NaN, as in scikit-learn's own searches, ranks last.
    """

    def __init__(
        self,
        estimator: Any,
        settings: Sequence[Mapping[str, Any]],
        *,
        scoring: Any,
        cv: Any,
        refit: bool | str = False,
        error_score: Any = "raise",
    ) -> None:
        super().__init__(
            estimator, {}, scoring=scoring, iid=False, refit=refit, cv=cv, error_score=error_score, cache_cv=False, scheduler=None
        )
        self.settings = settings

    def _get_param_iterator(self) -> list[dict[str, Any]]:
        return without_passthrough(self.settings)

    def fit(self, X: Any, y: Any = None, groups: Any = None, **fit_params: Any) -> SettingsSearch:
        """Search on the active scheduler; ``cv_results_`` as dask-ml gives it, with NaN where a fit failed and NaN was asked for."""
        asked: Any = self.error_score  # type: ignore[has-type]  # dask-ml has no types
        as_nan = isinstance(asked, float) and np.isnan(asked)
        self.scheduler: Any = active_get()
        try:
            # Failed fits are seen in the scores. The spread of scores of which one is infinite is NaN.
            with quiet(FitFailedWarning), np.errstate(invalid="ignore"):
                self.error_score = -np.inf if as_nan else asked
                super().fit(X, y, groups, **fit_params)
        finally:
            self.error_score = asked
            self.scheduler = None  # it may hold a Client, which cannot be copied
        del self.dask_graph_  # holds the data, or the means to read them
        for values in self.cv_results_.values() if as_nan else ():
            if getattr(values, "dtype", None) == np.float64:
                values[values == -np.inf] = np.nan
        return self

    def __sklearn_tags__(self) -> Any:
        return get_tags(self.estimator)


# ---------------------------------------------------------------------------------------------------- models of pooled samples


def as_incremental(model: Any, estimator: Any) -> Incremental:
    """Give a model that was trained block by block dask-ml's ``Incremental``, as if that had trained it, in order of the blocks.

    Parameters
    ----------
    model : estimator
        Trained.
    estimator : estimator
        The same, not trained.
    """
    found = Incremental(estimator, shuffle_blocks=False)
    found.estimator_ = model
    copy_learned_attributes(model, found)
    return found


def as_post_fit(model: Any) -> ParallelPostFit:
    """Give a fitted model dask-ml's ``ParallelPostFit``, which predicts dask arrays by blocks."""
    found = ParallelPostFit(model)
    copy_learned_attributes(model, found)
    return found


def is_linear(estimator: Any) -> bool:
    """Whether an estimator is one of dask-ml's own classifiers."""
    return isinstance(estimator, LogisticRegression)


def linear_by_default() -> LogisticRegression:
    """Logistic regression, L2 penalty on weights and intercept; columns as they are, so that C is what it is in scikit-learn."""
    return LogisticRegression(solver="lbfgs", solver_kwargs={"normalize": False})


def fit_linear(estimator: Any, x: da.Array, y: NDArray[np.intp]) -> Any:
    """Fit a copy of one of dask-ml's linear models to lazy samples (n_samples, n_voxels) and classes 0 and 1.

    Raises
    ------
    DecodingError
        The weights are not finite.
    """
    model = clone(estimator)
    get_client = dask_glm_algorithms.get_distributed_client
    dask_glm_algorithms.get_distributed_client = _no_client
    try:
        with warnings.catch_warnings(), dask.config.set(scheduler=active_get()):
            warnings.filterwarnings("ignore", message="Dask configuration key 'fuse_ave_width'")
            warnings.filterwarnings("ignore", message=".*`disp` and `iprint` options")
            warnings.filterwarnings("ignore", category=RuntimeWarning, message="overflow encountered in exp")
            model.fit(x, da.from_array(y, chunks=(x.chunks[0],)))
    finally:
        dask_glm_algorithms.get_distributed_client = get_client
    model.coef_, model.intercept_ = np.asarray(model.coef_), float(model.intercept_)
    if not (np.isfinite(model.coef_).all() and np.isfinite(model.intercept_)):
        raise DecodingError(f"{estimator} did not converge: its weights are not finite. Give a smaller C, or another solver.")
    return model


def _no_client() -> None:
    """Nothing: what dask-glm is told of clusters."""


class OneAgainstRest(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier of linear models, for two classes one, for more one for each against the rest.

    Parameters
    ----------
    estimators : sequence of fitted estimators
    classes : ndarray, shape (n_classes,)

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
    coef_ : ndarray of float64, shape (1 or n_classes, n_voxels)
    intercept_ : ndarray of float64, shape (1 or n_classes,)
    """

    def __init__(self, estimators: Sequence[Any], classes: Any) -> None:
        self.estimators, self.classes = estimators, classes
        self.classes_ = np.asarray(classes)
        self.coef_ = np.stack([np.asarray(e.coef_, dtype=np.float64) for e in estimators])
        self.intercept_ = np.array([float(e.intercept_) for e in estimators])

    @classmethod
    def fitted(cls, fit: Callable[..., Any], x: Any, codes: NDArray[np.intp], classes: NDArray[Any]) -> Self:
        """Fit with ``fit(x, y)`` where y is 1 for the class, 0 for others."""
        positive = [1] if len(classes) == 2 else range(len(classes))
        return cls([fit(x, (codes == c).astype(np.intp)) for c in positive], classes)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Log-odds, shape (n_samples,) for two classes, else (n_samples, n_classes)."""
        found = np.asarray(X, dtype=np.float64) @ self.coef_.T + self.intercept_
        return np.asarray(found[:, 0] if self.classes_.size == 2 else found)

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict classes."""
        found = self.decision_function(X)
        return np.asarray(self.classes_[(found > 0).astype(np.intp) if found.ndim == 1 else found.argmax(axis=1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities of the classes, (n_samples, n_classes); of more than two, those against the rest, divided by their sum."""
        p = expit(self.decision_function(X))
        return np.stack([1 - p, p], axis=1) if p.ndim == 1 else p / p.sum(axis=1, keepdims=True)

    def __sklearn_is_fitted__(self) -> bool:
        return True
