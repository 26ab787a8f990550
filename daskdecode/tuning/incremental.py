"""dask-ml's Hyperband as today's distributed needs it, on samples that are read when a model needs them.

Release 2025.1.0 calls ``dask.delayed`` and ``dask.persist`` inside a coroutine, which distributed refuses since 2025.3 (dask-ml issue
1016). A stand-in takes the place of the name ``dask`` in the module that fits, for the releases that are known to need it and no others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import dask
import psutil
from dask.delayed import Delayed
from dask_ml.model_selection import HyperbandSearchCV, _incremental
from distributed import Future, default_client
from distributed import futures_of as distributed_futures_of

from daskdecode.errors import DecodingError
from daskdecode.tuning.dask_ml import RETRIES

HELD_BLOCKS = 2
"""Blocks of samples that the search holds besides those that fits wait for: of this round, and of the next, which is begun beforehand."""

_NEEDS_STAND_IN = ("2025.1.0",)


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
