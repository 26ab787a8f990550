"""The question as the engine sees it: targets, folds, candidates, and the training sets that the folds come down to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskdecode.engine.moments import Cells, Floats, Ints, Screening, class_scores, regression_scores
from daskdecode.engine.solvers import Params, Scorer
from daskdecode.engine.within_fold import Lesson, WithinFold

Split = tuple[Ints, Ints]


@dataclass(frozen=True)
class Design:
    """What is to be cross-validated.

    Attributes
    ----------
    classes : ndarray of int, shape (n_samples,), or None
        Class code of each sample; None in a regression.
    targets : ndarray of int or float64, shape (n_classes, n_samples)
        -1 or +1 for each binary problem; what is regressed on, one row.
    outer : sequence of (train, test)
        Folds that are reported.
    inner : sequence of sequences of (train, test), or None
        For each outer fold, the folds inside its training samples that choose hyperparameters. None: the held-out fold chooses.
    candidates : sequence of mappings
        Hyperparameters.
    build : callable
        See :func:`daskdecode.engine.solvers.fit_candidates`.
    scorer : callable
        ``scorer(estimator, X, y) -> float``.
    screening : Screening or None
    voxel_order : ndarray of int, shape (n_voxels,)
        Columns in canonical order: what a solver sees, and how ties are broken, does not depend on the order in storage.
    within : WithinFold, or None
        What every training set learns of voxels and confounds before its models.
    sample_weight : ndarray of float64, shape (n_samples,), or None
        Weights of samples in the fits.
    """

    classes: Ints | None
    targets: NDArray[Any]
    outer: Sequence[Split]
    inner: Sequence[Sequence[Split]] | None
    candidates: Sequence[Params]
    build: Callable[..., Any]
    scorer: Scorer
    screening: Screening | None
    voxel_order: Ints
    within: WithinFold | None = None
    sample_weight: Floats | None = None

    def lessons(self, sets: Sequence[TrainingSet]) -> list[Lesson] | None:
        """What each training set learns of the confounds; None where nothing is learnt before the models."""
        return None if self.within is None else [self.within.learn(s.train) for s in sets]

    def cells(self, train_sets: Sequence[Ints]) -> Cells:
        """Cells of samples whose sums screening needs."""
        if self.classes is None:
            return Cells.of(train_sets, np.zeros(self.targets.shape[1], dtype=np.intp), self.targets[0])
        return Cells.of(train_sets, self.classes)

    def f_scores(self, sums: Floats, cells: Cells, train: Ints) -> Floats:
        """F of every voxel and problem for one training set, shape (n_classes, n_voxels)."""
        if self.classes is None:
            return regression_scores(sums, cells, train)[None]
        return class_scores(sums, cells, train, self.targets > 0)

    def splits(self) -> list[Split]:
        """Every (train, test) pair, outer and inner."""
        return [*self.outer, *(split for fold in self.inner or () for split in fold)]


@dataclass(frozen=True)
class TrainingSet:
    """One training set and everything it is tested on. Pairs of folds share theirs: without runs a and b is without b and a."""

    train: Ints
    tests: tuple[Ints, ...]
    outer: bool


def training_sets(design: Design) -> list[TrainingSet]:
    """Gather the distinct training sets, with the union of their test sets, in order of first appearance."""
    tests: dict[bytes, list[Ints]] = {}
    trains: dict[bytes, Ints] = {}
    for train, test in design.splits():
        key = train.tobytes()
        trains.setdefault(key, train)
        known = tests.setdefault(key, [])
        if not any(np.array_equal(test, other) for other in known):
            known.append(test)
    outer = {train.tobytes() for train, _ in design.outer}
    return [TrainingSet(trains[key], tuple(tests[key]), key in outer) for key in tests]
