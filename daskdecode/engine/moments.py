"""Class sums of a few cells of samples give the F-test of every training set: ANOVA screening by subtraction.

Samples that no training set tells apart form a *cell* (for leave-one-run-out: one run of one class). Sums over cells, taken in one
pass, add up to the sums of any training set and class, so screening of all folds and all one-against-rest problems costs one product
with X.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from sklearn.feature_selection import SelectKBest, SelectPercentile

from daskdecode.errors import DecodingError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Cells:
    """Groups of samples that every training set takes or leaves together, and that share a class.

    Attributes
    ----------
    of_sample : ndarray of int, shape (n_samples,)
        The cell of each sample.
    first : ndarray of int, shape (n_cells,)
        One sample of each cell: stands for the others where membership is asked.
    counts : ndarray of int, shape (n_cells,)
        Samples in each cell.
    target : ndarray of float64, shape (n_samples,), or None
        What is regressed on, of mean 0: the sums of its products with the data are then taken as well.
    """

    of_sample: Ints
    first: Ints
    counts: Ints
    target: Floats | None = None

    @classmethod
    def of(cls, train_sets: Sequence[Ints], classes: Ints, target: Floats | None = None) -> Cells:
        """Cut the samples into cells.

        Parameters
        ----------
        train_sets : sequence of int arrays
            Sample indices of each training set.
        classes : ndarray of int, shape (n_samples,)
            Class code of each sample; all 0 in a regression.
        target : ndarray of float64, shape (n_samples,), optional
            What is regressed on.
        """
        signature = np.zeros((classes.size, len(train_sets) + 1), dtype=np.int64)
        signature[:, 0] = classes
        for column, train in enumerate(train_sets, start=1):
            signature[train, column] = 1
        _, first, of_sample, counts = np.unique(signature, axis=0, return_index=True, return_inverse=True, return_counts=True)
        # Correlations do not depend on the target's mean; without it fewer digits cancel.
        centred = None if target is None else target - target.mean()
        return cls(of_sample.ravel().astype(np.intp), first.astype(np.intp), counts.astype(np.intp), centred)

    @property
    def n_sums(self) -> int:
        """Kinds of sums of each cell."""
        return 2 if self.target is None else 3

    def within(self, train: Ints) -> Bools:
        """Say which cells lie inside a training set; shape (n_cells,)."""
        inside = np.zeros(self.of_sample.size, dtype=bool)
        inside[train] = True
        return np.asarray(inside[self.first])

    def sums(self, x: NDArray[np.floating]) -> Floats:
        """Sums and sums of squares over each cell, and of products with the target where there is one.

        Parameters
        ----------
        x : ndarray of float, shape (n_samples, n_voxels)

        Returns
        -------
        ndarray of float64, shape (2 or 3, n_cells, n_voxels)
        """
        if self.target is None:
            out = np.empty((2, self.first.size, x.shape[1]))
            _sum_cells(x, self.of_sample, None, out)
        else:
            out = np.empty((3, self.first.size, x.shape[1]))
            _sum_cells(x, self.of_sample, self.target, out)
        return out


@numba.njit(cache=True, nogil=True)
def _sum_cells(x, of_sample, target, out):  # type: ignore[no-untyped-def]
    """Sums over cells in one reading of the data, a few voxels at a time so that their sums stay in the cache."""
    n_samples, n_voxels = x.shape
    width = 8
    sums = np.empty((out.shape[0], out.shape[1], width))
    for start in range(0, n_voxels, width):
        some = min(width, n_voxels - start)
        sums[:] = 0.0
        for i in range(n_samples):
            cell = of_sample[i]
            for j in range(some):
                value = np.float64(x[i, start + j])
                sums[0, cell, j] += value
                sums[1, cell, j] += value * value
                if target is not None:
                    sums[2, cell, j] += value * target[i]
        out[:, :, start : start + some] = sums[:, :, :some]


FScores = Callable[[Floats, Cells, Ints], Floats]
"""``f_scores(sums, cells, train) -> (n_problems, n_voxels)``: a test of every voxel from the sums of :meth:`Cells.sums`."""


def f_statistic(total: Floats, positive: Floats, squares: Floats, n_total: int, n_positive: int) -> Floats:
    """One-way F-test of one class against the rest, from sums.

    ``F = [SS_between / 1] / [SS_within / (n - 2)]`` with ``SS_between = s1^2/n1 + s0^2/n0 - s^2/n``, arranged as in
    :func:`sklearn.feature_selection.f_oneway` so that rounding agrees.

    Parameters
    ----------
    total, positive, squares : ndarray of float64, shape (n_voxels,)
        Sum over all training samples, over those of the class, and sum of squares over all.
    n_total, n_positive : int
        The numbers of those samples.

    Returns
    -------
    ndarray of float64, shape (n_voxels,)
        NaN for a voxel that is constant over the training samples.
    """
    negative = total - positive
    n_negative = n_total - n_positive
    correction = np.square(total) / n_total
    between = np.square(negative) / n_negative + np.square(positive) / n_positive - correction
    power = squares - correction
    within = power - between
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(is_rounding(power, squares, n_total), np.nan, between / (within / (n_total - 2)))


def is_rounding(power: Floats, squares: Floats, n: float | Floats) -> Bools:
    """Say which sums of squared deviations are only what rounding left of sums of squares: of a constant voxel, and could be anything."""
    return np.asarray(power <= n * np.finfo(np.float64).eps * squares)


@dataclass(frozen=True)
class Screening:
    """How many voxels each fold keeps: the best ``percentile`` per cent, or the best ``n_features``.

    Ties and the rounding of the percentile are scikit-learn's (:class:`sklearn.feature_selection.SelectPercentile`, ``SelectKBest``).
    """

    percentile: float | None = None
    n_features: int | None = None

    def n_kept(self, n_voxels: int) -> int:
        """Count the voxels kept out of ``n_voxels`` (without ties and constant voxels)."""
        if self.n_features is not None:
            return min(self.n_features, n_voxels)
        return max(1, int(n_voxels * (self.percentile or 100) / 100))

    def keep(self, scores: Floats) -> Bools:
        """Mark the voxels with the highest scores; shape (n_voxels,)."""
        if not np.isfinite(scores).any():
            raise DecodingError(
                "Screening found no voxel that varies over a training set: every voxel is constant. Check the mask and the data."
            )
        chosen: SelectKBest | SelectPercentile
        if self.n_features is not None:
            chosen = SelectKBest(lambda _x, _y: scores, k=self.n_kept(scores.size))
        else:
            # A voxel that separates perfectly has an infinite F, next to which no percentile can be interpolated: a large number
            # ranks alike.
            finite = np.minimum(scores, np.finfo(np.float64).max / 4)
            chosen = SelectPercentile(lambda _x, _y: finite, percentile=self.percentile)
        # The selector only asks the data for their number of columns: the scores are already known.
        chosen.fit(np.zeros((2, scores.size), dtype=np.float32), [0, 1])
        return np.asarray(chosen.get_support(), dtype=bool)


def class_scores(sums: Floats, cells: Cells, train: Ints, positive: Bools) -> Floats:
    """F-test of every voxel for one training set and each class against the rest.

    Parameters
    ----------
    sums : ndarray of float64, shape (2, n_cells, n_voxels)
        What :meth:`Cells.sums` gave for all voxels.
    cells : Cells
    train : ndarray of int
        Sample indices of the training set.
    positive : ndarray of bool, shape (n_classes, n_samples)
        The samples of each class that is set against the rest.

    Returns
    -------
    ndarray of float64, shape (n_classes, n_voxels)
    """
    inside = cells.within(train)
    of_class = inside & positive[:, cells.first]
    # Rows that pick cells: one product reads the sums once for all classes.
    total, *positives = np.vstack([inside, of_class]).astype(np.float64) @ sums[0]
    squares = inside.astype(np.float64) @ sums[1]
    n_total = int(cells.counts[inside].sum())
    n_positive = (of_class @ cells.counts).tolist()
    return np.stack([f_statistic(total, p, squares, n_total, n) for p, n in zip(positives, n_positive, strict=True)])


def regression_scores(sums: Floats, cells: Cells, train: Ints) -> Floats:
    """F-test of the correlation of every voxel with the target, for one training set.

    ``F = r^2 / (1 - r^2) * (n - 2)``, as :func:`sklearn.feature_selection.f_regression`.

    Parameters
    ----------
    sums : ndarray of float64, shape (3, n_cells, n_voxels)
        What :meth:`Cells.sums` gave for all voxels.
    cells : Cells
        With a target.
    train : ndarray of int
        Sample indices of the training set.

    Returns
    -------
    ndarray of float64, shape (n_voxels,)
        NaN for a voxel that is constant over the training samples.
    """
    assert cells.target is not None
    inside = cells.within(train)
    total, squares, products = inside.astype(np.float64) @ sums
    y = cells.target[train]
    power = squares - np.square(total) / train.size
    power = np.where(is_rounding(power, squares, train.size), 0.0, power)
    with np.errstate(divide="ignore", invalid="ignore"):
        norms = np.sqrt(power) * np.linalg.norm(y - y.mean())
        r_squared = np.minimum(np.square((products - y.mean() * total) / norms), 1.0)
        scores = np.minimum(r_squared / (1 - r_squared) * (train.size - 2), np.finfo(np.float64).max)
    # A perfect correlation has an infinite F: the largest number keeps it first, as in scikit-learn.
    return np.asarray(np.where(power > 0, scores, np.nan))
