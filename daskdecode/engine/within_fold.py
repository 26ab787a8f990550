r"""What a training set learns of the data before any model sees them: a regression on confounds, a mean and a scale of every voxel.

With :math:`\tilde C` the confounds minus their means over the training samples, Q an orthonormal basis of its training rows and
:math:`\tilde C A = Q` there, both steps are linear in the samples and diagonal in the voxels:

.. math::
    Z = T X S^{-1}, \qquad T = I - L R', \qquad L = [\tilde C A, 1], \qquad R = [Q, 1_{train} / n_{train}]

(Q and :math:`1_{train}` are 0 outside the training samples; the last columns are there only where voxels are scaled). So the Gram matrix
that a model needs is :math:`T (X S^{-2} X') T'`, and its weights lead back to the voxels as they are: :math:`w = S^{-2} X' T' a`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk

from daskdecode.engine.fits import fit_on_columns, fit_on_gram
from daskdecode.engine.gram import add_triangle
from daskdecode.engine.moments import Bools, Cells, Floats, FScores, Ints, is_rounding
from daskdecode.engine.solvers import Fits, Problem

VOXELS_AT_ONCE = 4096
"""Voxels that are prepared together: enough for BLAS to be at its best, little memory."""

_REDUNDANT = 1e-8
"""Directions of the confounds smaller than this, relative to the largest, are what rounding leaves of redundant ones."""


@dataclass(frozen=True)
class WithinFold:
    """What every training set is to learn.

    Attributes
    ----------
    scale : bool
        Mean 0 and standard deviation 1 (``ddof=0``) over the training samples; as :class:`sklearn.preprocessing.StandardScaler`.
    confounds : ndarray of float64, shape (n_samples, n_confounds)
        No columns: no regression.
    """

    scale: bool
    confounds: Floats

    def learn(self, train: Ints) -> Lesson:
        """Learn from the samples ``train`` what does not need the voxels: n_train x n_confounds^2 operations."""
        center = self.confounds[train].mean(axis=0)
        # Units of the confounds must not decide which directions are redundant.
        sd = self.confounds.std(axis=0)
        unit = np.where(sd > 0, sd, 1.0)
        centred = (self.confounds - center) / unit
        u, s, vt = np.linalg.svd(centred[train], full_matrices=False)
        kept = s > _REDUNDANT * s.max(initial=0.0)
        to_basis = vt[kept].T / s[kept]
        return Lesson(train, self.scale, u[:, kept], centred @ to_basis, to_basis / unit[:, None], center)


@dataclass(frozen=True)
class Lesson:
    """What one training set learnt of the confounds; r the rank of the regression.

    Attributes
    ----------
    train : ndarray of int, shape (n_train,)
    scale : bool
        Whether voxels are centred and scaled.
    basis : ndarray of float64, shape (n_train, r)
        Q. A direction in which the training samples do not vary is not in it: nothing can be learnt there, and nothing is removed.
    spread : ndarray of float64, shape (n_samples, r)
        Confounds of all samples in the terms of the basis.
    to_basis : ndarray of float64, shape (n_confounds, r)
        A.
    center : ndarray of float64, shape (n_confounds,)
        Means of the confounds.
    """

    train: Ints
    scale: bool
    basis: Floats
    spread: Floats
    to_basis: Floats
    center: Floats

    def along(self, x: Floats) -> Floats:
        """What confounds explain of voxels (n_samples, n_voxels) over the training samples, in terms of the basis; (r, n_voxels)."""
        # Zeros for the other samples cost less than a copy of the training samples.
        right = np.zeros_like(self.spread)
        right[self.train] = self.basis
        return np.asarray(right.T @ x)

    def _sides(self) -> tuple[Floats, Floats]:
        """L and R of ``T = I - L R'``, each (n_samples, r) and one column more where voxels are centred."""
        right = np.zeros_like(self.spread)
        right[self.train] = self.basis
        if not self.scale:
            return self.spread, right
        mean = np.zeros((right.shape[0], 1))
        mean[self.train] = 1 / self.train.size
        return np.hstack([self.spread, np.ones_like(mean)]), np.hstack([right, mean])

    def on_gram(self, gram: Floats) -> Floats:
        """Gram matrix (n_samples, n_samples) of the prepared samples, ``T K T'``."""
        left, right = self._sides()
        along = gram @ right
        crossed = along @ left.T
        return np.asarray(gram - crossed - crossed.T + left @ (right.T @ along) @ left.T)

    def on_samples(self, dual: Floats) -> Floats:
        """Turn weights (.., n_samples) on prepared samples into weights on samples as they are, ``T' a``."""
        left, right = self._sides()
        return np.asarray(dual - (dual @ left) @ right.T)

    def from_gram(self, fits: Fits, gram: Floats) -> Fits:
        """Lead fits on ``on_gram(gram)`` back to samples as they are; what voxels' means add to the intercept is still to come."""
        if fits.weights is None or fits.intercepts is None:
            return fits
        dual = self.on_samples(fits.weights)
        slopes = -(dual @ gram[:, self.train] @ self.basis) @ self.to_basis.T
        return replace(fits, weights=dual, intercepts=fits.intercepts - slopes @ self.center, slopes=slopes)

    def on_columns(self, x: Floats) -> tuple[Floats, Preparation]:
        """Prepare a few voxels, (n_samples, n_columns), and say how."""
        moved, pivot = shifted(x)
        slopes = self.along(moved)
        preparation = Preparation(np.zeros(x.shape[1]), np.ones(x.shape[1]), self.to_basis @ slopes, self.center)
        if not self.scale:
            return x - self.spread @ slopes, preparation
        moved -= self.spread @ slopes
        learnt = moved[self.train]
        mean = learnt.mean(axis=0)
        power = np.square(learnt - mean).sum(axis=0)
        squares = power + self.train.size * np.square(mean) + np.square(slopes).sum(axis=0)
        scale = _scale(power, squares, mean + pivot, self.train.size)
        return (moved - mean) / scale, replace(preparation, mean=mean + pivot, scale=scale)

    def clean_sums(self, sums: Floats, cells: Cells, x: Floats) -> Floats:
        """Sums of :meth:`Cells.sums` as they would be, over the training samples, had the confounds been regressed out of x.

        Squares are right in their total over the training samples only, which is all that an F-test asks for.
        """
        if not self.basis.size:
            return sums
        along = self.along(x)
        indicator = np.zeros((cells.first.size, self.train.size))
        indicator[cells.of_sample[self.train], np.arange(self.train.size)] = 1.0
        cleaned = sums.copy()
        cleaned[0] -= indicator @ self.basis @ along
        cleaned[1, cells.of_sample[self.train[0]]] -= np.square(along).sum(axis=0)
        if cells.target is not None:
            cleaned[2] -= (indicator * cells.target[self.train]) @ self.basis @ along
        return cleaned


