"""Few columns that stand for many voxels: a factor Z with Z Z' = K (Hastie & Tibshirani 2004, Biostatistics 5:329-340).

A linear model with an isotropic L2 penalty sees its samples only through their inner products. So scikit-learn's own solver, run on the
n x r factor instead of the n x p data, takes the same steps and gives the same predictions, and its weights lead back to the voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpstrf

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Factor:
    """Features of all samples that keep the inner products of the training samples, with the way back to voxel weights.

    ``Z = K[:, pivots] L^-T`` where ``K[pivots, pivots] = L L'``, by a Cholesky decomposition with pivoting of the training samples' Gram
    matrix. It needs no ridge and no eigenvectors where K is singular (z-scoring within runs takes one dimension a run), since it stops
    at the rank.

    Attributes
    ----------
    z : ndarray of float64, shape (n_samples, rank)
    pivots : ndarray of int, shape (rank,)
        Training samples that span the others.
    lower : ndarray of float64, shape (rank, rank)
        L.
    """

    z: Floats
    pivots: Ints
    lower: Floats

    @classmethod
    def of(cls, gram: Floats, train: Ints) -> Factor:
        """Factorise the Gram matrix (n_samples, n_samples) on the samples ``train``: n_train^3 / 3 + n_samples x rank^2 operations."""
        square = gram[np.ix_(train, train)]
        largest = float(square.diagonal().max(initial=0.0))
        # The rank ends where what is left is rounding: eps for each of the n products that a pivot has been through.
        tolerance = 8 * train.size * np.finfo(np.float64).eps * largest
        lower, order, rank, _ = dpstrf(square, tol=tolerance, lower=1)
        rank = int(rank) if largest > 0 else 0
        pivots = train[order[:rank] - 1]
        lower = np.tril(lower[:rank, :rank])
        z = solve_triangular(lower, gram[pivots], lower=True).T if rank else np.zeros((gram.shape[0], 1))
        return cls(np.ascontiguousarray(z), pivots, lower)

    def dual(self, weights: Floats) -> Floats:
        """Turn weights on Z into weights on samples, ``w_voxels = X' dual``.

        Parameters
        ----------
        weights : ndarray of float64, shape (n_models, rank)

        Returns
        -------
        ndarray of float64, shape (n_models, n_samples)
            Zero outside the pivots.
        """
        dual = np.zeros((weights.shape[0], self.z.shape[0]))
        if self.pivots.size:
            dual[:, self.pivots] = solve_triangular(self.lower, weights.T, lower=True, trans="T").T
        return dual
