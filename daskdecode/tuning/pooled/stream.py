"""Pooled subjects trained and scored block by block: the way to the scores of a search that never holds all samples in memory."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain as joined
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed
from dask.utils import format_bytes
from numpy.typing import NDArray

from daskdecode.engine.design import Design, TrainingSet, training_sets
from daskdecode.engine.plan import memory_budget
from daskdecode.engine.registry import model_of
from daskdecode.engine.workers import check_workers_have, n_threads_of_all, n_threads_of_one
from daskdecode.errors import DecodingError, MemoryBudgetError
from daskdecode.models.decoder import Decoder
from daskdecode.models.estimators import (
    build_and_candidates,
    check_scorer,
    check_screening,
    resolve_estimator,
    resolve_scorer,
    resolve_screening,
)
from daskdecode.models.record import Record, digest_of
from daskdecode.models.samples import Samples, as_samples
from daskdecode.models.splitters import inner_splits, outer_splits
from daskdecode.tuning.dask_ml import active_get, as_incremental, as_post_fit, is_linear, linear_by_default
from daskdecode.tuning.folds import Scored, part_size
from daskdecode.tuning.pooled.blocks import (
    COPIES,
    Block,
    Look,
    Runs,
    as_decoder,
    blocks_of,
    classes_of,
    f_of_classes,
    groups_of,
    looks,
    runs_of,
)
from daskdecode.tuning.pooled.chains import Lessons, Marks, chain, marks
from daskdecode.tuning.pooled.glm import COPIES_OF_SOLVERS, check_linear, learn_linear

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

_MODELS_OF_A_CHAIN = 32
"""Models that are trained on a block for each time that it is read: then reading takes little beside them."""

_COPIES_OF_MODELS = 3
"""As they were before a block, as they are after it, and on their way."""


@dataclass
class Stream:
    """A search over pooled samples, checked and laid out; nothing is read yet.

    Attributes
    ----------
    decoder : Decoder
    samples : Samples
    classes : ndarray, shape (n_classes,)
    codes : ndarray of int, shape (n_samples,)
        Class of each sample.
    design : Design
    sets : list of TrainingSet
    runs : list of (samples, signals)
    blocks : list of Block
    who : ndarray of int, shape (n_samples,)
        Number of the group of each sample.
    n_passes : int
    random_state : int
    seen : list of Look
        What a pass has seen of each group.
    model_nbytes : int
        Size of the largest model that learns block by block.
    """

    decoder: Decoder
    samples: Samples
    classes: NDArray[Any]
    codes: Ints
    design: Design
    sets: list[TrainingSet]
    runs: Runs
    blocks: list[Block]
    who: Ints
    n_passes: int
    random_state: int
    seen: list[Look] = field(default_factory=list)
    model_nbytes: int = 0

    @classmethod
    def of(
        cls,
        decoder: Any,
        X: Any,
        y: Any,
        groups: Any,
        settings: Sequence[Mapping[str, Any]],
        *,
        nested: bool,
        n_passes: int,
        random_state: int,
        lenient: bool,
    ) -> Stream:
        """Check everything that can be checked without reading samples."""
        build, candidates, scorer = _asked(decoder, settings)
        samples = as_samples(X, y, None, decoder.mask)
        classes, codes = classes_of(samples)
        names = groups_of(X, samples, groups)
        order = outer_splits(decoder.cv, np.asarray(samples.y), names)
        _, who = np.unique(names, return_inverse=True)
        for number, (train, test) in enumerate(order):
            _check_whole(f"Fold {number}", names, train, test)
        inner = None
        if nested and len(candidates) > 1:
            inner = [inner_splits(decoder.cv, train, np.asarray(samples.y), names) for train, _ in order]
            for train, test in joined(*inner):
                _check_whole("A fold inside a training set", names, train, test)
        question = decoder._question(samples)
        design = Design(
            classes=codes,
            targets=question.targets,
            outer=order,
            inner=inner,
            candidates=candidates,
            build=build,
            scorer=scorer,
            screening=resolve_screening(decoder.screening_percentile, decoder.screening_n_features, samples.grid, samples.x.shape[1]),
            voxel_order=samples.voxel_order,
        )
        runs = runs_of(samples, names, decoder.standardize)
        who = who.astype(np.intp)
        blocks = blocks_of(runs, codes, who, random_state)
        found = cls(decoder, samples, classes, codes, design, training_sets(design), runs, blocks, who, n_passes, random_state)
        found._check(settings, lenient=lenient)
        return found

    @property
    def told(self) -> str:
        """Digest of what is held out whole."""
        return digest_of([self.who])

    # ------------------------------------------------------------------------------------------------------------- checks

    @property
    def _linear(self) -> bool:
        """Whether solvers pass over the blocks, again and again; else models learn from one block after another."""
        return is_linear(self.design.build(10, 20))

    @property
    def _n_kept(self) -> int:
        n_voxels = int(self.samples.x.shape[1])
        return n_voxels if self.design.screening is None else self.design.screening.n_kept(n_voxels)

    @property
    def _room(self) -> int:
        """Bytes that a thread may take for models: what the budget leaves beside blocks."""
        budget, n_threads = memory_budget(self.decoder.memory_budget), n_threads_of_one()
        block = max(_nbytes(b) for b in self.blocks)
        copies = COPIES_OF_SOLVERS if self._linear else COPIES
        room = budget // n_threads - copies * block
        if room <= 0:
            raise MemoryBudgetError(
                f"A process needs {format_bytes(copies * block * n_threads)}: {copies} copies of a block of {format_bytes(block)} for each "
                f"of its {n_threads} threads. It may take {format_bytes(budget)}. Give it more memory or fewer threads, or apply a mask."
            )
        return int(room)

    def _check(self, settings: Sequence[Mapping[str, Any]], *, lenient: bool) -> None:
        budget, room = memory_budget(self.decoder.memory_budget), self._room
        sums = 8 * (self.classes.size + 1) * int(self.samples.x.shape[1]) * int(self.who.max() + 1)
        if self.design.screening is not None and sums > budget:
            raise MemoryBudgetError(
                f"Screening keeps sums of {self.who.max() + 1} groups, {format_bytes(sums)}, and may take {format_bytes(budget)}. Apply a "
                "mask, or give screening_percentile=None."
            )
        if self._linear:
            if self.n_passes != 1:
                raise DecodingError("n_passes= is for estimators with partial_fit; a solver makes as many passes as max_iter lets it.")
            candidates = [self.design.build(10, 20, **c) for c in self.design.candidates]
            check_linear(self.design.build(10, 20), settings, candidates, self._n_kept, budget)
            return
        self.model_nbytes = self._size_of_models(lenient=lenient)
        if _COPIES_OF_MODELS * self.model_nbytes > room:
            raise MemoryBudgetError(
                f"A model of {format_bytes(self.model_nbytes)}, {_COPIES_OF_MODELS} times, does not fit into the {format_bytes(room)} that "
                "a thread may take beside its blocks. Keep fewer voxels (screening_n_features), or give more memory."
            )

    def _size_of_models(self, *, lenient: bool) -> int:
        """Bytes of the largest model, by training each setting on a few random numbers: what they refuse is then known before any work."""
        n, rng = 4 * self.classes.size, np.random.default_rng(0)
        x = rng.standard_normal((n, self._n_kept)).astype(self.samples.x.dtype if self.samples.x.dtype.kind == "f" else np.float32)
        y, sizes = np.resize(self.classes, n), [0]
        for setting in self.design.candidates:
            model = self.design.build(10, 20, **setting)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    sizes.append(len(pickle.dumps(model.partial_fit(x, y, classes=self.classes))))
            except Exception as error:
                if not lenient:
                    raise DecodingError(f"{type(model).__name__} refuses to learn with {dict(setting)}: {error}") from error
        return max(sizes)

    # -------------------------------------------------------------------------------------------------------------- passes

    def look(self, *, hashing: bool) -> int:
        """Read every run once, and keep what screening needs of each group; returns the hash of all values, 0 where none is asked."""
        parts = [[run for run in self.runs if self.who[run[0][0]] == g] for g in range(int(self.who.max()) + 1)]
        tasks = looks(parts, self.codes, self.classes.size, summing=self.design.screening is not None, hashing=hashing)
        self.seen = list(dask.compute(*tasks, scheduler=active_get()))
        return sum(look.hashed for look in self.seen) % 2**64

    def columns_of(self, train: Ints) -> Ints | None:
        """Voxels that a training set keeps; None: all. Its sums are those of its groups."""
        if self.design.screening is None:
            return None
        if not self.seen:
            self.look(hashing=False)
        total = np.sum([self.seen[g].sums for g in np.unique(self.who[train])], axis=0)
        counts = np.bincount(self.codes[train], minlength=self.classes.size)
        return np.flatnonzero(self.design.screening.keep(f_of_classes(total, counts)))

    def score(self, *, error_score: float | str, record: Record | None, progress: Callable[[int, int], None] | None) -> Scored:
        """Train every setting on every training set, and score it on its test sets; see :func:`daskdecode.tuning.folds.score_settings`."""
        n_settings = len(self.design.candidates)
        found = Scored.none_yet(len(self.sets), 1, n_settings, max(len(s.tests) for s in self.sets))
        if record is not None and record.arrays:
            found = Scored(**record.arrays)
        failed = float(error_score) if error_score != "raise" and np.isfinite(float(error_score)) else -np.inf
        n_at_once = n_threads_of_all() * self._n_of_a_chain
        size = 1 if self._linear else max(1, n_at_once // n_settings)
        if record is not None:
            size = min(size, part_size(len(self.sets), n_settings))
        tasks = [dask.delayed(block, traverse=False) for block in self.blocks]
        while (done := found.n_done) < len(self.sets):
            numbers = range(done, min(done + size, len(self.sets)))
            lessons = self._lessons([self.sets[n] for n in numbers], lenient=error_score != "raise")
            every = [(s, k) for s in range(len(numbers)) for k in range(n_settings)]
            rounds = [self._marks(lessons, some, tasks) for some in (every[i : i + n_at_once] for i in range(0, len(every), n_at_once))]
            found = _with(found, numbers, _joined(rounds), n_settings, failed)
            if record is not None:
                record.keep(**vars(found))
            if progress is not None:
                progress(found.n_done, len(self.sets))
        return found

    def refit(self, setting: Mapping[str, Any]) -> tuple[Any, Decoder | None]:
        """Train a setting on all samples: dask-ml's Incremental or ParallelPostFit, and a decoder where the model has weights."""
        every = np.arange(self.who.size)
        lessons = self._lessons([TrainingSet(every, (), outer=False)], lenient=False)
        lessons.models = [(0, dict(setting))]
        (learnt,) = dask.compute(
            self._learn(lessons, [dask.delayed(block, traverse=False) for block in self.blocks]), scheduler=active_get()
        )
        (model,) = learnt.models
        wrapped = as_post_fit(model) if self._linear else as_incremental(model, self.design.build(10, 20, **setting))
        return wrapped, as_decoder(self.decoder, model, lessons.columns[0], self.samples, self.classes)

    @property
    def _n_of_a_chain(self) -> int:
        if self._linear:
            return len(self.design.candidates)
        return int(min(_MODELS_OF_A_CHAIN, self._room // (_COPIES_OF_MODELS * max(1, self.model_nbytes))))

    def _lessons(self, sets: Sequence[TrainingSet], *, lenient: bool) -> Lessons:
        n_groups = int(self.who.max()) + 1
        return Lessons(
            _groups_in([s.train for s in sets], self.who, n_groups),
            [_groups_in(s.tests, self.who, n_groups) for s in sets],
            [self.columns_of(s.train) for s in sets],
            [],
            build=self.design.build,
            classes=self.classes,
            scorer=self.design.scorer,
            lenient=lenient,
        )

    def _learn(self, lessons: Lessons, tasks: Sequence[Delayed]) -> Delayed:
        if self._linear:
            return learn_linear(lessons, self.blocks)
        orders = [np.arange(len(self.blocks))]
        orders += [np.random.default_rng([self.random_state, 2, n]).permutation(len(self.blocks)) for n in range(1, self.n_passes)]
        return chain(lessons, self.blocks, tasks, [order.tolist() for order in orders])

    def _marks(self, lessons: Lessons, models: list[tuple[int, int]], tasks: Sequence[Delayed]) -> Marks:
        """Deal models out to a chain for each thread."""
        n_chains = 1 if self._linear else min(n_threads_of_all(), len(models))
        parts = [lessons.having([(s, self.design.candidates[k]) for s, k in part.tolist()]) for part in np.array_split(models, n_chains)]
        found = dask.compute(*(marks(part, self._learn(part, tasks), self.blocks, tasks) for part in parts), scheduler=active_get())
        return _joined(found)


def _groups_in(parts: Sequence[Ints], who: Ints, n_groups: int) -> Bools:
    """Mark the groups of which parts of the samples consist, (n_parts, n_groups)."""
    found = np.zeros((len(parts), n_groups), dtype=bool)
    for row, part in zip(found, parts, strict=True):
        row[who[part]] = True
    return found


def _nbytes(block: Block) -> int:
    return sum(int(run.nbytes) for run in block.recipe.runs)


def _joined(parts: Sequence[Marks]) -> Marks:
    """One after another; scores are as wide as those of the training set with the most test sets, which not every part has."""
    width = max(part.scores.shape[1] for part in parts)
    scores = [np.pad(part.scores, ((0, 0), (0, width - part.scores.shape[1])), constant_values=np.nan) for part in parts]
    rest = (np.concatenate([getattr(part, name) for part in parts]) for name in ("failed", "fit_s", "score_s"))
    return Marks(np.concatenate(scores), *rest)


def _with(found: Scored, numbers: range, these: Marks, n_settings: int, failed: float) -> Scored:
    """Add what training sets scored, whose models come set by set."""
    at = slice(numbers.start, numbers.stop)
    wrong = these.failed.reshape(len(numbers), n_settings)
    scores = these.scores.reshape(len(numbers), n_settings, -1)
    found.scores[at, 0][:, :, : scores.shape[2]] = np.where(np.isneginf(scores), failed, scores)
    found.failed[at, 0] = wrong
    times = [
        np.stack([t.mean(axis=0), t.std(axis=0)], axis=1)[None] for t in (s.reshape(wrong.shape) for s in (these.fit_s, these.score_s))
    ]
    return Scored(
        found.scores,
        found.failed,
        np.concatenate([found.fit_time_s, times[0]]),
        np.concatenate([found.score_time_s, times[1]]),
        np.append(found.n_in_batch, len(numbers)),
        np.append(found.n_unconverged, 0),
    )


# ------------------------------------------------------------------------------------------------------------------ what is asked


def _asked(decoder: Any, settings: Sequence[Mapping[str, Any]]) -> tuple[Callable[..., Any], list[dict[str, Any]], Callable[..., float]]:
    """The estimator's builder, the settings and the scorer, checked."""
    if not isinstance(decoder, Decoder):
        raise DecodingError(
            f"route='stream' takes a daskdecode.Decoder, which tells classes apart; found {type(decoder).__name__}. To search with values "
            "for labels, leave out route='stream': samples are then held in memory."
        )
    if decoder.standardize not in ("zscore_run", None):
        raise DecodingError(
            f"route='stream' reads run by run, and standardize={decoder.standardize!r} needs more than a run at a time: use "
            "standardize='zscore_run', or None."
        )
    if decoder.confounds is not None:
        raise DecodingError("route='stream' takes no confounds: regress them out of each subject first (daskdecode.regress_out).")
    check_screening(decoder.screening_percentile, decoder.screening_n_features)
    linear = is_linear(decoder.estimator) or decoder.estimator == "logistic"
    if linear:
        own = decoder.estimator if is_linear(decoder.estimator) else linear_by_default()
        model = model_of(own)
    else:
        model = resolve_estimator(decoder.estimator, "classifier")
    build, candidates = build_and_candidates(model, [{k: [v] for k, v in s.items()} for s in settings], decoder.estimator_args)
    if not linear and not hasattr(build(10, 20), "partial_fit"):
        raise DecodingError(
            f"route='stream' trains block by block, and {type(build(10, 20)).__name__} has no partial_fit: give an estimator that has, "
            "such as Decoder(SGDClassifier(loss='hinge')), or dask-ml's logistic regression, Decoder('logistic')."
        )
    scorer = resolve_scorer(decoder.scoring, decoder._default_scoring)
    check_scorer(scorer, build(10, 20))
    check_workers_have((build, candidates, scorer), "What is given as estimator, grid or scoring")
    return build, candidates, scorer


def _check_whole(what: str, names: NDArray[Any], train: Ints, test: Ints) -> None:
    """Refuse a fold that has part of a group, or a group on both sides."""
    _, who, size = np.unique(names, return_inverse=True, return_counts=True)
    for part in (train, test):
        count = np.bincount(who[part], minlength=size.size)
        cut = np.flatnonzero((count > 0) & (count < size))
        if cut.size:
            raise DecodingError(
                f"{what} cuts the group {names[who == cut[0]][0]!s}: {count[cut[0]]} of its {size[cut[0]]} samples are on one side. "
                "route='stream' holds out whole groups: give cv='run' (each group once) or a splitter of groups, such as GroupKFold(5)."
            )
