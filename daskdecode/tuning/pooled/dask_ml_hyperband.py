"""dask-ml's Hyperband as today's distributed needs it, on samples that are read when a model needs them.

Release 2025.1.0 calls ``dask.delayed`` and ``dask.persist`` inside a coroutine, which distributed refuses since 2025.3 (dask-ml issue
1016). A stand-in takes the place of the name ``dask`` in the module that fits, for the releases that are known to need it and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import dask
import psutil
from dask.delayed import Delayed
from dask_ml.model_selection import HyperbandSearchCV, _hyperband, _incremental
from distributed import default_client
from distributed import futures_of as distributed_futures_of

from daskdecode.engine.workers import workers_of
from daskdecode.errors import DecodingError
from daskdecode.tuning.pooled.bracket import Blocks, Bracket
from daskdecode.tuning.pooled.stages import Stages

_NEEDS_STAND_IN = ("2025.1.0",)

_LOOK_S = 0.1
"""How often it is looked for what has ended, to keep it: what a kill loses is what ended since."""

_SHARE_OF_KEEPING = 0.25
"""Of the time, at most, in which what has ended is fetched and written: large models are kept less often."""

_bracket: ContextVar[Bracket | None] = ContextVar("bracket", default=None)
"""Whose models are asked for: dask-ml goes through each bracket in an asyncio task of its own."""


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
    known = workers_of(client)
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

    def fit(self, X: Split, y: Split, *, stages: Stages | None = None, **fit_params: Any) -> Hyperband:
        """Search on the active Client; go on from stages that are known, and add to them as they end."""
        _put_stand_in()
        self._stages = Stages(None, {}) if stages is None else stages
        self._brackets: list[tuple[Bracket, asyncio.Task[Any]]] = []
        self._blocks = Blocks()
        try:
            with warnings.catch_warnings():
                # A short list has fewer settings than a bracket asks for: then it tries them all.
                warnings.filterwarnings("ignore", message="The total space of parameters")
                super().fit(X, y, **fit_params)
        finally:
            del self._stages, self._brackets, self._blocks  # they hold futures
        return self

    def settings(self) -> list[dict[str, Any]]:
        """Every setting that is tried, bracket by bracket."""
        searches = super()._get_SHAs(_hyperband._get_hyperband_params(self.max_iter, eta=self.aggressiveness))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The total space of parameters")
            return [params for search in searches.values() for params in search._get_params()]

    async def _fit(self, X: Split, y: Split, **fit_params: Any) -> Any:
        ended = asyncio.Event()
        fitting = asyncio.ensure_future(super()._fit(X, y, **fit_params))
        keeping = asyncio.ensure_future(self._keep_until(ended))
        try:
            await asyncio.wait({fitting, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if not fitting.done():
                keeping.result()  # raises: what has ended cannot be kept
            found = await fitting
            ended.set()
            await keeping
            return found
        finally:
            # Nothing is cancelled on the event loop: a Client of which a gather was cancelled gathers nothing any more.
            ended.set()
            await asyncio.gather(keeping, return_exceptions=True)
            # Where one bracket fails, dask-ml lets the others go on.
            for bracket, _ in self._brackets:
                bracket.end()
            await asyncio.gather(fitting, *(task for _, task in self._brackets), return_exceptions=True)

    async def _keep_until(self, ended: asyncio.Event) -> None:
        while self._stages.are_kept and not ended.is_set():
            began = time.monotonic()
            await self._keep()
            pause = max(_LOOK_S, (time.monotonic() - began) / _SHARE_OF_KEEPING)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), pause)
        await ended.wait()
        await self._keep()

    async def _keep(self) -> None:
        for bracket, _ in self._brackets if self._stages.are_kept else ():
            for model, found in (await bracket.gather()).items():
                await asyncio.to_thread(self._stages.keep, model, *found)

    def _get_SHAs(self, brackets: Any) -> dict[int, Any]:  # noqa: N802  # dask-ml's name
        searches = super()._get_SHAs(brackets)
        for number, search in searches.items():
            # dask-ml would draw the validation samples one by one, so that samples of one run both train and choose.
            search._get_train_test_split = partial(self._as_split, number)
        return searches  # type: ignore[no-any-return]

    def _as_split(self, number: int, X: Split, y: Split) -> tuple[Any, Any, Any, Any]:
        bracket, task = Bracket(number, self._stages, self._blocks), asyncio.current_task()
        assert task is not None  # dask-ml calls from a coroutine
        self._brackets.append((bracket, task))
        _bracket.set(bracket)
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

    def __getattr__(self, name: str) -> Any:
        return getattr(dask, name)

    @staticmethod
    def delayed(function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what trains, or scores, a model of the bracket."""
        bracket = _bracket.get()
        if bracket is None:  # a search that is none of ours
            return dask.delayed(function)  # type: ignore[no-any-return]
        return {_incremental._partial_fit: bracket.train, _incremental._score: bracket.score}[function]

    @staticmethod
    def persist(*collections: Any) -> tuple[Any, ...]:
        """Start what is lazy, but leave blocks of samples."""
        client = default_client()
        return tuple(client.persist(c, optimize_graph=False) if dask.is_dask_collection(c) else c for c in collections)


def _futures_of(collection: Any) -> list[Any]:
    if isinstance(collection, SampleBlocks):
        return list(collection.blocks)
    return distributed_futures_of(collection)  # type: ignore[no-any-return]
