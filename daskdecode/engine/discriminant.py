r"""Linear discriminant analysis without a covariance of voxels.

With two classes of :math:`n_1` and :math:`n_0` samples, shares :math:`\pi_k`, means :math:`m_k` and :math:`d = m_1 - m_0`, the weights of
shrunk discriminants are :math:`w = C^{-1} d` with

.. math:: C = \sum_k \pi_k \left[(1 - s_k) S_k + s_k T_k\right] = B'B + D,

:math:`S_k` the covariance of class k, :math:`T_k` a diagonal target and B the n centred samples, weighted. C has p x p entries, its
inverse needs n x n:

.. math:: C^{-1} d = D^{-1} d - D^{-1} B' (I + B D^{-1} B')^{-1} B D^{-1} d.

For a fixed shrinkage D is a multiple of the identity, so that inner products are enough, and all label vectors share one
eigendecomposition: what depends on the labels is a change of rank one and the size of D (:func:`decide_discriminants`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from daskdecode.engine.spectrum import Spectrum

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


class Discriminant(LinearDiscriminantAnalysis):  # type: ignore[misc]
    """scikit-learn's linear discriminant analysis, in n x n where its solver would invert a covariance of all voxels.

    The same numbers to rounding, for two classes and shrunk covariances (``solver="lsqr"`` or ``"eigen"`` with a ``shrinkage``); all else
    is left to scikit-learn. Without ``covariance_`` and ``transform``.

    Parameters
    ----------
    solver, shrinkage, priors, n_components, store_covariance, tol, covariance_estimator
        As for :class:`sklearn.discriminant_analysis.LinearDiscriminantAnalysis`.
    n_voxels : int, optional
        Voxels that the features stand for, where they are a factor of fewer columns (see :class:`daskdecode.engine.rotation.Factor`):
        a fixed shrinkage divides the variance of all voxels by their number. Default: the number of features.
    """

    def __init__(
        self,
        solver: str = "svd",
        shrinkage: Any = None,
        priors: Any = None,
        n_components: int | None = None,
        store_covariance: bool = False,
        tol: float = 1e-4,
        covariance_estimator: Any = None,
        n_voxels: int | None = None,
    ) -> None:
        super().__init__(
            solver=solver,
            shrinkage=shrinkage,
            priors=priors,
            n_components=n_components,
            store_covariance=store_covariance,
            tol=tol,
            covariance_estimator=covariance_estimator,
        )
        self.n_voxels = n_voxels

    @property
    def is_shrunk(self) -> bool:
        """Whether the covariance is shrunk, so that its inverse needs no more than n x n numbers."""
        plain = bool(self.solver in ("lsqr", "eigen") and self.covariance_estimator is self.priors is None)
        return plain and (self.shrinkage == "auto" or (isinstance(self.shrinkage, int | float) and self.shrinkage > 0))

    @property
    def is_isotropic(self) -> bool:
        """Whether the target of the shrinkage is a multiple of the identity, so that inner products of samples are enough."""
        return self.is_shrunk and self.shrinkage != "auto"

    def fit(self, X: Any, y: Any) -> Discriminant:
        """Fit as scikit-learn does; X (n_samples, n_features), y (n_samples,).

        Memory: a few times X, where the features outnumber the samples.
        """
        n_features = np.shape(X)[1]
        n_voxels = self.n_voxels or n_features
        small = n_voxels == n_features and n_features <= len(y)
        if small or not self.is_shrunk or np.unique(y).size != 2 or not self._fit_wide(np.asarray(X, dtype=np.float64), y, n_voxels):
            super().fit(X, y)
        return self

    def _fit_wide(self, X: Floats, y: Any, n_voxels: int) -> bool:
        """Fit; False where nothing is shrunk in the end, so that the covariance has no inverse."""
        self.classes_, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
        self.n_features_in_ = X.shape[1]
        self.priors_ = counts / counts.sum()
        self.means_ = np.stack([X[codes == k].mean(axis=0) for k in range(2)])
        weighted, diagonal = np.empty_like(X), np.zeros(X.shape[1])
        for k, prior in enumerate(self.priors_):
            of_class = codes == k
            centred = X[of_class] - self.means_[k]
            amount, target = self._shrinkage_of(X[of_class], centred, n_voxels)
            weighted[of_class] = np.sqrt(prior * (1 - amount) / counts[k]) * centred
            diagonal += prior * amount * target
        if not diagonal.min() > 0:
            return False
        w = _solve(weighted, diagonal, self.means_[1] - self.means_[0])
        self.coef_ = w[None]
        self.intercept_ = np.array([-0.5 * (self.means_.sum(axis=0) @ w) + np.log(self.priors_[1] / self.priors_[0])])
        return True

    def _shrinkage_of(self, x: Floats, centred: Floats, n_voxels: int) -> tuple[float, Any]:
        """How much a class's covariance is shrunk, and towards which diagonal: a number, or one a voxel."""
        if self.shrinkage != "auto":
            return float(self.shrinkage), np.square(centred).sum() / (len(x) * n_voxels)
        scale = StandardScaler().fit(x).scale_
        amount, mean_variance = ledoit_wolf_amount(centred / scale)
        return amount, mean_variance * np.square(scale)


