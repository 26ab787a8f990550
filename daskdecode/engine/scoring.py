"""Scores of decision values that are already known.

scikit-learn's scorers check everything anew at each call, which takes milliseconds: more than a fit on a Gram matrix. The commonest two are
therefore computed here, by the same arithmetic in the same order, so that they are equal to the last bit; any other is asked itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import get_scorer

from daskdecode.engine.moments import Bools, Floats, Ints
from daskdecode.engine.solvers import Scorer


class Decided(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted binary classifier whose single feature is its decision value: lets any scorer judge decisions that are already known."""

    classes_ = np.array([-1, 1])

    def decision_function(self, X: Floats) -> Floats:
        """Return the feature."""
        return np.asarray(X[:, 0])

    def predict_proba(self, X: Floats) -> Floats:
        """Return the probabilities of -1 and +1, where the feature is their log-odds."""
        p = expit(X[:, 0])
        return np.stack([1 - p, p], axis=1)

    def predict(self, X: Floats) -> Ints:
        """Return -1 or +1, the sign of the feature."""
        return np.where(X[:, 0] > 0, 1, -1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


def score_decisions(scorer: Scorer, decision: Floats, target: Ints) -> float:
    """Score of decision values (n_samples,) against -1 and +1."""
    quick = _quick(scorer)
    positive = target > 0
    # What is not defined, and what is not finite, scikit-learn warns of or refuses.
    if quick is not None and positive.any() and not positive.all() and np.isfinite(decision).all():
        return quick(decision, positive)
    return float(scorer(Decided(), decision[:, None], target))


def _quick(scorer: Scorer) -> Callable[[Floats, Bools], float] | None:
    """Return what gives the same score without the checks, for the plain scorers of ROC AUC and of accuracy."""
    # Of the same function there are scorers that see other things: make_scorer(roc_auc_score) ranks predictions, not decisions.
    seen = _seen_by(scorer)
    return next((quick for plain, quick in _QUICK if seen == plain), None)


def _seen_by(scorer: Scorer) -> tuple[Any, ...]:
    """What decides a scorer's result. Read with getattr: one of another kind, or of another scikit-learn, is then asked itself."""
    return tuple(getattr(scorer, name, scorer) for name in ("_score_func", "_response_method", "_sign", "_kwargs"))


def _roc_auc(decision: Floats, positive: Bools) -> float:
    """Area under the ROC curve by the trapezoidal rule on its corners, as :func:`sklearn.metrics.roc_auc_score`."""
    order = np.argsort(-decision, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(decision[order])), order.size - 1)
    true = np.cumsum(positive[order])[ends].astype(np.float64)
    false = 1 + ends - true
    if ends.size > 2:
        corners = np.concatenate([[True], (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0), [True]])
        true, false = true[corners], false[corners]
    true, false = np.append(0.0, true), np.append(0.0, false)
    return float(np.trapezoid(true / true[-1], false / false[-1]))


def _accuracy(decision: Floats, positive: Bools) -> float:
    return float(np.average((decision > 0) == positive))


_QUICK = [(_seen_by(get_scorer("roc_auc")), _roc_auc), (_seen_by(get_scorer("accuracy")), _accuracy)]
