"""Scores of every training set, problem and setting, spread by dask-ml."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from sklearn.pipeline import Pipeline

from daskdecode.engine.coordinate_descent import can_solve
from daskdecode.engine.crossval import screen_all
from daskdecode.engine.design import Design, TrainingSet
from daskdecode.engine.plan import Plan
from daskdecode.engine.rotation import Factor
from daskdecode.engine.sight import Viewers, sights
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.tuning.dask_ml import SettingsSearch
from daskdecode.tuning.table import Form, HeldOut, Table, searched, unconverged

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass
class Scored:
    """What the settings scored; S training sets, C problems, K settings, at most T test sets a training set.

    Attributes
    ----------
    scores : ndarray of float64, shape (S, C, K, T)
        NaN where a score is not defined or there is no such test set; minus infinity where the fit failed.
    fit_time_s, score_time_s : ndarray of float64, shape (n_batches, K, 2)
        Mean and standard deviation over the training sets and problems of each batch.
    n_in_batch : list of int
    n_unconverged, n_failed : int
    """

    scores: Floats
    fit_time_s: list[Floats] = field(default_factory=list)
    score_time_s: list[Floats] = field(default_factory=list)
    n_in_batch: list[int] = field(default_factory=list)
    n_unconverged: int = 0
    n_failed: int = 0


def score_settings(
    blocks: VoxelBlocks,
    design: Design,
    sets: Sequence[TrainingSet],
    plan: Plan,
    *,
    error_score: float | str = "raise",
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
    progress : callable, optional
        Called with (problems done, problems in all) after each batch.

    Returns
    -------
    Scored

    Notes
    -----
    Eager. One graph a batch: what its training sets see is worked out, gathered to one object and sent once to each worker that fits.
    Memory: ``plan.batch`` Gram matrices a worker, or one copy of the selected voxels.
    """
    masks = None
    if design.screening is not None:
        masks, _ = screen_all(blocks, design, design.screening, sets, None)
    n_problems, n_settings = len(design.targets), len(design.candidates)
    n_tests = max(len(s.tests) for s in sets)
    found = Scored(np.full((len(sets), n_problems, n_settings, n_tests), np.nan))
    every = [(s, c) for c in range(n_problems) for s in range(len(sets))]
    form = _form(design, sets, plan)
    size = _batch_size(design, plan, masks, len(every))
    failed: float | str = "raise" if error_score == "raise" else -np.inf
    for start in range(0, len(every), size):
        batch = every[start : start + size]
        chosen = None if masks is None else np.stack([masks[s, c] for s, c in batch])
        search = _search_batch(blocks, design, sets, batch, chosen, plan, form, failed)
        _collect(found, search.cv_results_, batch)
        if progress is not None:
            progress(start + len(batch), len(every))
    lost = np.isneginf(found.scores)
    found.n_failed = int(lost[..., 0].sum())
    if np.isfinite(float(error_score) if error_score != "raise" else np.nan):
        found.scores[lost] = float(error_score)
    return found


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


def _search_batch(
    blocks: VoxelBlocks,
    design: Design,
    sets: Sequence[TrainingSet],
    batch: Sequence[tuple[int, int]],
    masks: Bools | None,
    plan: Plan,
    form: Form,
    error_score: float | str,
) -> SettingsSearch:
    """One search of dask-ml: a split for each training set and problem of a batch."""
    n_samples, n_problems = blocks.shape[0], len(design.targets)
    trains = [c * n_samples + sets[s].train for s, c in batch]
    tests = [tuple(c * n_samples + test for test in sets[s].tests) for s, c in batch]
    (seen,) = sights(blocks, [Viewers(design, sets, batch, masks)], plan)
    # Without screening all problems of a training set share what it sees.
    first = {s: position for position, s in enumerate(dict.fromkeys(s for s, _ in batch))}
    own = seen if masks is not None else [seen[first[s]] for s, _ in batch]
    data = [s.data for s in own]
    if form == "factor":
        factor = dask.delayed(_factor, pure=False)
        data = [factor(gram, sets[s].train) for gram, (s, _) in zip(data, batch, strict=True)]
    table = dask.delayed(Table, pure=False)(trains, tests, data, [s.columns for s in own], n_samples, n_problems)
    failed = None if error_score == "raise" else float(error_score)
    scorers = {f"test{t}": HeldOut(design.scorer, t, failed) for t in range(max(map(len, tests)))}
    search = SettingsSearch(
        searched(design.build, form, plan.workload.n_kept),
        design.candidates,
        scoring={**scorers, "unconverged": unconverged},
        cv=[(train, np.unique(np.concatenate(tested))) for train, tested in zip(trains, tests, strict=True)],
        error_score=error_score,
    )
    with warnings.catch_warnings():
        # Counted, and told of once.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        return search.fit(table, np.concatenate(list(design.targets)), **_weights(design, search.estimator))


def _weights(design: Design, estimator: Any) -> dict[str, Floats]:
    """Argument of the estimator's ``fit`` that takes the weight of each row, which dask-ml splits like the rows."""
    if design.sample_weight is None:
        return {}
    name = f"{estimator.steps[-1][0]}__sample_weight" if isinstance(estimator, Pipeline) else "sample_weight"
    return {name: np.tile(design.sample_weight, len(design.targets))}


def _factor(gram: Floats, train: Ints) -> Floats:
    return Factor.of(gram, train).z


def _collect(found: Scored, results: dict[str, Any], batch: Sequence[tuple[int, int]]) -> None:
    """Put the scores of a batch where they belong."""
    for t in range(found.scores.shape[3]):
        for position, (s, c) in enumerate(batch):
            name = f"split{position}_test_test{t}"
            if name in results:
                found.scores[s, c, :, t] = results[name]
    for times, name in ((found.fit_time_s, "fit_time"), (found.score_time_s, "score_time")):
        times.append(np.stack([results[f"mean_{name}"], results[f"std_{name}"]], axis=1))
    found.n_in_batch.append(len(batch))
    stopped = np.stack([results[f"split{position}_test_unconverged"] for position in range(len(batch))])
    found.n_unconverged += int(stopped[np.isfinite(stopped)].sum())
