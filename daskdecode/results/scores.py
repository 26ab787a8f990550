"""The numbers of a fitted decoder as tables: what was scored, in which fold, and against which chance level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from daskdecode.errors import DecodingError

SCORING_NAMES: Final = {
    "roc_auc": "ROC AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
    "f1": "F1",
    "r2": "R²",
    "neg_mean_absolute_error": "negative mean absolute error",
}
"""How a scoring is called in a sentence; others go by their own name."""

REGRESSION_METRICS: Final = {"r2": "R²", "correlation": "correlation", "mean_absolute_error": "mean absolute error"}
"""Columns of a regressor's ``cv_metrics_`` that are scores, and how they are called in a sentence."""

SCORE_COLUMNS: Final = ("fold", "test_runs", "class", "score", "chance", "n_train", "n_test")
"""Columns of :func:`score_table` that every decoder has; hyperparameters come after them."""


def check_fitted(decoder: Any) -> None:
    """Raise :class:`~daskdecode.errors.DecodingError` where the decoder has nothing to show yet."""
    if not hasattr(decoder, "cv_scores_"):
        raise DecodingError(f"This {type(decoder).__name__} is not fitted: there are no scores to write. Call its fit() first.")


def is_regressor(decoder: Any) -> bool:
    """Say whether numbers were predicted: there are no classes then."""
    return not hasattr(decoder, "classes_")


def scalars(params: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Take the chosen hyperparameters that are single values; the lists that an estimator searched by itself are in the provenance."""
    return {key: list(values) for key, values in params.items() if all(np.ndim(value) == 0 for value in values)}


def chance_level(scoring: str, is_class: np.ndarray) -> float:
    """Score that a decoder blind to the data can reach on one class against the rest.

    Parameters
    ----------
    scoring : str
        scikit-learn's name of the score.
    is_class : ndarray of bool, shape (n_test,)
        Which of the held-out samples belong to the class.

    Returns
    -------
    float
        0.5 for ``roc_auc`` and ``balanced_accuracy``; for ``accuracy`` the larger share, which always giving one answer reaches (0.875 for
        one class in eight, not 0.5); for ``average_precision`` the share of the class. NaN where there is no such level or no sample.
    """
    if len(is_class) == 0:
        return float("nan")
    share = float(np.mean(is_class))
    levels = {"roc_auc": 0.5, "balanced_accuracy": 0.5, "accuracy": max(share, 1 - share), "average_precision": share}
    return levels.get(scoring, float("nan"))


def score_table(decoder: Any) -> pd.DataFrame:
    """One row a fold and class: the score, its chance level, the sizes and the hyperparameters chosen.

    Parameters
    ----------
    decoder : Decoder
        Fitted.

    Returns
    -------
    DataFrame
        Columns ``fold``, ``test_runs``, ``class``, ``score``, ``chance``, ``n_train``, ``n_test`` and one column a hyperparameter.
        For two classes both classes have their rows, with the same values, as in ``cv_scores_``.
    """
    check_fitted(decoder)
    metrics = decoder.cv_metrics_
    chance = _chance_levels(decoder)
    rows = []
    for position, fold in enumerate(metrics.index):
        for name, scores in decoder.cv_scores_.items():
            row = {"fold": fold, "test_runs": str(metrics.loc[fold, "test_runs"]), "class": str(name)}
            row |= {"score": float(scores[position]), "chance": chance.get((fold, str(name)), float("nan"))}
            row |= {"n_train": int(metrics.loc[fold, "n_train"]), "n_test": int(metrics.loc[fold, "n_test"])}
            row |= {key: values[position] for key, values in scalars(decoder.cv_params_.get(name, {})).items()}
            rows.append(row)
    return pd.DataFrame(rows)


def _chance_levels(decoder: Any) -> dict[tuple[Any, str], float]:
    """Chance level of each fold and class; of a regression only for r2, that of always giving the training samples' mean."""
    if is_regressor(decoder):
        known = decoder.cv_metrics_["chance"].items() if decoder.scoring_ == "r2" else ()
        return {(fold, str(name)): float(level) for fold, level in known for name in decoder.cv_scores_}
    truth = [(fold, group["label"].astype(str)) for fold, group in decoder.cv_predictions_.groupby("fold", sort=False)]
    names = list(map(str, decoder.cv_scores_))
    return {(fold, name): chance_level(decoder.scoring_, (labels == name).to_numpy()) for fold, labels in truth for name in names}


def _mean_sd(values: pd.Series) -> dict[str, float | None]:
    """Mean and sample standard deviation; None where they do not exist, so that JSON stays JSON."""
    return {key: None if pd.isna(value) else float(value) for key, value in (("mean", values.mean()), ("sd", values.std(ddof=1)))}


def fold_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Average :func:`score_table` over classes: one row a fold with ``test_runs``, ``score`` and ``chance``."""
    return table.groupby("fold", sort=False).agg(test_runs=("test_runs", "first"), score=("score", "mean"), chance=("chance", "mean"))


def summarize(decoder: Any) -> dict[str, Any]:
    """Give the headline of an analysis as plain values that JSON can hold.

    A regression has no classes: ``classes`` and ``class_scores`` are empty; ``r2``, ``correlation`` and ``mean_absolute_error`` stand in
    place of the accuracies.

    Parameters
    ----------
    decoder : Decoder
        Fitted.

    Returns
    -------
    dict
        ``scoring``; ``score``, ``accuracy`` and ``balanced_accuracy``, each with ``mean``, ``sd`` (sample standard deviation over folds;
        None for a single fold) and ``chance``; ``class_scores`` (mean a class); ``classes``, ``n_folds``, ``n_samples``, ``n_voxels``,
        ``subject``, ``estimator``, ``tune`` and ``optimistic``: true where hyperparameters were chosen on the fold that is scored.

    Notes
    -----
    ``score`` is the mean over classes, each against the rest, as nilearn reports it; ``accuracy`` counts a volume as right only where
    the right one of all classes was named.
    """
    table = score_table(decoder)
    folds, metrics, provenance = fold_scores(table), decoder.cv_metrics_, decoder.provenance_
    chance = _mean_sd(metrics["chance"])["mean"]
    if is_regressor(decoder):
        classes = []
        measured = {key: _mean_sd(metrics[key]) | {"chance": chance if key == "r2" else None} for key in REGRESSION_METRICS}
    else:
        classes = [str(c) for c in decoder.classes_]
        levels = {"accuracy": chance, "balanced_accuracy": 1 / len(classes)}
        measured = {key: _mean_sd(metrics[key]) | {"chance": level} for key, level in levels.items()}
    return {
        "subject": provenance.get("subject"),
        "classes": classes,
        "estimator": str(provenance.get("estimator")),
        "scoring": decoder.scoring_,
        "score": _mean_sd(folds["score"]) | {"chance": _mean_sd(folds["chance"])["mean"]},
        **measured,
        "class_scores": {str(c): _mean_sd(part["score"])["mean"] for c, part in table.groupby("class", sort=False) if classes},
        "n_folds": len(metrics),
        "n_samples": provenance.get("n_samples"),
        "n_voxels": provenance.get("n_voxels"),
        "tune": provenance.get("tune"),
        "optimistic": bool(decoder.optimistic_),
    }
