"""How far a mean score may lie from what more runs would give."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.utils.validation import check_is_fitted

from daskdecode.errors import DecodingError
from daskdecode.models.decoder import Decoder

_FEWEST_FOLDS = 3


@dataclass(frozen=True)
class ScoreInterval:
    """A mean score with its confidence interval. ``str(interval)`` says it in a line.

    Attributes
    ----------
    score, low, high : float
        Mean over folds and classes, and the ends of its interval.
    level : float
    n_folds : int
    class_intervals : dict of label to (score, low, high)
    scoring : str
    """

    score: float
    low: float
    high: float
    level: float
    n_folds: int
    class_intervals: dict[Any, tuple[float, float, float]]
    scoring: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain, JSON-able values; classes become text."""
        return asdict(self) | {"class_intervals": {str(c): list(v) for c, v in self.class_intervals.items()}}

    def __str__(self) -> str:
        return (
            f"{self.scoring} {self.score:.4f}, {self.level:.0%} interval {self.low:.4f} to {self.high:.4f} ({self.n_folds} folds of runs)"
        )


def score_interval(decoder: Decoder, level: float = 0.95, *, n_bootstrap: int = 10_000, random_state: int = 0) -> ScoreInterval:
    """Confidence interval of a decoder's mean score by drawing its folds, each a run or several, with replacement.

    Runs, not volumes, are what is drawn: volumes of a run are not independent, and an interval that counts them (binomial) is far too
    narrow. With few folds plain percentiles are too narrow too; they are widened as much as Student's t is wider than the normal
    distribution (the expanded percentile interval).

    Parameters
    ----------
    decoder : Decoder
        Fitted, with folds that leave whole runs out.
    level : float, default 0.95
    n_bootstrap : int, default 10,000
        Draws.
    random_state : int, default 0

    Returns
    -------
    ScoreInterval
        Folds are drawn together for all classes. Folds whose score is not defined are left out of the draws.

    Raises
    ------
    DecodingError
        Fewer than three folds, folds that cut runs, unknown runs, or a level outside (0, 1).

    Notes
    -----
    What the interval does not cover: training sets of different folds overlap, so fold scores are not independent and the interval is
    somewhat too narrow (Bengio & Grandvalet 2004); it speaks of further runs of this person, never of other people. To say whether a score
    is better than chance, use :func:`daskdecode.permutation_test`, not whether the interval covers 0.5.

    References
    ----------
    Hesterberg 2015, The American Statistician 69:371-386; Bengio & Grandvalet 2004, JMLR 5:1089-1105.
    """
    check_is_fitted(decoder)
    if not 0 < level < 1:
        raise DecodingError(f"level={level} must lie between 0 and 1, such as 0.95.")
    _check_whole_runs(decoder)
    names = list(decoder.cv_scores_)
    problems = names[1:] if len(names) == 2 else names
    table = np.array([decoder.cv_scores_[c] for c in problems]).T
    absent = [str(c) for c, column in zip(problems, table.T, strict=True) if not np.isfinite(column).any()]
    if absent:
        raise DecodingError(
            f"Class {', '.join(map(repr, absent))} has a score in no fold: no test fold holds both it and others. Leave it out of "
            "the labels."
        )
    table = table[np.isfinite(table).all(axis=1)]
    n_folds = len(table)
    if n_folds < _FEWEST_FOLDS:
        raise DecodingError(f"{n_folds} folds have a score: an interval needs at least {_FEWEST_FOLDS} (left-out runs).")
    if not isinstance(n_bootstrap, int | np.integer) or n_bootstrap < 1:
        raise DecodingError(f"n_bootstrap={n_bootstrap!r} must be a whole number of at least 1.")
    draws = np.random.default_rng(random_state).integers(n_folds, size=(n_bootstrap, n_folds))
    means = table[draws].mean(axis=1)
    low, high = _ends(means.mean(axis=1), level, n_folds)
    each = {c: (float(table[:, i].mean()), *_ends(means[:, i], level, n_folds)) for i, c in enumerate(problems)}
    return ScoreInterval(
        score=float(table.mean()),
        low=low,
        high=high,
        level=level,
        n_folds=n_folds,
        class_intervals={c: each[problems[0]] if len(names) == 2 else each[c] for c in names},
        scoring=decoder.scoring_,
    )


def _ends(means: NDArray[np.float64], level: float, n_folds: int) -> tuple[float, float]:
    tail = float(norm.cdf(student.ppf((1 - level) / 2, n_folds - 1) * math.sqrt(n_folds / (n_folds - 1))))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _check_whole_runs(decoder: Decoder) -> None:
    table = decoder.cv_predictions_
    if (table["run"].astype(str) == "").all():
        raise DecodingError("The runs of the samples are not known: fit with groups=, the run of each sample.")
    folds = table.groupby("run")["fold"].nunique()
    if folds.max() > 1:
        raise DecodingError(
            f"Run {folds.idxmax()} is tested in {folds.max()} folds: an interval needs folds that leave whole runs out, such as cv='run'."
        )
