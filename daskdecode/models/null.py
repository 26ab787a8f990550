"""What a permutation test found: scores of permuted labels, and the p values that they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ROUNDING = 1e-12
"""Scores closer than this are equal: the same labels in another order must count as a tie."""


@dataclass(frozen=True)
class PermutationTest:
    """What a permutation test found; m permutations. ``str(test)`` is a table.

    Attributes
    ----------
    score : float
        Mean over folds and classes of the decoder's score.
    null : ndarray of float64, shape (m,)
        The same of each permutation.
    pvalue : float
        ``(1 + b) / (1 + m)``, b the number of permutations that score as high or higher (Phipson & Smyth 2010).
    class_scores : dict of label to float
        Mean over folds, class against rest. Two classes share one problem; a regression has one, called "beta".
    class_nulls : dict of label to ndarray of float64, shape (m,)
    class_pvalues : dict of label to float
        Of each class alone.
    class_pvalues_fwe : dict of label to float
        Corrected for looking at all classes: each score against the largest over classes of each permutation (family-wise error).
    classes : list
    scoring, estimator, exchange : str
    exchanged : {"labels", "values"}
        What changed places: labels of a decoder, values of a regressor.
    random_state : int
    n_arrangements : int
        Different labellings that exchange can reach. With few, no p value can be small.
    """

    score: float
    null: Floats
    pvalue: float
    class_scores: dict[Any, float]
    class_nulls: dict[Any, Floats]
    class_pvalues: dict[Any, float]
    class_pvalues_fwe: dict[Any, float]
    classes: list[Any]
    scoring: str
    estimator: str
    exchange: str
    random_state: int
    n_arrangements: int
    exchanged: str = "labels"

    @property
    def n_permutations(self) -> int:
        """Number of permutations, m."""
        return int(self.null.size)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain, JSON-able values; classes become text."""
        per_class = ("class_scores", "class_pvalues", "class_pvalues_fwe")
        names = ("score", "pvalue", "scoring", "estimator", "exchange", "exchanged", "random_state", "n_permutations", "n_arrangements")
        return {
            **{name: getattr(self, name) for name in names},
            "classes": [str(c) for c in self.classes],
            "null": self.null.tolist(),
            **{name: {str(c): v for c, v in getattr(self, name).items()} for name in per_class},
            "class_nulls": {str(c): v.tolist() for c, v in self.class_nulls.items()},
        }

    def __str__(self) -> str:
        what = {"within_run": f"{self.exchanged} within runs", "blocks": "whole blocks within runs"}[self.exchange]
        lines = [
            f"{self.scoring} {self.score:.4f}, p = {self.pvalue:.4g}",
            f"null: {self.n_permutations} permutations of {what}",
            f"      mean {self.null.mean():.4f}, 95% below {np.quantile(self.null, 0.95):.4f}, largest {self.null.max():.4f}",
        ]
        if self.n_arrangements <= self.n_permutations:
            lines.append(f"only {self.n_arrangements} labellings differ: p cannot fall much below 1/{self.n_arrangements}")
        width = max(len("class"), *(len(str(c)) for c in self.classes))
        lines.append(f"{'class':<{width}}  score   p       p (family-wise)")
        lines += [
            f"{c!s:<{width}}  {self.class_scores[c]:.4f}  {self.class_pvalues[c]:<6.4g}  {self.class_pvalues_fwe[c]:.4g}"
            for c in self.classes
        ]
        return "\n".join(lines)


def summarise(observed: Floats, null: Floats, problem: Mapping[Any, int], **settings: Any) -> PermutationTest:
    """Turn scores by problem into p values.

    Parameters
    ----------
    observed : ndarray of float64, shape (2, n_problems)
        As the decoder scores, which is reported, and as permutations are scored. The smaller is compared with the null.
    null : ndarray of float64, shape (m, n_problems)
    problem : mapping
        Which problem is a class's.
    **settings
        Other attributes of the result.
    """
    score, mean = float(observed[0].mean()), null.mean(axis=1)
    compared, compared_mean = observed.min(axis=0), float(observed.mean(axis=1).min())
    largest = null.max(axis=1)
    return PermutationTest(
        score=score,
        null=mean,
        pvalue=_pvalue(compared_mean, mean),
        class_scores={c: float(observed[0, i]) for c, i in problem.items()},
        class_nulls={c: null[:, i] for c, i in problem.items()},
        class_pvalues={c: _pvalue(compared[i], null[:, i]) for c, i in problem.items()},
        class_pvalues_fwe={c: _pvalue(compared[i], largest) for c, i in problem.items()},
        classes=list(problem),
        **settings,
    )


def _pvalue(score: float, null: Floats) -> float:
    # Written so that a null score that is not defined counts as at least as high.
    return float((1 + np.sum(~(null < score - _ROUNDING * max(1.0, abs(score))))) / (1 + null.size))


def class_means(scores: Floats) -> Floats:
    """Mean over the folds where the score is defined: (m, n_folds, n_problems) to (m, n_problems)."""
    defined = np.isfinite(scores)
    total = np.where(defined, scores, 0.0).sum(axis=1)
    count = defined.sum(axis=1)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
