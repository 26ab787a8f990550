"""The best voxels of many selections, from scores that come block by block: only those that may still be chosen are kept.

A selection of the best k of p voxels needs, of all blocks seen so far, their k best (and what lies next to the threshold). So screening
a brain takes memory in proportion to the voxels that are selected, not to sums or scores of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daskdecode.engine.moments import Bools, Cells, Floats, FScores, Ints, Screening

NBYTES = 12
"""Of a candidate: its score and its position."""


def n_candidates(screening: Screening, n_voxels: int) -> int:
    """Count the best voxels that decide a selection: those chosen, and two between which the threshold of a percentile may lie."""
    return min(screening.n_kept(n_voxels) + 2, n_voxels)


def sums_are_less(n_selections: int, n_kept: int, n_sums: int, n_voxels: int) -> bool:
    """Say whether sums of cells take less memory than candidates: where folds within folds make many selections of few cells.

    ``n_sums`` are numbers a voxel: of all cells, and all kinds of sums.
    """
    return 8 * n_sums * n_voxels < 2 * NBYTES * n_selections * n_kept


@dataclass(frozen=True)
class Candidates:
    """The best voxels of each selection among the blocks seen so far.

    Attributes
    ----------
    scores : ndarray of float64, shape (n_selections, n)
        NaN (a constant voxel) counts as the smallest number, as in scikit-learn.
    voxels : ndarray of uint32, shape (n_selections, n)
        Positions in canonical order.
    most : int
        How many voxels decide a selection.
    last : bool
        Which of equal voxels win: the last (``SelectKBest``) or the first (``SelectPercentile``).
    """

    scores: Floats
    voxels: NDArray[np.uint32]
    most: int
    last: bool

    def __add__(self, other: Candidates) -> Candidates:
        """Join two sets of blocks."""
        n = self.scores.shape[1] + other.scores.shape[1]
        kept = min(n, self.most)
        scores = np.empty((len(self.scores), kept))
        voxels = np.empty((len(self.scores), kept), dtype=np.uint32)
        for s in range(len(self.scores)):
            both = np.concatenate([self.scores[s], other.scores[s]])
            where = np.concatenate([self.voxels[s], other.voxels[s]])
            best = self._best(both, where)
            scores[s], voxels[s] = both[best], where[best]
        return Candidates(scores, voxels, self.most, self.last)

    def _best(self, scores: Floats, voxels: NDArray[np.uint32]) -> Bools | slice:
        """Mark those that may still be chosen."""
        surplus = scores.size - self.most
        if surplus <= 0:
            return slice(None)
        ranks = np.nan_to_num(scores, nan=np.finfo(np.float64).min, posinf=np.inf, neginf=-np.inf)
        threshold = np.partition(ranks, surplus)[surplus]
        best: Bools = ranks > threshold
        ties = np.flatnonzero(ranks == threshold)
        ties = ties[np.argsort(voxels[ties])]
        n = self.most - int(best.sum())
        best[ties[ties.size - n :] if self.last else ties[:n]] = True
        return best

    def choose(self, screening: Screening, selection: int, n_voxels: int) -> Bools:
        """Mark the voxels of a selection, in canonical order; shape (n_voxels,).

        What is no candidate counts as constant: that changes neither a threshold nor what lies above it.
        """
        scores = np.full(n_voxels, np.nan)
        scores[self.voxels[selection]] = self.scores[selection]
        return screening.keep(scores)


@dataclass(frozen=True)
class Rank:
    """Scores of a block for every training set and problem, as candidates.

    Attributes
    ----------
    scores : callable
        ``scores(x) -> (n_sets, n_problems, n_voxels)``, for a block (n_samples, n_voxels).
    most, last
        See :class:`Candidates`.
    """

    scores: Callable[[NDArray[np.floating]], Floats]
    most: int
    last: bool

    def __call__(self, x: NDArray[np.floating], positions: Ints) -> Candidates:
        """Take a block and the positions of its voxels in canonical order.

        Selections are numbered training set by training set, then problem by problem.
        """
        scores = self.scores(x).reshape(-1, x.shape[1])
        voxels = np.broadcast_to(positions.astype(np.uint32), scores.shape)
        nothing = Candidates(scores[:, :0], voxels[:, :0], self.most, self.last)
        return nothing + Candidates(scores, voxels, self.most, self.last)


def cell_scores(x: NDArray[np.floating], trains: Sequence[Ints], cells: Cells, f_scores: FScores) -> Floats:
    """F of every voxel, from sums of cells.

    Parameters
    ----------
    x : ndarray of float, shape (n_samples, n_voxels)
    trains : sequence of int arrays
        Sample indices of each training set.
    cells : Cells
        Of these, by class.
    f_scores : callable
        ``f_scores(sums, cells, train) -> (n_problems, n_voxels)``.

    Returns
    -------
    ndarray of float64, shape (n_sets, n_problems, n_voxels)
    """
    sums = cells.sums(x)
    return np.stack([f_scores(sums, cells, train) for train in trains])
