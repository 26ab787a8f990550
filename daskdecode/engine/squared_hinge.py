r"""Support vector machines with squared hinge loss, solved exactly, for many label vectors on one Gram matrix.

The machine minimises :math:`\tfrac12 (\|w\|^2 + b^2) + C \sum_i \max(0, 1 - y_i f(x_i))^2`. Where every training sample is a support
vector, its weights are linear in the labels,

.. math:: \beta = M^{-1} y, \qquad M = K + 11' + \tfrac{1}{2C} I,

so that thousands of label vectors are one matrix product. Where some are not (:math:`y_i \beta_i < 0` for them), they are held at 0 with
multipliers :math:`\mu` and the condition is asked again, which is Newton's method on the loss (Chapelle 2007, Neural Computation
19:1155-1178); a few steps on matrices as small as the number of samples left out, fewer still from those of the next
smaller C. Brains have many more voxels than samples: hardly any are left out.

liblinear, which :class:`sklearn.svm.LinearSVC` and so :mod:`daskdecode.engine.coordinate_descent` follow, stops within a tolerance of the
same minimum, after hundreds of rounds where samples are centred within runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri
from sklearn.svm import LinearSVC

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_MOST_STEPS = 100


def is_squared_hinge(model: Any) -> bool:
    """Say whether an unfitted estimator is a LinearSVC whose minimum this is."""
    return (
        isinstance(model, LinearSVC)
        and (model.penalty, model.loss, model.class_weight) == ("l2", "squared_hinge", None)
        and bool(model.fit_intercept)
        and float(model.intercept_scaling) == 1.0
    )


def decide_squared_hinge(gram: Floats, train: Ints, targets: Floats, rows: Ints, costs: Sequence[float]) -> Floats:
    """Decision values of support vector machines, for many label vectors at once.

    Parameters
    ----------
    gram : ndarray of float64, shape (n_samples, n_samples)
        Inner products.
    train : ndarray of int, shape (n_train,)
    targets : ndarray of float64, shape (n_samples, n_vectors)
        Labels, -1 and +1; those of the training set are used.
    rows : ndarray of int, shape (n_rows,)
        Samples to decide on.
    costs : sequence of float
        Values of C.

    Returns
    -------
    ndarray of float64, shape (n_costs, n_rows, n_vectors)
        NaN where the steps came to no end (rounding, with samples that lie on the margin): another solver is to be asked.

    Notes
    -----
    Memory: three matrices n_train x n_train, and n_train x n_vectors. Releases the GIL.
    """
    y = np.ascontiguousarray(targets[train], dtype=np.float64)
    inner = gram[np.ix_(train, train)] + 1.0
    across = gram[np.ix_(rows, train)] + 1.0
    decision = np.empty((len(costs), rows.size, y.shape[1]))
    # The larger C, the more samples lie outside the margin: those of one value are nearly those of the next.
    held = np.zeros(y.shape, dtype=np.bool_)
    for place in np.argsort(costs).tolist():
        inverse = _inverse(inner, 0.5 / costs[place])
        beta = inverse @ y
        _hold_at_zero(inverse, y, beta, held)
        decision[place] = across @ beta
    return decision


def _inverse(matrix: Floats, ridge: float) -> Floats:
    """Inverse of a positive definite matrix with a ridge on its diagonal."""
    lower, failed = dpotrf(matrix + ridge * np.eye(len(matrix)), lower=1)
    inverse, _ = dpotri(lower, lower=1)
    if failed:
        return np.full_like(matrix, np.nan)
    inverse = np.tril(inverse)
    return np.asarray(inverse + np.tril(inverse, -1).T)


@numba.njit(cache=True, nogil=True)
def _hold_at_zero(inverse, y, beta, at_zero):  # type: ignore[no-untyped-def]
    """Correct the columns of ``beta`` whose samples are not all support vectors, in place.

    ``at_zero``, of the same shape, says which samples are held at first, and then which are in the end.
    """
    n, n_vectors = y.shape
    for v in range(n_vectors):
        free = beta[:, v].copy()
        out = at_zero[:, v].copy()
        if not out.any():
            out = free * y[:, v] < 0
        current = free
        n_steps = 0
        while True:
            held = np.flatnonzero(out)
            if n_steps > _MOST_STEPS:
                beta[:, v] = np.nan
                break
            if held.size == 0:
                current = free
                changed = False
            else:
                square = np.empty((held.size, held.size))
                columns = np.empty((n, held.size))
                for a in range(held.size):
                    columns[:, a] = inverse[:, held[a]]
                    for b in range(held.size):
                        square[b, a] = inverse[held[b], held[a]]
                multipliers = np.linalg.solve(square, free[held])
                current = free - columns @ multipliers
                current[held] = 0.0
                changed = False
                # One that is held comes back where it would fall inside the margin.
                for a in range(held.size):
                    if multipliers[a] * y[held[a], v] > 0:
                        out[held[a]] = False
                        changed = True
            for i in range(n):
                if not out[i] and current[i] * y[i, v] < 0:
                    out[i] = True
                    changed = True
            if not changed:
                beta[:, v] = current
                at_zero[:, v] = out
                break
            n_steps += 1
