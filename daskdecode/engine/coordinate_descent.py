"""LinearSVC on a Gram matrix: liblinear's dual coordinate descent, step for step, without features.

The algorithm is that of Hsieh et al. 2008 (ICML, "A dual coordinate descent method for large-scale linear SVM", with its shrinking and its
stopping rule) as scikit-learn's LinearSVC runs it with ``dual=True``: the same order of samples, the same random numbers, the same
tolerance. Only the gradient is kept differently. liblinear keeps the weights w and forms ``w'x_i`` for each sample it visits; here
``f = K beta`` is kept and a sample that needs no step costs nothing. Coefficients agree to rounding.

Two gains beside speed: no factor of the Gram matrix is needed, and fits may overlap in threads (liblinear draws from one random generator
a process, so that overlapping fits disturb each other).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from sklearn.svm import LinearSVC
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_compiled = numba.njit(cache=True, nogil=True)
_WORDS = 624  # of the Mersenne Twister's state


@dataclass(frozen=True)
class DualFit:
    """A support vector machine as weights on its training samples.

    Attributes
    ----------
    beta : ndarray of float64, shape (n_train,)
        ``w = X' beta``.
    intercept : float
    n_iter : int
    """

    beta: Floats
    intercept: float
    n_iter: int


def can_solve(model: Any) -> bool:
    """Say whether an unfitted estimator is a LinearSVC whose solver this is."""
    return (
        isinstance(model, LinearSVC)
        and model.dual is True
        and model.penalty == "l2"
        and model.loss in ("hinge", "squared_hinge")
        and bool(model.fit_intercept)
        and float(model.intercept_scaling) == 1.0
    )


def fit_dual(gram: Floats, train: Ints, target: Ints, models: Sequence[LinearSVC], sample_weight: Floats | None = None) -> list[DualFit]:
    """Fit LinearSVCs with different settings on the same samples.

    Parameters
    ----------
    gram : ndarray of float64, shape (n_samples, n_samples)
        Inner products.
    train : ndarray of int, shape (n_train,)
        Training samples.
    target : ndarray of int, shape (n_train,)
        -1 or +1.
    models : sequence of LinearSVC
        Unfitted; their settings are used (see :func:`can_solve`).
    sample_weight : ndarray of float64, shape (n_train,), optional
        What C is multiplied by for each sample. As in liblinear, samples without weight are left out.

    Returns
    -------
    list of DualFit

    Notes
    -----
    Memory: one more matrix of n_train x n_train. Releases the GIL.
    """
    # liblinear sorts samples by class, and takes the first class for +1.
    order = np.argsort(target, kind="stable")
    if sample_weight is not None:
        order = order[sample_weight[order] > 0]
    sign = np.where(target[order] < 0, 1.0, -1.0)
    features = _with_intercept(gram, train[order])
    return [_fit_one(features, sign, order, target, model, sample_weight) for model in models]


def _fit_one(features: Floats, sign: Floats, order: Ints, target: Ints, model: LinearSVC, sample_weight: Floats | None = None) -> DualFit:
    cost = model.C * _weights(model, target, sample_weight)[order]
    squared = model.loss == "squared_hinge"
    diagonal = 0.5 / cost if squared else np.zeros_like(cost)
    upper = np.full_like(cost, np.inf) if squared else cost
    signed, n_iter = _descend(features, sign, diagonal, upper, float(model.tol), int(model.max_iter), _words(model.random_state))
    beta = np.zeros(target.size)
    beta[order] = -signed
    return DualFit(beta, float(beta.sum()), int(n_iter))


def _words(random_state: Any) -> NDArray[np.uint32]:
    """State of the generator that liblinear starts from, (624,); the descent overwrites it."""
    if isinstance(random_state, int):
        return _words_of_seed(random_state).copy()
    seed = check_random_state(random_state).randint(np.iinfo("i").max)
    return np.random.RandomState(seed).get_state()[1].astype(np.uint32)  # type: ignore[index,no-any-return]


@lru_cache(maxsize=16)
def _words_of_seed(seed: int) -> NDArray[np.uint32]:
    # Setting up two generators takes longer than a fit of a few hundred samples.
    return _words(np.random.RandomState(seed))


def _weights(model: LinearSVC, target: Ints, sample_weight: Floats | None) -> Floats:
    """Weight of each sample: its own, times that of its class from ``class_weight``."""
    own = np.ones(target.size) if sample_weight is None else sample_weight
    if model.class_weight is None:
        return own
    classes = np.unique(target)
    # "balanced" counts samples by their weight, from scikit-learn 1.7 on.
    counted = {"sample_weight": own} if "sample_weight" in signature(compute_class_weight).parameters else {}
    by_class = compute_class_weight(model.class_weight, classes=classes, y=target, **counted)
    return np.asarray(own * by_class[np.searchsorted(classes, target)], dtype=np.float64)


@_compiled
def _with_intercept(gram, samples):  # type: ignore[no-untyped-def]
    """Inner products of some samples; the intercept is the weight of one more feature, 1 for every sample."""
    products = np.empty((samples.size, samples.size))
    for i in range(samples.size):
        row = gram[samples[i]]
        for j in range(samples.size):
            products[i, j] = row[samples[j]] + 1.0
    return products


@_compiled
def _descend(k, y, diagonal, upper, tol, max_iter, words):  # type: ignore[no-untyped-def]
    n = y.size
    position = np.array([_WORDS])
    curvature = np.empty(n)
    for i in range(n):
        curvature[i] = k[i, i] + diagonal[i]
    index = np.arange(n)
    alpha = np.zeros(n)
    f = np.zeros(n)
    active = n
    highest_before, lowest_before = np.inf, -np.inf
    n_iter = 0
    while n_iter < max_iter:
        highest, lowest = -np.inf, np.inf
        for i in range(active):
            j = i + _below(words, position, active - i)
            index[i], index[j] = index[j], index[i]
        s = 0
        while s < active:
            i = index[s]
            gradient = f[i] * y[i] - 1.0 + alpha[i] * diagonal[i]
            projected = gradient
            shrink = False
            if alpha[i] == 0.0:
                shrink = gradient > highest_before
                projected = min(gradient, 0.0)
            elif alpha[i] == upper[i]:
                shrink = gradient < lowest_before
                projected = max(gradient, 0.0)
            if shrink:
                active -= 1
                index[s], index[active] = index[active], index[s]
                continue
            highest, lowest = max(highest, projected), min(lowest, projected)
            if abs(projected) > 1e-12:
                old = alpha[i]
                alpha[i] = min(max(old - gradient / curvature[i], 0.0), upper[i])
                step = (alpha[i] - old) * y[i]
                row = k[i]
                for t in range(n):
                    f[t] += step * row[t]
            s += 1
        n_iter += 1
        if highest - lowest <= tol:
            if active == n:
                break
            active = n
            highest_before, lowest_before = np.inf, -np.inf
            continue
        highest_before = highest if highest > 0 else np.inf
        lowest_before = lowest if lowest < 0 else -np.inf
    return alpha * y, n_iter


@_compiled
def _below(words, position, bound):  # type: ignore[no-untyped-def]
    """A random integer from 0 to ``bound`` - 1, by Lemire's multiplication as in scikit-learn's copy of liblinear."""
    low_word = np.uint64(0xFFFFFFFF)
    wide = np.uint64(bound)
    product = np.uint64(_next(words, position)) * wide
    if (product & low_word) < wide:
        threshold = (np.uint64(0x100000000) - wide) % wide
        while (product & low_word) < threshold:
            product = np.uint64(_next(words, position)) * wide
    return np.int64(product >> np.uint64(32))


@_compiled
def _next(words, position):  # type: ignore[no-untyped-def]
    """Next 32 bits of the Mersenne Twister (Matsumoto & Nishimura 1998), the generator of C++ and of NumPy's RandomState."""
    if position[0] >= _WORDS:
        for i in range(_WORDS):
            y = (words[i] & np.uint32(0x80000000)) | (words[(i + 1) % _WORDS] & np.uint32(0x7FFFFFFF))
            twisted = words[(i + 397) % _WORDS] ^ (y >> np.uint32(1))
            words[i] = twisted ^ np.uint32(0x9908B0DF) if y & np.uint32(1) else twisted
        position[0] = 0
    y = words[position[0]]
    position[0] += 1
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    return y ^ (y >> np.uint32(18))