@dataclass(frozen=True)
class Preparation:
    """``z = (x - mean - (c - center) slopes) / scale``, for voxels x and confounds c of any samples.

    Attributes
    ----------
    mean, scale : ndarray of float64, shape (n_columns,)
        0 and 1 where voxels are not scaled.
    slopes : ndarray of float64, shape (n_confounds, n_columns)
    center : ndarray of float64, shape (n_confounds,)
    """

    mean: Floats
    scale: Floats
    slopes: Floats
    center: Floats

    def __call__(self, x: Floats, confounds: Floats) -> Floats:
        """Prepare samples, (n_samples, n_columns) and (n_samples, n_confounds)."""
        return np.asarray((x - self.mean - (confounds - self.center) @ self.slopes) / self.scale)

    def back(self, fits: Fits) -> Fits:
        """Lead fits on prepared columns back to the columns as they are."""
        fits = replace(fits, preparation=self)
        if fits.weights is None or fits.intercepts is None:
            return fits
        weights = fits.weights / self.scale
        slopes = -weights @ self.slopes.T
        return replace(fits, weights=weights, intercepts=fits.intercepts - weights @ self.mean - slopes @ self.center, slopes=slopes)


def prepare(lesson: Lesson, data: Floats, *chosen: Bools | None) -> Floats:
    """Gram matrix (n_samples, n_samples), or some of the columns (n_samples, n_columns), as the models of a training set see them."""
    if not chosen:
        return lesson.on_gram(data)
    return lesson.on_columns(data if chosen[0] is None else data[:, chosen[0]])[0]


