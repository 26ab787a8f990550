"""Scores of every training set, problem and setting, spread by dask-ml."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import dask
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from daskdecode.engine.coordinate_descent import can_solve
from daskdecode.engine.crossval import screen_all
from daskdecode.engine.design import Design, TrainingSet
from daskdecode.engine.plan import Plan
from daskdecode.engine.rotation import Factor
from daskdecode.engine.sight import Viewers, sights
from daskdecode.engine.solvers import OF_FITS
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.engine.workers import active_client, n_threads_of_all
from daskdecode.models.record import Record
from daskdecode.quiet import quiet
from daskdecode.tuning.dask_ml import SettingsSearch
from daskdecode.tuning.table import Form, HeldOut, Table, searched, unconverged

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


SHARES = 20
"""Parts of a search of which something may be killed, each safe once it ends: what a kill loses is at most one of them."""

_FITS_OF_A_THREAD = 4
"""Fits of a part for each thread, at least: threads wait for the last ones of a part, which should not be often."""


@dataclass
class Scored:
    """What the settings scored; S training sets, C problems, K settings, at most T test sets a training set, B batches.

    Attributes
    ----------
    scores : ndarray of float64, shape (S, C, K, T)
        NaN where a score is not defined, there is no such test set, or it is still to be worked out; where the fit failed what was
        asked for, minus infinity for NaN.
    failed : ndarray of bool, shape (S, C, K)
    fit_time_s, score_time_s : ndarray of float64, shape (B, K, 2)
        Mean and standard deviation over the training sets and problems of each batch.
    n_in_batch : ndarray of int, shape (B,)
        Training sets and problems of each batch, in order: problem by problem.
    n_unconverged : ndarray of int, shape (B,)
    """

    scores: Floats
    failed: Bools
    fit_time_s: Floats
    score_time_s: Floats
    n_in_batch: Ints
    n_unconverged: Ints

    @classmethod
    def none_yet(cls, n_sets: int, n_problems: int, n_settings: int, n_tests: int) -> Self:
        """Nothing is scored."""
        scores = np.full((n_sets, n_problems, n_settings, n_tests), np.nan)
        times, counts = np.empty((0, n_settings, 2)), np.empty(0, dtype=np.intp)
        return cls(scores, np.zeros(scores.shape[:3], dtype=bool), times, times, counts, counts)

    @property
    def n_done(self) -> int:
        """Training sets and problems that are scored."""
        return int(self.n_in_batch.sum())

    def add(self, results: dict[str, Any], batch: Sequence[tuple[int, int]], failed: float) -> None:
        """Put what dask-ml found for a batch where it belongs; fits that failed score ``failed``."""
        for t in range(self.scores.shape[3]):
            for position, (s, c) in enumerate(batch):
                name = f"split{position}_test_test{t}"
                if name in results:
                    found = np.asarray(results[name])
                    self.failed[s, c] |= np.isneginf(found)
                    self.scores[s, c, :, t] = np.where(np.isneginf(found), failed, found)
        fit_time, score_time = (np.stack([results[f"{kind}_{n}"] for kind in ("mean", "std")], axis=1) for n in ("fit_time", "score_time"))
        self.fit_time_s = np.concatenate([self.fit_time_s, fit_time[None]])
        self.score_time_s = np.concatenate([self.score_time_s, score_time[None]])
        stopped = np.stack([results[f"split{position}_test_unconverged"] for position in range(len(batch))])
        self.n_in_batch = np.append(self.n_in_batch, len(batch))
        self.n_unconverged = np.append(self.n_unconverged, int(stopped[np.isfinite(stopped)].sum()))


def score_settings(
    blocks: VoxelBlocks,
    design: Design,
    sets: Sequence[TrainingSet],
    plan: Plan,
    *,
    error_score: float | str = "raise",
    record: Record | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Fit every setting on every training set and problem, and score it on its test sets.

    Parameters
    ----------
    blocks : VoxelBlocks
        Scaled data, (n_samples, n_voxels).
    design : Design
    sets : sequence of TrainingSet
        See :func:`daskdecode.engine.crossval.training_sets`.
    plan : Plan
    error_score : "raise" or float
        What a fit that fails scores; NaN comes back as minus infinity, which ranks last and is told from a score that is not defined.
    record : Record, optional
        What is scored already, and where it is kept as it comes.
    progress : callable, optional
        Called with (problems done, problems in all) after each batch.

    Returns
    -------
    Scored

    Notes
    -----
    Eager. One graph a batch: what its training sets see is worked out, gathered to one object and sent once to each worker that fits. With
    a record, or on a cluster, a batch is cut into parts of their own graphs, which share that object; scores are safe once their part ends.
    After a kill the object is worked out again, for what it was when nothing was killed, so that scores are the same to the bit.
    Memory: ``plan.batch`` Gram matrices a worker, or one copy of the selected voxels.
    """
    n_problems, n_settings = len(design.targets), len(design.candidates)
    every = [(s, c) for c in range(n_problems) for s in range(len(sets))]
    if record is not None and record.arrays:
        found = Scored(**record.arrays)
    else:
        found = Scored.none_yet(len(sets), n_problems, n_settings, max(len(s.tests) for s in sets))
    if found.n_done == len(every):
        return found
    masks = None
    if design.screening is not None:
        masks, _ = screen_all(blocks, design, design.screening, sets, None)
    raised: float | str = "raise" if error_score == "raise" else -np.inf
    failed = float(error_score) if error_score != "raise" and np.isfinite(float(error_score)) else -np.inf
    size = _batch_size(design, plan, masks, len(every))
    # Scores that are still on workers are lost with them.
    in_parts = record is not None or active_client() is not None
    part = min(size, part_size(len(every), n_settings)) if in_parts else size
    for start in range(found.n_done - found.n_done % size, len(every), size):
        batch = every[start : start + size]
        chosen = None if masks is None else np.stack([masks[s, c] for s, c in batch])
        looked_up = _Batch(blocks, Viewers(design, sets, batch, chosen), plan)
        if part < len(batch):
            looked_up.hold()
        while (done := found.n_done) < start + len(batch):
            now = every[done : min(done + part, start + len(batch))]
            found.add(looked_up.search(now, raised), now, failed)
            if record is not None:
                record.keep(**vars(found))
            if progress is not None:
                progress(found.n_done, len(every))
    return found


