"""Scores of many decision values at once, one a column: what a permutation test spends its time on once the fits are matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, RegressorMixin

from daskdecode.engine.scoring import score_decisions

Floats = NDArray[np.float64]
Judge = Callable[[Floats, Floats], Floats]
"""``judge(decision, truth) -> (n_vectors,)``, both (n_rows, n_vectors)."""


def judge_of(scoring: Any, scorer: Callable[..., float], *, classes: bool) -> Judge:
    """Return what scores many decisions at once as ``scorer`` would one: ranks for ROC AUC, sums for r2, else one column after another.

    Parameters
    ----------
    scoring : str, callable or None
        What the user asked for; None for ROC AUC of classes and r2 of numbers.
    scorer : callable
        ``scorer(estimator, X, y) -> float``.
    classes : bool
        Whether truths are classes, -1 and +1.
    """
    known = {None: judge_auc, "roc_auc": judge_auc, "accuracy": judge_accuracy} if classes else {None: judge_r2, "r2": judge_r2}
    by_name = scoring is None or isinstance(scoring, str)
    return known.get(scoring, OneByOne(scorer, classes)) if by_name else OneByOne(scorer, classes)


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


def judge_r2(decision: Floats, truth: Floats) -> Floats:
    """Shares of variance explained, ``1 - sum (y - f)^2 / sum (y - mean y)^2``, one a column (n_vectors,).

    As :func:`sklearn.metrics.r2_score`: NaN for a single sample; of a constant truth 1 where every prediction is right, else 0.
    """
    if truth.shape[0] < 2:
        return np.full(truth.shape[1], np.nan)
    left = np.square(truth - decision).sum(axis=0)
    total = np.square(truth - truth.mean(axis=0)).sum(axis=0)
    share = np.divide(left, total, out=(left > 0).astype(np.float64), where=total > 0)
    return np.asarray(1 - share)


@dataclass(frozen=True)
class OneByOne:
    """A scorer on one column after another: for scores that have no formula here."""

    scorer: Callable[..., float]
    classes: bool

    def __call__(self, decision: Floats, truth: Floats) -> Floats:
        """Return one score a column (n_vectors,)."""
        if self.classes:
            return np.array([score_decisions(self.scorer, d, t) for d, t in zip(decision.T, truth.T, strict=True)])
        return np.array([float(self.scorer(Predicted(), d[:, None], t)) for d, t in zip(decision.T, truth.T, strict=True)])


class Predicted(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted regressor whose single feature is its prediction: lets any scorer judge predictions that are already known."""

    def predict(self, X: Floats) -> Floats:
        """Return the feature."""
        return np.asarray(X[:, 0])

    def __sklearn_is_fitted__(self) -> bool:
        return True
