"""Models that learn block by block, many side by side: a block is read once for all folds and settings of a chain of tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from daskdecode.engine.solvers import Scorer
from daskdecode.quiet import quiet
from daskdecode.tuning.pooled.blocks import Block, BlockScorer, decisions, load

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


class Lessons:
    """What models are to learn, and what they are examined on; not a dataclass, which Dask would look into.

    Parameters
    ----------
    trains : ndarray of bool, shape (n_sets, n_groups)
        Groups of samples that each training set has.
    tests : sequence of ndarray of bool, each (n_tests_of_set, n_groups)
        Groups of each test set of each training set.
    columns : sequence of ndarray of int, or None
        Voxels that each training set keeps; None: all.
    models : sequence of (int, mapping)
        Number of a training set, and a setting; those of one training set one after another.
    build : callable
        ``build(n_train, n_voxels, **setting)``: an unfitted estimator.
    classes : ndarray, shape (n_classes,)
    scorer : callable
    lenient : bool
        Whether a fit that fails is put up with.
    """

    def __init__(
        self,
        trains: Bools,
        tests: Sequence[Bools],
        columns: Sequence[Ints | None],
        models: Sequence[tuple[int, Mapping[str, Any]]],
        *,
        build: Callable[..., Any],
        classes: NDArray[Any],
        scorer: Scorer,
        lenient: bool = False,
    ) -> None:
        self.trains, self.tests, self.columns, self.models = trains, tests, columns, models
        self.build, self.classes, self.scorer, self.lenient = build, classes, scorer, lenient

    def having(self, models: Sequence[tuple[int, Mapping[str, Any]]]) -> Lessons:
        """The same for some models: what their training sets have and no more."""
        sets = list(dict.fromkeys(s for s, _ in models))
        found = copy(self)
        found.trains = self.trains[sets]
        found.tests, found.columns = [self.tests[s] for s in sets], [self.columns[s] for s in sets]
        found.models = [(sets.index(s), setting) for s, setting in models]
        return found

    def of_sets(self) -> Iterator[tuple[int, list[int]]]:
        """Training sets, and the numbers of their models."""
        for s in dict.fromkeys(s for s, _ in self.models):
            yield s, [m for m, (other, _) in enumerate(self.models) if other == s]

    def examined(self, s: int) -> Bools:
        """Groups that any test set of a training set has, shape (n_groups,)."""
        return np.asarray(self.tests[s].any(axis=0))

    def part(self, x: NDArray[np.floating], s: int, wanted: Bools) -> NDArray[np.floating]:
        """Wanted rows of a block as a training set sees them; the block itself where that is all of it."""
        columns = self.columns[s]
        if columns is not None:
            return x[np.ix_(np.flatnonzero(wanted), columns)]
        return x if wanted.all() else x[wanted]

    def attempt(self, fit: Callable[[], Any]) -> Any:
        """Do it; None where it fails and that is put up with."""
        try:
            with quiet(ConvergenceWarning):  # each call of partial_fit is one epoch
                return fit()
        except Exception:  # whatever an estimator raises
            if not self.lenient:
                raise
            return None


class Learnt:
    """Models as far as they are trained; None for one that failed. And the seconds that training took, shape (n_models,)."""

    def __init__(self, models: list[Any], seconds: Floats) -> None:
        self.models, self.seconds = models, seconds


class Examined:
    """Decisions on the test samples of a block: for each training set their groups and classes, for each model its decisions."""

    def __init__(self, who: dict[int, Ints], codes: dict[int, Ints], decided: list[Floats | None], seconds: Floats) -> None:
        self.who, self.codes, self.decided, self.seconds = who, codes, decided, seconds


@dataclass(frozen=True)
class Marks:
    """Scores of models (n_models, n_tests); which failed, (n_models,); seconds that training and scoring took, (n_models,).

    NaN where a score is not defined, minus infinity where a fit failed.
    """

    scores: Floats
    failed: Bools
    fit_s: Floats
    score_s: Floats


def chain(lessons: Lessons, blocks: Sequence[Block], tasks: Sequence[Delayed], orders: Sequence[Sequence[int]]) -> Delayed:
    """Train on one block after another, lazily; a :class:`Learnt`.

    Parameters
    ----------
    lessons : Lessons
    blocks : sequence of Block
    tasks : sequence of Delayed
        The same, for chains to share.
    orders : sequence of sequences of int
        Numbers of blocks in the order of each pass.

    Notes
    -----
    Memory: each task reads its block itself, so a process holds as many as it runs tasks. Models are copied by each task, since one that is
    done again, because its worker was lost, must find them as they were.
    """
    asked = dask.delayed(lessons, traverse=False)
    teach = dask.delayed(_teach, pure=False)
    learnt: Delayed = dask.delayed(_begin, pure=False)(asked)
    wanted = np.asarray(lessons.trains.any(axis=0))
    for order in orders:
        for b in order:
            if wanted[blocks[b].who].any():
                learnt = teach(learnt, asked, tasks[b])
    return learnt


def marks(lessons: Lessons, learnt: Delayed, blocks: Sequence[Block], tasks: Sequence[Delayed]) -> Delayed:
    """Score trained models on their test sets, read block by block, lazily; a :class:`Marks`."""
    asked = dask.delayed(lessons, traverse=False)
    examine = dask.delayed(_examine, pure=False)
    wanted = np.asarray(np.concatenate(lessons.tests).any(axis=0))
    parts = [examine(learnt, asked, task) for block, task in zip(blocks, tasks, strict=True) if wanted[block.who].any()]
    found: Delayed = dask.delayed(_mark, pure=False)(learnt, asked, parts)
    return found


def _begin(lessons: Lessons) -> Learnt:
    return Learnt([lessons.build(10, 20, **setting) for _, setting in lessons.models], np.zeros(len(lessons.models)))


def _teach(learnt: Learnt, lessons: Lessons, block: Block) -> Learnt:
    models, seconds = deepcopy(learnt.models), learnt.seconds.copy()
    x = load(block.recipe)
    for s, members in lessons.of_sets():
        wanted = lessons.trains[s][block.who]
        if not wanted.any():
            continue
        seen, y = lessons.part(x, s, wanted), lessons.classes[block.codes[wanted]]
        for m in members:
            if models[m] is not None:
                start = time.perf_counter()
                models[m] = lessons.attempt(partial(_fit_more, models[m], seen, y, lessons.classes))
                seconds[m] += time.perf_counter() - start
    return Learnt(models, seconds)


def _fit_more(model: Any, x: NDArray[np.floating], y: NDArray[Any], classes: NDArray[Any]) -> Any:
    model.partial_fit(x, y, classes=classes)
    return model


def _examine(learnt: Learnt, lessons: Lessons, block: Block) -> Examined:
    x = load(block.recipe)
    found = Examined({}, {}, [None] * len(learnt.models), np.zeros(len(learnt.models)))
    for s, members in lessons.of_sets():
        wanted = lessons.examined(s)[block.who]
        if not wanted.any():
            continue
        found.who[s], found.codes[s] = block.who[wanted], block.codes[wanted]
        seen = lessons.part(x, s, wanted)
        for m in members:
            if (model := learnt.models[m]) is not None:
                start = time.perf_counter()
                found.decided[m] = lessons.attempt(partial(decisions, model, seen))
                found.seconds[m] = time.perf_counter() - start
    return found


def _mark(learnt: Learnt, lessons: Lessons, parts: Sequence[Examined]) -> Marks:
    judge = BlockScorer(lessons.scorer, lessons.classes.size)
    scores = np.full((len(learnt.models), max(map(len, lessons.tests))), np.nan)
    failed = np.zeros(len(learnt.models), dtype=bool)
    score_s = np.sum([part.seconds for part in parts], axis=0)
    for s, members in lessons.of_sets():
        own = [part for part in parts if s in part.who]
        who, codes = (np.concatenate([getattr(part, name)[s] for part in own]) for name in ("who", "codes"))
        for m in members:
            start, decided = time.perf_counter(), [part.decided[m] for part in own]
            found = lessons.attempt(partial(_scores, judge, decided, codes, [groups[who] for groups in lessons.tests[s]]))
            failed[m] = found is None
            scores[m, : len(lessons.tests[s])] = -np.inf if found is None else found
            score_s[m] += time.perf_counter() - start
    return Marks(scores, failed, learnt.seconds, score_s)


def _scores(judge: BlockScorer, decided: Sequence[Floats | None], codes: Ints, tests: Sequence[Bools]) -> list[float] | None:
    """Score of each test set; None for a model that failed."""
    parts = [d for d in decided if d is not None]
    if len(parts) < len(decided):
        return None
    decision = np.concatenate(parts)
    return [judge.of(decision[rows], codes[rows]) for rows in tests]