def part_size(n_every: int, n_settings: int) -> int:
    """How many training sets and problems are scored before they are kept."""
    return max(-(-n_every // SHARES), -(-_FITS_OF_A_THREAD * n_threads_of_all() // n_settings))


def _batch_size(design: Design, plan: Plan, masks: Bools | None, n_every: int) -> int:
    """How many training sets and problems are looked up in one table."""
    if masks is None and design.within is None:
        return n_every  # all see the same
    if plan.route == "gram":
        return max(1, plan.batch // 2)  # the plan counts triangles, and the table holds squares
    w = plan.workload
    if design.within is None:
        return plan.batch
    # Each training set has prepared the voxels in its own way: a copy each, in a quarter of the memory.
    return max(1, min(plan.batch, plan.memory_budget // (4 * 8 * w.n_samples * w.n_kept)))


def _form(design: Design, sets: Sequence[TrainingSet], plan: Plan) -> Form:
    if plan.route != "gram":
        return "columns"
    n_train, n_voxels = sets[0].train.size, plan.workload.n_kept
    return "gram" if all(can_solve(design.build(n_train, n_voxels, **params)) for params in design.candidates) else "factor"


class _Batch:
    """Training sets and problems that are looked up in one table, all of them or some at a time.

    Attributes
    ----------
    table : Delayed
        A :class:`Table`.
    """

    def __init__(self, blocks: VoxelBlocks, viewers: Viewers, plan: Plan) -> None:
        self.viewers, self.n_samples, self.n_voxels = viewers, blocks.shape[0], plan.workload.n_kept
        design, sets, pairs = viewers.design, viewers.sets, viewers.pairs
        self.form = _form(design, sets, plan)
        (seen,) = sights(blocks, [viewers], plan)
        # Without screening all problems of a training set share what it sees.
        first = {s: position for position, s in enumerate(dict.fromkeys(s for s, _ in pairs))}
        own = seen if viewers.masks is not None else [seen[first[s]] for s, _ in pairs]
        data = [s.data for s in own]
        if self.form == "factor":
            factor = dask.delayed(_factor, pure=False)
            data = [factor(gram, sets[s].train) for gram, (s, _) in zip(data, pairs, strict=True)]
        tests = [self._tests(pair) for pair in pairs]
        columns = [s.columns for s in own]
        make = dask.delayed(Table, pure=False)
        self.table: Delayed = make([self._train(p) for p in pairs], tests, data, columns, self.n_samples, len(design.targets))

    def hold(self) -> None:
        """Work the table out once, for several searches."""
        (self.table,) = dask.persist(self.table)

    def search(self, pairs: Sequence[tuple[int, int]], error_score: float | str) -> dict[str, Any]:
        """One search of dask-ml, a split for each pair; its results."""
        design, tests = self.viewers.design, [self._tests(pair) for pair in pairs]
        failed = None if error_score == "raise" else float(error_score)
        scorers = {f"test{t}": HeldOut(design.scorer, t, failed) for t in range(max(map(len, tests)))}
        search = SettingsSearch(
            searched(design.build, self.form, self.n_voxels),
            design.candidates,
            scoring={**scorers, "unconverged": unconverged},
            cv=[(self._train(pair), np.unique(np.concatenate(tested))) for pair, tested in zip(pairs, tests, strict=True)],
            error_score=error_score,
        )
        with quiet(*OF_FITS):
            search.fit(self.table, np.concatenate(list(design.targets)), **_weights(design, search.estimator))
        return dict(search.cv_results_)

    def _train(self, pair: tuple[int, int]) -> Ints:
        """Rows of the table that a training set and problem stand for."""
        return self._rows(pair, self.viewers.sets[pair[0]].train)

    def _tests(self, pair: tuple[int, int]) -> tuple[Ints, ...]:
        return tuple(self._rows(pair, test) for test in self.viewers.sets[pair[0]].tests)

    def _rows(self, pair: tuple[int, int], samples: Ints) -> Ints:
        return pair[1] * self.n_samples + samples


def _weights(design: Design, estimator: Any) -> dict[str, Floats]:
    """Argument of the estimator's ``fit`` that takes the weight of each row, which dask-ml splits like the rows."""
    if design.sample_weight is None:
        return {}
    name = f"{estimator.steps[-1][0]}__sample_weight" if isinstance(estimator, Pipeline) else "sample_weight"
    return {name: np.tile(design.sample_weight, len(design.targets))}


def _factor(gram: Floats, train: Ints) -> Floats:
    return Factor.of(gram, train).z