def ledoit_wolf_amount(x: Floats) -> tuple[float, float]:
    r"""Ledoit-Wolf shrinkage of the covariance of n centred samples, and the mean variance that it shrinks to.

    As :func:`sklearn.covariance.ledoit_wolf_shrinkage`, from n x n products instead of p x p:
    :math:`\sum_{jl} (X'X)_{jl}^2 = \sum_{ik} (XX')_{ik}^2` and :math:`\sum_{jl} \sum_i x_{ij}^2 x_{il}^2 = \sum_i (\sum_j x_{ij}^2)^2`.

    Parameters
    ----------
    x : ndarray of float64, shape (n_samples, n_voxels)

    References
    ----------
    Ledoit & Wolf 2004, Journal of Multivariate Analysis 88:365-411.
    """
    n_samples, n_voxels = x.shape
    gram = x @ x.T
    powers = gram.diagonal()
    mean_variance = float(powers.sum() / (n_samples * n_voxels))
    squared = float(np.square(gram).sum()) / n_samples**2
    beta = (float(np.square(powers).sum()) / n_samples - squared) / (n_voxels * n_samples)
    delta = squared / n_voxels - mean_variance**2
    beta = min(beta, delta)
    return (beta / delta if beta else 0.0), mean_variance


def _solve(b: Floats, diagonal: Floats, d: Floats) -> Floats:
    """(B'B + D)^-1 d, in the smaller of the two dimensions; B is (n_samples, n_features)."""
    n_samples, n_features = b.shape
    if n_features <= n_samples:
        return np.asarray(solve(b.T @ b + np.diag(diagonal), d, assume_a="pos"))
    scaled = b / diagonal
    inner = np.eye(n_samples) + scaled @ b.T
    return np.asarray(d / diagonal - scaled.T @ solve(inner, scaled @ d, assume_a="pos"))


def decide_discriminants(spectrum: Spectrum, targets: Floats, rows: Ints, shrinkages: Sequence[float], n_voxels: int) -> Floats:
    r"""Decision values of linear discriminants with fixed shrinkages, for many label vectors at once.

    With :math:`\tilde K = V S V'` of the training samples, :math:`z_i = 1/n_1` in the class and :math:`-1/n_0` in the other,
    :math:`c = (1 - s) n_1 n_0 / n^2` and :math:`t = s \operatorname{tr}(S_w) / p`, where
    :math:`n \operatorname{tr}(S_w) = \operatorname{tr} S - \tfrac{n_1 n_0}{n} z'\tilde K z`,

    .. math::
        a = V \left(\tfrac{1 - s}{n} S + t\right)^{-1} V' z, \qquad
        f(x) = \frac{\tilde k(x)' a + \frac{n_1 - n_0}{2 n} q}{1 - c q} + \log \frac{n_1}{n_0}, \qquad q = z' \tilde K a

    (Sherman & Morrison: :math:`n S_w = \tilde X'\tilde X - \tfrac{n_1 n_0}{n} dd'`). The penalty t differs from one label vector to
    another.

    Parameters
    ----------
    spectrum : Spectrum
        Of the training samples.
    targets : ndarray of float64, shape (n_samples, n_vectors)
        Labels, -1 and +1, of all samples; those of the training set are used.
    rows : ndarray of int, shape (n_rows,)
        Samples to decide on.
    shrinkages : sequence of float
        Each above 0 and up to 1.
    n_voxels : int
        p.

    Returns
    -------
    ndarray of float64, shape (n_shrinkages, n_rows, n_vectors)
        As ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)`` on the voxels.
    """
    positive = targets[spectrum.train] > 0
    n = positive.shape[0]
    n_positive = positive.sum(axis=0)
    n_negative = n - n_positive
    projected = spectrum.vectors.T @ np.where(positive, 1 / n_positive, -1 / n_negative)
    values = spectrum.values[:, None]
    within = (spectrum.values.sum() - n_positive * n_negative / n * (values * np.square(projected)).sum(axis=0)) / n
    decision = np.empty((len(shrinkages), rows.size, positive.shape[1]))
    for out, s in zip(decision, shrinkages, strict=True):
        a = projected / ((1 - s) / n * values + s * within / n_voxels)
        q = (values * projected * a).sum(axis=0)
        shift = (n_positive - n_negative) / (2 * n) * q
        out[:] = (spectrum.cross[rows] @ a + shift) / (1 - (1 - s) * n_positive * n_negative / n**2 * q) + np.log(n_positive / n_negative)
    return decision
