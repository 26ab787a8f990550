"""From scores to a choice: means over folds and problems, the best setting, scikit-learn's table, what to say of failed fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from daskdecode.engine.design import Design, TrainingSet
from daskdecode.models.outcome import unconverged_note
from daskdecode.tuning.folds import Scored
from daskdecode.tuning.result import SearchResult

Floats = NDArray[np.float64]

_ROUNDING = 12
"""Decimals in which scores are compared: the order in which a score was summed must not choose a setting."""


def result_of(found: Scored, design: Design, sets: Sequence[TrainingSet], nested: bool, **named: Any) -> SearchResult:
    """Tables and choices from the scores of all training sets; pure NumPy, nothing is fitted."""
    lookup = {s.train.tobytes(): (position, s) for position, s in enumerate(sets)}

    def of(split: tuple[Any, Any]) -> Floats:
        """Mean over problems of each setting's score on a split, shape (n_settings,)."""
        position, fold = lookup[split[0].tobytes()]
        test = next(t for t, other in enumerate(fold.tests) if np.array_equal(other, split[1]))
        return _mean_where_defined(found.scores[position, :, :, test])

    outer = np.stack([of(split) for split in design.outer])
    nested_scores = nested_params = None
    if design.inner is not None:
        picks = [best_of(_mean_where_defined(np.stack([of(split) for split in inner]))) for inner in design.inner]
        nested_scores = _failed_as_nan(np.array([row[pick] for row, pick in zip(outer, picks, strict=True)]))
        nested_params = [dict(design.candidates[pick]) for pick in picks]
    elif nested:  # of one setting there is no choice to make
        nested_scores, nested_params = _failed_as_nan(outer[:, 0]), [dict(design.candidates[0])] * len(outer)
    table = _cv_results(outer, design.candidates, found)
    return SearchResult(
        table,
        best_of(_mean_where_defined(outer)),
        nested_scores_=nested_scores,
        nested_params_=nested_params,
        notes_=_notes(found),
        **named,
    )


def _mean_where_defined(scores: Floats) -> Floats:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(scores)
    total = np.where(defined, scores, 0.0).sum(axis=0)  # minus infinity of a failed fit stays what it is
    return np.asarray(np.where(defined.any(axis=0), total / np.maximum(defined.sum(axis=0), 1), np.nan))


def _failed_as_nan(scores: Floats) -> Floats:
    """NaN for minus infinity, which failed fits have inside a search."""
    return np.where(np.isneginf(scores), np.nan, scores)


def best_of(means: Floats) -> int:
    """First of the best settings; NaN and minus infinity never win against a score."""
    rounded = np.round(means, _ROUNDING)
    return int(np.argmax(np.where(np.isnan(rounded), -np.inf, rounded)))


def _cv_results(outer: Floats, settings: Sequence[Mapping[str, Any]], found: Scored) -> dict[str, Any]:
    """Scores (n_folds, n_settings) in scikit-learn's shape."""
    means = _mean_where_defined(outer)
    with np.errstate(invalid="ignore"):
        spread = np.sqrt(_mean_where_defined(np.square(outer - means)))
    ranks = rankdata(-np.where(np.isnan(means), -np.inf, np.round(means, _ROUNDING)), method="min").astype(np.int32)
    table: dict[str, Any] = {}
    for name, times in (("fit_time", found.fit_time_s), ("score_time", found.score_time_s)):
        table[f"mean_{name}"], table[f"std_{name}"] = _pooled(times, found.n_in_batch.astype(np.float64))
    for name in dict.fromkeys(name for params in settings for name in params):
        column: Any = np.ma.MaskedArray(np.empty(len(settings), dtype=object), mask=True)
        for k, params in enumerate(settings):
            if name in params:
                column[k] = params[name]
        table[f"param_{name}"] = column
    table["params"] = [dict(params) for params in settings]
    for f, row in enumerate(outer):
        table[f"split{f}_test_score"] = _failed_as_nan(row)
    table["mean_test_score"] = _failed_as_nan(means)
    table["std_test_score"] = np.where(np.isneginf(means), np.nan, spread)
    table["rank_test_score"] = ranks
    return table


def _pooled(times: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation over all training sets from those of batches, (n_batches, n_settings, 2)."""
    share = (n / n.sum())[:, None]
    mean = (share * times[..., 0]).sum(axis=0)
    return mean, np.sqrt((share * (np.square(times[..., 1]) + np.square(times[..., 0] - mean))).sum(axis=0))


def _notes(found: Scored) -> list[str]:
    notes = []
    n_failed, n_unconverged, n_fits = int(found.failed.sum()), int(found.n_unconverged.sum()), found.failed.size
    if n_failed:
        notes.append(f"{n_failed} of {n_fits} fits failed; they count as error_score.")
    if n_unconverged:
        notes.append(unconverged_note(n_unconverged, n_fits))
    return notes