def fit_on_prepared_gram(gram: Floats, lesson: Lesson, problems: Sequence[Problem], *how: Any) -> list[Fits]:
    """:func:`daskdecode.engine.fits.fit_on_gram` of prepared samples; weights are on samples as they are.

    What the voxels' means add to the intercepts is still to come: it takes the voxels (:func:`weighted_coefficients`).
    """
    return [lesson.from_gram(fits, gram) for fits in fit_on_gram(lesson.on_gram(gram), problems, *how)]


def fit_on_prepared_columns(columns: Floats, chosen: Bools | None, lesson: Lesson, problems: Sequence[Problem], *how: Any) -> list[Fits]:
    """:func:`daskdecode.engine.fits.fit_on_columns` of prepared columns; weights are on columns as they are."""
    z, preparation = lesson.on_columns(columns if chosen is None else columns[:, chosen])
    return [preparation.back(fits) for fits in fit_on_columns(z, None, problems, *how)]


def pieces(n_voxels: int) -> list[slice]:
    """Slices of neighbouring voxels, :data:`VOXELS_AT_ONCE` in each."""
    return [slice(start, min(start + VOXELS_AT_ONCE, n_voxels)) for start in range(0, n_voxels, VOXELS_AT_ONCE)]


def shifted(x: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Move voxels (n_samples, n_voxels) to mean 0, in float64: without it sums of squares of raw signals would lose most of their digits.

    Returns
    -------
    x : ndarray of float64, shape (n_samples, n_voxels)
    pivot : ndarray of float64, shape (n_voxels,)
        What was taken away. A constant voxel becomes exactly 0.
    """
    first = x[0].astype(np.float64)
    moved = x - first
    mean = moved.mean(axis=0)
    moved -= mean
    return np.asarray(moved), first + mean


def means_and_scales(x: Floats, pivot: Floats, lessons: Sequence[Lesson], cells: Cells) -> tuple[Floats, Floats]:
    """Mean and standard deviation of every voxel over every training set, from sums of cells.

    Parameters
    ----------
    x, pivot
        From :func:`shifted`.
    lessons : sequence of Lesson
    cells : Cells
        Of their training sets.

    Returns
    -------
    means, scales : ndarray of float64, shape (n_sets, n_voxels)
        Means of x as it was before it was shifted; the scale of a constant voxel is 1.
    """
    sums = cells.sums(x)
    inside = np.stack([cells.within(lesson.train) for lesson in lessons]).astype(np.float64)
    size = np.array([[lesson.train.size] for lesson in lessons], dtype=np.float64)
    mean, squares = inside @ sums[0] / size, inside @ sums[1]
    power = squares - size * np.square(mean)
    for row, lesson in zip(power, lessons, strict=True):
        if lesson.basis.size:
            row -= np.square(lesson.along(x)).sum(axis=0)
    mean += pivot
    return mean, _scale(power, squares, mean, size)


def _scale(power: Floats, squares: Floats, mean: Floats, n: float | Floats) -> Floats:
    """Standard deviations from sums of squared deviations; 1 where what is left is rounding, by scikit-learn's bound and that of sums."""
    eps = np.finfo(np.float64).eps
    variance = power / n
    constant = (variance <= n * eps * variance + np.square(n * mean * eps)) | is_rounding(power, squares, n)
    return np.sqrt(np.where(constant, 1.0, variance))


def screening_scores(x: NDArray[np.floating], lessons: Sequence[Lesson], cells: Cells, f_scores: FScores) -> Floats:
    """F of every voxel after each training set's regression on confounds; scaling changes no F.

    Parameters
    ----------
    x : ndarray of float, shape (n_samples, n_voxels)
    lessons : sequence of Lesson
    cells : Cells
        Of their training sets, by class.
    f_scores : callable
        ``f_scores(sums, cells, train) -> (n_problems, n_voxels)``.

    Returns
    -------
    ndarray of float64, shape (n_sets, n_problems, n_voxels)
        NaN for a voxel that does not vary over the training samples, or not beyond the confounds.
    """
    parts = [_screening_scores(x[:, few], lessons, cells, f_scores) for few in pieces(x.shape[1])]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _screening_scores(x: NDArray[np.floating], lessons: Sequence[Lesson], cells: Cells, f_scores: FScores) -> Floats:
    moved, _ = shifted(x)
    sums = cells.sums(moved)
    found = []
    for lesson in lessons:
        cleaned = lesson.clean_sums(sums, cells, moved)
        inside = cells.within(lesson.train).astype(np.float64)
        (total, left), squares, n = inside @ cleaned[:2], inside @ sums[1], lesson.train.size
        scores = f_scores(cleaned, cells, lesson.train)
        found.append(np.where(is_rounding(left - np.square(total) / n, squares, n), np.nan, scores))
    return np.stack(found)


def add_weighted_grams(
    grams: Floats,
    parts: Sequence[NDArray[np.floating]],
    masks: Bools | None,
    lessons: Sequence[Lesson],
    cells: Cells,
    which: Sequence[int],
) -> None:
    """Add products of shifted voxels to matrices ``X S^-2 X'``, each with a training set's scales and, maybe, its own voxels; in place.

    Parameters
    ----------
    grams : ndarray of float64, shape (n_sets, n_pairs)
        Packed, as of :func:`daskdecode.engine.gram.add_shared_grams`.
    parts : sequence of ndarray of float, shape (n_samples, n_voxels_of_part)
        Neighbouring voxels.
    masks : ndarray of bool, shape (n_sets, n_voxels), or None
    lessons : sequence of Lesson
    cells : Cells
        Of their training sets.
    which : sequence of int, length n_sets
        Lesson of each set of voxels.

    Notes
    -----
    Memory: four copies of :data:`VOXELS_AT_ONCE` voxels in float64, two numbers a voxel of these and lesson, and one Gram matrix.
    """
    n_samples = parts[0].shape[0]
    gram = np.zeros((n_samples, n_samples))
    start = 0
    for piece in (part[:, few] for part in parts for few in pieces(part.shape[1])):
        x, pivot = shifted(piece)
        _, scales = means_and_scales(x, pivot, lessons, cells)
        rows = np.ascontiguousarray(x.T)
        for s, lesson in enumerate(which):
            chosen = slice(None) if masks is None else np.flatnonzero(masks[s, start : start + piece.shape[1]])
            scaled = rows[chosen] / scales[lesson, chosen][:, None]
            # The transposes are views that Fortran reads without a copy.
            updated = dsyrk(1.0, scaled.T, beta=0.0, c=gram.T, overwrite_c=1)
            assert np.shares_memory(updated, gram)
            add_triangle(gram, grams[s])
        start += piece.shape[1]


def weighted_coefficients(
    x: NDArray[np.floating], lessons: Sequence[Lesson], cells: Cells, dual: Floats, masks: Bools
) -> tuple[Floats, Floats]:
    """Weights of scaled voxels, for the voxels as they are, and what the voxels' means add to the decision.

    Parameters
    ----------
    x : ndarray of float, shape (n_samples, n_voxels)
    lessons : sequence of Lesson, length n_folds
    cells : Cells
        Of their training sets.
    dual : ndarray of float64, shape (n_folds, n_classes, n_samples)
        From :meth:`Lesson.from_gram`.
    masks : ndarray of bool, shape (n_folds or 1, n_classes or 1, n_voxels)

    Returns
    -------
    coef : ndarray of float64, shape (2, n_classes, n_voxels)
        Mean and standard deviation over folds.
    offsets : ndarray of float64, shape (n_folds, n_classes)
        ``w' m``: to be taken from the intercepts.
    """
    moved, pivot = shifted(x)
    means, scales = means_and_scales(moved, pivot, lessons, cells)
    weights = (dual.reshape(-1, dual.shape[-1]) @ moved).reshape(*dual.shape[:2], -1)
    weights = weights * masks / np.square(scales)[:, None, :]
    return np.stack([weights.mean(axis=0), weights.std(axis=0)]), np.einsum("fcv,fv->fc", weights, means)
