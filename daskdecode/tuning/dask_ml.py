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
context" (dask-ml issue 1016)                          ``incremental.py``
=====================================================  ================================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dask
import numpy as np
from dask.base import get_scheduler
from dask_ml.model_selection import GridSearchCV
from distributed import Client
from sklearn.exceptions import FitFailedWarning
from sklearn.utils import get_tags

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

    def get_on_cluster(graph: Any, keys: Any, **_: Any) -> Any:
        return client.get(graph, keys, retries=RETRIES)

    return get_on_cluster


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
            with warnings.catch_warnings(), np.errstate(invalid="ignore"):
                # Failed fits are seen in the scores. The spread of scores of which one is infinite is NaN.
                warnings.simplefilter("ignore", FitFailedWarning)
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
