r"""Solvers in closed form: thousands of label vectors at once, from one eigendecomposition a training set.

Ridge takes a whole path of penalties (linear discriminants are in :mod:`daskdecode.engine.discriminant`).

With :math:`\tilde K = V S V'` the centred Gram matrix of the n training samples and y any labels with mean :math:`\bar y`,

.. math::
    a = V (S + \alpha I)^{-1} V' (y - \bar y), \qquad f(x) = \bar y + \tilde k(x)' a, \qquad
    e_i = \frac{a_i}{[V (S + \alpha I)^{-1} V']_{ii} - 1 / (n \alpha)},

where e are the leave-one-out errors. Only the products with V' y know the labels, so permuting them is a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV, RidgeCV

from daskdecode.engine.discriminant import Discriminant, decide_discriminants
from daskdecode.engine.spectrum import Spectrum
from daskdecode.engine.squared_hinge import decide_squared_hinge, is_squared_hinge

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

RIDGE_ALPHAS = np.geomspace(1e-3, 1e4, 8)
"""The penalties that nilearn's ridge decoders try."""


@dataclass(frozen=True)
class RidgePath:
    """Ridge regression of many targets on one training set, each with its own best alpha.

    Equal to :class:`sklearn.linear_model.RidgeCV` and ``RidgeClassifierCV`` (leave-one-out choice of alpha, intercept not penalised) on the
    voxels.

    Attributes
    ----------
    spectrum : Spectrum
    alphas : ndarray of float64, shape (n_alphas,)
    left_out : ndarray of float64, shape (n_alphas, n_train)
        What a is divided by to give leave-one-out errors.
    """

    spectrum: Spectrum
    alphas: Floats
    left_out: Floats

    @classmethod
    def of(cls, spectrum: Spectrum, alphas: Floats = RIDGE_ALPHAS) -> RidgePath:
        """Prepare what does not depend on the targets."""
        squares, values = np.square(spectrum.vectors), spectrum.values
        empty = values == 0
        # The mean is one of the empty directions and is not penalised: what it adds to the diagonal, 1 / (n alpha), is taken away here,
        # before the division by alpha makes rounding large.
        n = spectrum.train.size
        spare = np.maximum(squares[:, empty].sum(axis=1) - 1 / n, 0.0) if empty.sum() > 1 else np.zeros(n)
        alphas = np.asarray(alphas, dtype=np.float64)
        left_out = np.stack([squares[:, ~empty] @ (1 / (values[~empty] + alpha)) + spare / alpha for alpha in alphas])
        return cls(spectrum, alphas, left_out)

    def decide(self, targets: Floats, rows: Ints) -> tuple[Floats, Ints]:
        """Decision values on some samples, with each label vector's own best alpha.

        Parameters
        ----------
        targets : ndarray of float64, shape (n_samples, n_vectors)
            Labels (-1 and +1) or values of all samples; those of the training set are used.
        rows : ndarray of int, shape (n_rows,)
            Samples to decide on.

        Returns
        -------
        decision : ndarray of float64, shape (n_rows, n_vectors)
        chosen : ndarray of int, shape (n_vectors,)
            Index of the alpha with the smallest mean squared leave-one-out error; the first of the best.
        """
        vectors, values = self.spectrum.vectors, self.spectrum.values
        y = targets[self.spectrum.train]
        means = y.mean(axis=0)
        projected = vectors.T @ (y - means)
        chosen = np.zeros(y.shape[1], dtype=np.intp)
        least = np.full(y.shape[1], np.inf)
        for index, alpha in enumerate(self.alphas):
            errors = vectors @ (projected / (values + alpha)[:, None])
            errors /= self.left_out[index][:, None]
            loss = np.einsum("ij,ij->j", errors, errors)
            better = loss < least
            chosen[better], least[better] = index, loss[better]
        projected /= values[:, None] + self.alphas[chosen]
        return self.spectrum.cross[rows] @ projected + means, chosen


Solve = Callable[[Floats, Ints, Floats, Ints], Floats]


def closed_form(models: Sequence[Any], n_voxels: int, *, exact: bool = False) -> Solve | None:
    """Return what solves problems of all these estimators at once, or None where one of them has no closed form.

    With the numbers that the estimators give, to rounding; so support vector machines count as such only if asked for.

    Parameters
    ----------
    models : sequence of estimators
        Unfitted.
    n_voxels : int
        Voxels that the samples have.
    exact : bool, default False
        Also where the estimator's own solver stops within a tolerance of the solution. Decision values are NaN where this one finds none.

    Returns
    -------
    callable or None
        ``solve(gram, train, targets, rows) -> (n_models, n_rows, n_vectors)``: decision values on some samples, of each estimator fitted to
        each column of ``targets`` (n_samples, n_vectors) on the samples ``train``.
    """
    if all(map(_is_plain_ridge, models)):
        return partial(_solve_ridge, [np.atleast_1d(np.asarray(model.alphas, dtype=np.float64)) for model in models])
    if all(isinstance(model, Discriminant) and model.is_isotropic for model in models):
        return partial(_solve_discriminants, [float(model.shrinkage) for model in models], n_voxels)
    if exact and all(map(is_squared_hinge, models)):
        return partial(_solve_squared_hinge, [float(model.C) for model in models])
    return None


def _is_plain_ridge(model: Any) -> bool:
    """Whether nothing is to be chosen but alpha, by plain leave-one-out."""
    if not isinstance(model, RidgeCV | RidgeClassifierCV):
        return False
    plain = model.fit_intercept and model.cv is model.scoring is None
    return bool(plain and getattr(model, "class_weight", None) is None)


def _solve_ridge(paths: Sequence[Floats], gram: Floats, train: Ints, targets: Floats, rows: Ints) -> Floats:
    spectrum = Spectrum.of(gram, train)
    return np.stack([RidgePath.of(spectrum, alphas).decide(targets, rows)[0] for alphas in paths])


def _solve_discriminants(shrinkages: Sequence[float], n_voxels: int, gram: Floats, train: Ints, targets: Floats, rows: Ints) -> Floats:
    return decide_discriminants(Spectrum.of(gram, train), targets, rows, shrinkages, n_voxels)


def _solve_squared_hinge(costs: Sequence[float], gram: Floats, train: Ints, targets: Floats, rows: Ints) -> Floats:
    return decide_squared_hinge(gram, train, targets, rows, costs)
