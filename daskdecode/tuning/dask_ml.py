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
Hyperband stops: "asynchronous Client in a synchronous a stand-in for the name ``dask`` in the module that fits
context" (dask-ml issue 1016)
=====================================================  ================================================================================

The stand-in replaces a name inside dask-ml, so it is put there for the releases that are known to need it and for no others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import dask
import numpy as np
import psutil
from dask.base import get_scheduler
from dask.delayed import Delayed
from dask_ml.model_selection import GridSearchCV, HyperbandSearchCV, _incremental
from distributed import Client, Future, default_client
from distributed import futures_of as distributed_futures_of
from sklearn.exceptions import FitFailedWarning
from sklearn.utils import get_tags

from daskdecode.errors import DecodingError

RETRIES = 2
"""Times that a task which raised is tried again on a cluster: a file system's hiccup passes, a fault of the estimator does not."""

HELD_BLOCKS = 2
"""Blocks of samples that the search holds besides those that fits wait for: of this round, and of the next, which is begun beforehand."""

_NEEDS_STAND_IN = ("2025.1.0",)


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


# ------------------------------------------------------------------------------------------------------------------------ Hyperband


@dataclass(frozen=True)
class Workers:
    """The smallest of the workers: what is planned for it fits all."""

    n_threads: int
    memory_nbytes: int


def workers() -> Workers:
    """Look at the workers of the active Client.

    Raises
    ------
    DecodingError
        If there is no Client, or if it has no workers.
    """
    try:
        client = default_client()
    except ValueError as error:
        raise DecodingError(
            "method='hyperband' trains and drops models while they run, which needs a cluster: call dd.connect() first (or "
            "dd.connect('tcp://...'), or distributed.Client())."
        ) from error
    known = client.scheduler_info(n_workers=-1)["workers"].values()
    if not known:
        raise DecodingError("method='hyperband' found no workers on the cluster. Wait for them: client.wait_for_workers(1).")
    # A worker without a limit has what the machine has.
    limits = [w["memory_limit"] or psutil.virtual_memory().total for w in known]
    return Workers(max(w["nthreads"] for w in known), min(limits))


@dataclass(frozen=True)
class SampleBlocks:
    """Blocks of training samples that are made when a fit needs them, and dropped when no fit waits for them.

    Attributes
    ----------
    blocks : tuple of Delayed
        Each a matrix (n_samples_of_block, n_features).
    """

    blocks: tuple[Delayed, ...]

    @classmethod
    def of(cls, load: Callable[..., Any], recipes: Sequence[Any]) -> SampleBlocks:
        """Blocks that ``load(recipe)`` makes inside a task. dask-ml sorts them by key: tuples keep 10 behind 9."""
        name = f"samples-{uuid4().hex}"
        task = dask.delayed(load, pure=False)
        return cls(tuple(task(recipe, dask_key_name=(name, number)) for number, recipe in enumerate(recipes)))


@dataclass(frozen=True)
class Split:
    """Training samples, and those that choose among the models: the first two as X, the others as y."""

    train: Any
    validation: Any


class Hyperband(HyperbandSearchCV):  # type: ignore[misc]
    """dask-ml's Hyperband on samples that are never in memory together, with validation samples that the caller chose.

    ``fit(Split(SampleBlocks, dask array), Split(dask array, dask array), **fit_params)``; blocks of X and of y must correspond.
    """

    def fit(self, X: Split, y: Split, **fit_params: Any) -> Hyperband:
        """Search on the active Client."""
        _put_stand_in()
        with warnings.catch_warnings():
            # A short list has fewer settings than a bracket asks for: then it tries them all.
            warnings.filterwarnings("ignore", message="The total space of parameters")
            try:
                super().fit(X, y, **fit_params)
            finally:
                _incremental.dask.recent.clear()
        return self

    def _get_SHAs(self, brackets: Any) -> dict[int, Any]:  # noqa: N802  # dask-ml's name
        searches = super()._get_SHAs(brackets)
        for search in searches.values():
            # dask-ml would draw the validation samples one by one, so that samples of one run both train and choose.
            search._get_train_test_split = _as_split
        return searches  # type: ignore[no-any-return]


def _as_split(X: Split, y: Split) -> tuple[Any, Any, Any, Any]:
    return X.train, X.validation, y.train, y.validation


def _put_stand_in() -> None:
    """Mend the module that fits, once; see :class:`_DaskForIncremental`."""
    found = version("dask-ml")
    if found not in _NEEDS_STAND_IN:
        raise DecodingError(
            f"method='hyperband' is known to work with dask-ml {', '.join(_NEEDS_STAND_IN)}; found {found}. Install that release, or use "
            "method='random'."
        )
    if _incremental.dask is dask:
        _incremental.dask = _DaskForIncremental()
        _incremental.futures_of = _futures_of


class _DaskForIncremental:
    """What dask-ml's coroutine finds under the name ``dask``.

    It calls ``dask.delayed`` and ``dask.persist`` on the event loop of a synchronous Client, where they would wait for themselves: since
    distributed 2025.3 they refuse. Handing the same graphs to the Client does not wait. Everything else is dask's.
    """

    def __init__(self) -> None:
        self.recent: dict[Any, Future[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(dask, name)

    def delayed(self, function: Callable[..., Any]) -> Callable[..., _Submitted]:
        """Run the function at once, on the cluster, with the priority of the annotation around the call."""
        return partial(self._submit, dask.delayed(function, pure=False))

    def _submit(self, call: Callable[..., Delayed], *args: Any) -> _Submitted:
        priority = dask.get_annotations().get("priority", 0)
        task = call(*(self._on_cluster(a) for a in args))
        return _Submitted(default_client().compute(task, priority=priority, optimize_graph=False, retries=RETRIES))

    def _on_cluster(self, argument: Any) -> Any:
        """Future of an argument. A block that all models of a round take is held while they are submitted, so that it is read once."""
        if isinstance(argument, _Submitted):
            return argument.future
        if not isinstance(argument, Delayed):
            return argument
        found = self.recent.pop(argument.key, None)
        if found is None:
            found = default_client().compute(argument, optimize_graph=False, retries=RETRIES)
        self.recent[argument.key] = found
        while len(self.recent) > HELD_BLOCKS:
            del self.recent[next(iter(self.recent))]
        return found

    @staticmethod
    def persist(*collections: Any) -> tuple[Any, ...]:
        """Start what is lazy, but leave blocks of samples."""
        client = default_client()
        return tuple(client.persist(c, optimize_graph=False) if dask.is_dask_collection(c) else c for c in collections)


@dataclass(frozen=True)
class _Submitted:
    """A task that has been submitted, in the shape in which dask-ml looks for its future."""

    future: Future[Any]

    @property
    def dask(self) -> dict[Any, Any]:
        """A graph of one key."""
        return {self.future.key: self.future}


def _futures_of(collection: Any) -> list[Any]:
    if isinstance(collection, SampleBlocks):
        return list(collection.blocks)
    return distributed_futures_of(collection)  # type: ignore[no-any-return]
