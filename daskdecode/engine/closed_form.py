r"""Ridge in closed form: a whole path of penalties, for thousands of label vectors at once, from one eigendecomposition a training set.

With :math:`\tilde K = V S V'` the centred Gram matrix of the n training samples and y any labels with mean :math:`\bar y`,

.. math::
    a = V (S + \alpha I)^{-1} V' (y - \bar y), \qquad f(x) = \bar y + \tilde k(x)' a, \qquad
    e_i = \frac{a_i}{[V (S + \alpha I)^{-1} V']_{ii} - 1 / (n \alpha)},

where e are the leave-one-out errors. Only the products with V' y know the labels, so permuting them is a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

RIDGE_ALPHAS = np.geomspace(1e-3, 1e4, 8)
"""The penalties that nilearn's ridge decoders try."""


@dataclass(frozen=True)
class RidgePath:
    """Everything about a training set that does not depend on its labels.

    Equal to :class:`sklearn.linear_model.RidgeClassifierCV` (leave-one-out choice of alpha, intercept not penalised) on the voxels.

    Attributes
    ----------
    train : ndarray of int, shape (n_train,)
    alphas : ndarray of float64, shape (n_alphas,)
    vectors : ndarray of float64, shape (n_train, n_train)
        V.
    values : ndarray of float64, shape (n_train,)
        S; 0 where it is rounding.
    cross : ndarray of float64, shape (n_samples, n_train)
        Centred inner products of all samples with the training samples, times V.
    left_out : ndarray of float64, shape (n_alphas, n_train)
        What a is divided by to give leave-one-out errors.
    """

    train: Ints
    alphas: Floats
    vectors: Floats
    values: Floats
    cross: Floats
    left_out: Floats

    @classmethod
    def of(cls, gram: Floats, train: Ints, alphas: Floats = RIDGE_ALPHAS) -> RidgePath:
        """Decompose the Gram matrix (n_samples, n_samples) of the voxels on the samples ``train``: about 9 n_train^3 operations."""
        rows = gram[:, train]
        # Inner products of x - m with x_j - m, m the mean training sample: all three corrections come from the Gram matrix.
        with_mean = rows.mean(axis=1, keepdims=True)
        centred = rows - with_mean - with_mean[train].T + with_mean[train].mean()
        values, vectors = eigh(centred[train])
        empty = values <= values[-1] * train.size * np.finfo(np.float64).eps * 8
        values[empty] = 0.0
        cross = centred @ vectors
        # No sample has a part in a direction that the training samples do not span; what is left there is rounding, and 1 / alpha is large.
        cross[:, empty] = 0.0
        squares = np.square(vectors)
        # The mean is one of the empty directions and is not penalised: what it adds to the diagonal, 1 / (n alpha), is taken away here,
        # before the division by alpha makes rounding large.
        spare = np.maximum(squares[:, empty].sum(axis=1) - 1 / train.size, 0.0) if empty.sum() > 1 else np.zeros(train.size)
        alphas = np.asarray(alphas, dtype=np.float64)
        left_out = np.stack([squares[:, ~empty] @ (1 / (values[~empty] + alpha)) + spare / alpha for alpha in alphas])
        return cls(train, alphas, vectors, values, cross, left_out)

    def decide(self, targets: Floats, rows: Ints) -> tuple[Floats, Ints]:
        """Decision values on some samples, with each label vector's own best alpha.

        Parameters
        ----------
        targets : ndarray of float64, shape (n_samples, n_vectors)
            Labels, -1 and +1, of all samples; those of the training set are used.
        rows : ndarray of int, shape (n_rows,)
            Samples to decide on.

        Returns
        -------
        decision : ndarray of float64, shape (n_rows, n_vectors)
        chosen : ndarray of int, shape (n_vectors,)
            Index of the alpha with the smallest mean squared leave-one-out error; the first of the best.
        """
        y = targets[self.train]
        means = y.mean(axis=0)
        projected = self.vectors.T @ (y - means)
        chosen = np.zeros(y.shape[1], dtype=np.intp)
        least = np.full(y.shape[1], np.inf)
        for index, alpha in enumerate(self.alphas):
            errors = self.vectors @ (projected / (self.values + alpha)[:, None])
            errors /= self.left_out[index][:, None]
            loss = np.einsum("ij,ij->j", errors, errors)
            better = loss < least
            chosen[better], least[better] = index, loss[better]
        projected /= self.values[:, None] + self.alphas[chosen]
        return self.cross[rows] @ projected + means, chosen


def judge_auc(decision: Floats, truth: Floats) -> Floats:
    """Areas under the ROC curve, one a column; NaN where the truth has a single class.

    ``AUC = (sum of the positives' ranks - n1 (n1 + 1) / 2) / (n1 n0)``, ties at their mean rank.

    Parameters
    ----------
    decision, truth : ndarray of float64, shape (n_rows, n_vectors)
        Decision values; labels -1 and +1.

    Returns
    -------
    ndarray of float64, shape (n_vectors,)
    """
    positive = truth > 0
    n_positive = positive.sum(axis=0)
    n_negative = truth.shape[0] - n_positive
    ranks = (rankdata(decision, axis=0) * positive).sum(axis=0) - n_positive * (n_positive + 1) / 2
    pairs = n_positive * n_negative
    return np.asarray(np.divide(ranks, pairs, out=np.full(truth.shape[1], np.nan), where=pairs > 0))


def judge_accuracy(decision: Floats, truth: Floats) -> Floats:
    """Shares of right signs, one a column (n_vectors,); a decision of 0 speaks for -1."""
    return np.asarray(((decision > 0) == (truth > 0)).mean(axis=0))
