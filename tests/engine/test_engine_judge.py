from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    get_scorer,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)

from daskdecode.engine.judge import judge_accuracy, judge_auc, judge_of, judge_r2


def decisions():
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((15, 40)) < 0.5, 1, -1)
    return np.round(rng.standard_normal((15, 40)), 1), truth


def test_judges_equal_scikit_learn_also_with_ties():
    decision, truth = decisions()
    truth[:, 0] = 1
    assert np.isnan(judge_auc(decision, truth)[0])
    np.testing.assert_allclose(judge_auc(decision, truth)[1:], [roc_auc_score(truth[:, v], decision[:, v]) for v in range(1, 40)])
    expected = [accuracy_score(truth[:, v], np.where(decision[:, v] > 0, 1, -1)) for v in range(40)]
    np.testing.assert_allclose(judge_accuracy(decision, truth), expected)


def test_shares_of_variance_equal_scikit_learn_also_of_constants():
    rng = np.random.default_rng(0)
    truth, predicted = rng.standard_normal((7, 5)), rng.standard_normal((7, 5))
    truth[:, 1:3] = 2.0
    predicted[:, 2] = 2.0
    np.testing.assert_allclose(judge_r2(predicted, truth), [r2_score(truth[:, v], predicted[:, v]) for v in range(5)])
    assert np.isnan(judge_r2(predicted[:1], truth[:1])).all()


@pytest.mark.parametrize(
    ("scoring", "metric"), [("average_precision", average_precision_score), (None, roc_auc_score), ("roc_auc", roc_auc_score)]
)
def test_any_scorer_judges_decisions(scoring, metric):
    decision, truth = decisions()
    judge = judge_of(scoring, get_scorer(scoring or "roc_auc"), classes=True)
    np.testing.assert_allclose(judge(decision, truth), [metric(t, d) for d, t in zip(decision.T, truth.T, strict=True)])


@pytest.mark.parametrize("scoring", [None, "r2", "neg_mean_absolute_error", get_scorer("neg_mean_absolute_error")])
def test_any_scorer_judges_predictions(scoring):
    rng = np.random.default_rng(0)
    predicted, truth = rng.standard_normal((9, 4)), rng.standard_normal((9, 4))
    judge = judge_of(scoring, get_scorer(scoring or "r2"), classes=False)
    metric = r2_score if scoring in (None, "r2") else lambda t, d: -mean_absolute_error(t, d)
    np.testing.assert_allclose(judge(predicted, truth), [metric(t, d) for d, t in zip(predicted.T, truth.T, strict=True)])
