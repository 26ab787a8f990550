"""The models of one bracket of Hyperband: tasks where they have to be trained, nothing where what was kept tells enough.

Which blocks a model sees, which settings are tried and which models go on is settled by seeds and scores. So a search that was killed is
gone through again, dask-ml's own logic deciding; a stage that was scored is not trained but told, and training starts where a stage is
beyond what was kept.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any
from uuid import uuid4

import dask
from dask.delayed import Delayed
from dask_ml.model_selection import _incremental
from distributed import Future, default_client

from daskdecode.tuning.dask_ml import RETRIES
from daskdecode.tuning.pooled.stages import Score, Stage, Stages, Which, restored

HELD_BLOCKS = 2
"""Blocks of samples that the search holds besides those that fits wait for: of this round, and of the next, which is begun beforehand."""

_LARGE = {"distributed.admin.large-graph-warning-threshold": "1GB"}
"""A model that was kept travels with its task on purpose: scattered, which Dask advises, it would be lost with its worker."""


def submitted(function: Callable[..., Any], *args: Any, key: Any = None) -> Future[Any]:
    """Start a task of its own, with the priority of the annotation around the call, without waiting, so that a coroutine may."""
    named = {} if key is None else {"dask_key_name": key}
    priority = dask.get_annotations().get("priority", 0)
    task = dask.delayed(function, pure=False)(*args, **named)
    with dask.config.set(_LARGE):
        found: Future[Any] = default_client().compute(task, priority=priority, optimize_graph=False, retries=RETRIES)
    return found


class Blocks:
    """Blocks that several models take are held while their tasks are submitted, so that each is read once."""

    def __init__(self) -> None:
        self._recent: dict[Any, Future[Any]] = {}

    def future(self, block: Any) -> Any:
        """Return the block as the cluster knows it."""
        if not isinstance(block, Delayed):
            return block
        found = self._recent.pop(block.key, None)
        if found is None:
            found = default_client().compute(block, optimize_graph=False, retries=RETRIES)
        self._recent[block.key] = found
        while len(self._recent) > HELD_BLOCKS:
            del self._recent[next(iter(self._recent))]
        return found


class Task:
    """A task in the shape in which dask-ml looks for its future: a graph of one key."""

    def __init__(self, future: Future[Any]) -> None:
        self.future = future

    @property
    def dask(self) -> dict[Any, Any]:
        """A graph of one key."""
        return {self.future.key: self.future}


class Trained:
    """A model at a stage: a task, or how to come by one where it may not be needed.

    On the cluster, where dask-ml sends those that are left in the end, it is what was kept: model and what is known of it.
    """

    def __init__(self, stage: Stage, state: bytes | None, before: Any, call: tuple[Any, ...]) -> None:
        self.stage, self.state, self.before, self.call = stage, state, before, call
        self.future: Future[Any] | None = None

    def __reduce__(self) -> Any:
        return restored, (self.state,)

    def __getitem__(self, part: int) -> Any:
        return restored(self.state)[part] if self.state is not None else None

    @property
    def dask(self) -> dict[Any, Any]:
        """A graph of one key."""
        return {self.stage: self if self.future is None else self.future}


class Bracket:
    """Models as dask-ml asks for them.

    Parameters
    ----------
    number : int
    stages : Stages
        What is known already, and where what is found is kept.
    blocks : Blocks
        Shared by the brackets of a search.
    """

    def __init__(self, number: int, stages: Stages, blocks: Blocks) -> None:
        self.number, self.stages, self.blocks = number, stages, blocks
        self._name = f"partial_fit-{uuid4().hex}"
        self._new: list[Future[Any]] = []
        # dask-ml drops the futures of models that it gives up, which ends what was begun for them: not to be held for keeping.
        self._begun: weakref.WeakValueDictionary[Stage, Future[Any]] = weakref.WeakValueDictionary()
        self._gone_beyond: dict[Stage, Future[Any]] = {}
        self._unscored: dict[Stage, Future[Any]] = {}
        self._all: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._ended = False

    def train(self, model: Any, X: Any, y: Any, fit_params: Any) -> Trained:
        """Let a model learn from a block, for :func:`dask_ml.model_selection._incremental._partial_fit`."""
        if self._ended:
            raise CancelledError
        before = self._stage(model)
        stage = Stage(before.model, before.calls + 1)
        found = Trained(stage, self.stages.state(stage), model, (X, y, fit_params))
        waits = isinstance(model, Trained) and model.future is None
        if not waits and stage.calls > self.stages.newest(stage.model):
            self._start(found)
        return found

    def score(self, model: Any, X: Any, y: Any, scorer: Any) -> Task:
        """Score a model, for :func:`dask_ml.model_selection._incremental._score`; one that was scored is not needed for it."""
        stage = self._stage(model)
        known = self.stages.score(stage)
        if known is not None:
            return Task(submitted(_told, self._new[stage.model.number], stage.calls, *known))
        future = self._start(model) if isinstance(model, Trained) else model
        found = submitted(_incremental._score, future, X, y, scorer)
        self._all.add(found)
        if self.stages.are_kept:
            self._unscored[stage] = found
            self._gone_beyond[stage] = future
        return Task(found)

    def _stage(self, model: Any) -> Stage:
        """Tell which model it is, and how long it was trained; dask-ml starts with models that are not trained, in order."""
        if isinstance(model, Trained):
            return model.stage
        if isinstance(model.key, tuple) and model.key[0] == self._name:
            _, number, calls = model.key
            return Stage(Which(self.number, number), calls)
        self._new.append(model)
        return Stage(Which(self.number, len(self._new) - 1), 0)

    def _start(self, model: Trained) -> Future[Any]:
        """Submit a model's task, after those it waits for."""
        chain = []
        at: Any = model
        while isinstance(at, Trained) and at.future is None:
            chain.append(at)
            at = None if at.state is not None else at.before
        for one in reversed(chain):
            key = (self._name, one.stage.model.number, one.stage.calls)
            if one.state is not None:
                one.future = submitted(restored, one.state, key=key)
            else:
                before: Any = one.before.future if isinstance(one.before, Trained) else one.before
                X, y, fit_params = one.call
                one.future = submitted(_incremental._partial_fit, before, self.blocks.future(X), y, fit_params, key=key)
                if self.stages.are_kept and one.stage.calls > 1:
                    self._gone_beyond[Stage(one.stage.model, one.stage.calls - 1)] = before
            self._begun[one.stage] = one.future
            self._all.add(one.future)
            one.state, one.before, one.call = None, None, ()
        assert model.future is not None
        return model.future

    def end(self) -> None:
        """Give up all that was begun, so that dask-ml ends too, and lets go of it."""
        self._ended = True
        known = default_client().futures
        for future in list(self._all):
            # Here only: schedulers (to 2026.8) fail where a Client cancels what other tasks depend on.
            if future.key in known:
                known[future.key].cancel()

    async def gather(self) -> dict[Which, tuple[dict[int, Any], dict[int, Score], set[int]]]:
        """Fetch what has ended since the last time, for :meth:`Stages.keep`: newest states, states to be scored, scores."""
        done = {stage: future for stage, future in list(self._begun.items()) if future.status == "finished"}
        scored = {stage: future for stage, future in self._unscored.items() if future.status == "finished"}
        newest: dict[Which, int] = defaultdict(int)
        for model, calls in done:
            newest[model] = max(newest[model], calls)
        unscored = self._unscored.keys() - scored.keys()
        ahead = [s for s in done if s.calls == newest[s.model] > self.stages.newest(s.model)]
        wanted = [s for s in dict.fromkeys([*ahead, *(done.keys() & self._unscored.keys())]) if self.stages.state(s) is None]
        client = default_client()
        states = await client.gather([done[s] for s in wanted], asynchronous=True)
        metas = await client.gather(list(scored.values()), asynchronous=True)
        found: dict[Which, tuple[dict[int, Any], dict[int, Score], set[int]]] = {}
        for s in (*wanted, *scored):
            found.setdefault(s.model, ({}, {}, {u.calls for u in unscored if u.model == s.model}))
        for s, state in zip(wanted, states, strict=True):
            found[s.model][0][s.calls] = state
        for s, meta in zip(scored, metas, strict=True):
            found[s.model][1][s.calls] = Score(meta["partial_fit_time"], meta["score"], meta["score_time"])
            del self._unscored[s]
        for s in [s for s in self._gone_beyond if s.calls <= newest[s.model] and s not in self._unscored]:
            del self._gone_beyond[s]
        return found


def _told(new: tuple[Any, dict[str, Any]], calls: int, fit_time_s: float, score: float, score_time_s: float) -> dict[str, Any]:
    """Return what dask-ml is to know of a model that was scored."""
    return new[1] | {"partial_fit_calls": calls, "partial_fit_time": fit_time_s, "score": score, "score_time": score_time_s}
