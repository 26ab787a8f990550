"""Which candidate the tuning of each fold chooses: by folds inside its training samples, or by the fold that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daskdecode.engine.design import Design, Split, TrainingSet
from daskdecode.engine.moments import Floats, Ints
from daskdecode.engine.solvers import Fits

Lookup = dict[bytes, tuple[int, TrainingSet]]


@dataclass(frozen=True)
class Choice:
    """The candidates of one outer fold and problem, and which of them was chosen.

    Attributes
    ----------
    fits : Fits
    held_out : ndarray of float64, shape (n_candidates,)
        Scores on the held-out fold.
    pick : int
        What the design's tuning chooses.
    luckiest : int
        What does best on the held-out fold itself.
    """

    fits: Fits
    held_out: Floats
    pick: int
    luckiest: int

    @property
    def score(self) -> float:
        """Score of the chosen candidate on the held-out fold."""
        return float(self.held_out[self.pick])


def choose(design: Design, sets: Sequence[TrainingSet], fits: Sequence[Sequence[Fits]]) -> list[list[Choice]]:
    """Choose a candidate for each outer fold and problem, indexed [fold][problem].

    Parameters
    ----------
    design : Design
    sets : sequence of TrainingSet
    fits : sequence of sequences of Fits
        Indexed [set][problem].
    """
    lookup = {fold.train.tobytes(): (position, fold) for position, fold in enumerate(sets)}
    found: list[list[Choice]] = []
    for f, (train, test) in enumerate(design.outer):
        position, fold = lookup[train.tobytes()]
        found.append([])
        for c, fit in enumerate(fits[position]):
            held_out = fit.scores[:, _position(fold.tests, test)]
            luckiest = _last_best(held_out)
            pick = luckiest if design.inner is None else _first_best(_inner_scores(design.inner[f], lookup, fits, c))
            found[f].append(Choice(fit, held_out, pick, luckiest))
    return found


def _position(tests: Sequence[Ints], test: Ints) -> int:
    return next(i for i, other in enumerate(tests) if np.array_equal(test, other))


def _inner_scores(splits: Sequence[Split], lookup: Lookup, fits: Sequence[Sequence[Fits]], problem: int) -> Floats:
    """Mean score of each candidate over the inner folds where it is defined, shape (n_candidates,); minus infinity where none is."""
    columns = []
    for train, test in splits:
        position, fold = lookup[train.tobytes()]
        columns.append(fits[position][problem].scores[:, _position(fold.tests, test)])
    scores = np.stack(columns, axis=1)
    defined = np.isfinite(scores)
    means = np.where(defined, scores, 0.0).sum(axis=1) / np.maximum(defined.sum(axis=1), 1)
    return np.asarray(np.where(defined.any(axis=1), means, -np.inf))


def _first_best(scores: Floats) -> int:
    """First of the best, as scikit-learn's searches: the strongest regularisation where the grid ascends in C.

    Scores that differ by rounding count as equal: the order in which a score was summed must not choose a model.
    """
    return int(np.argmax(scores >= np.max(scores) - 1e-12))


def _last_best(scores: Floats) -> int:
    """Last of the best, as nilearn's ``score >= best_score``; a score that is not defined never replaces one."""
    best = 0
    for candidate, score in enumerate(scores):
        if score >= scores[best]:
            best = candidate
    return best
