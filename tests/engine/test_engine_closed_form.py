from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import accuracy_score, roc_auc_score

from daskdecode.engine.closed_form import RIDGE_ALPHAS, RidgePath, judge_accuracy, judge_auc


def problem(n=45, p=300, n_vectors=7, by_run=False, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p)) * 2 + rng.standard_normal(p)
    runs = np.arange(n) % 5
    if by_run:
        for run in range(5):
            x[runs == run] -= x[runs == run].mean(axis=0)
    targets = np.where(rng.random((n, n_vectors)) < 0.4, 1.0, -1.0)
    x[:, :5] += 0.8 * targets[:, :1]
    return x, targets, runs


@pytest.mark.parametrize(("p", "by_run"), [(300, False), (300, True), (20, False), (20, True), (44, False)])
def test_predictions_and_alphas_equal_ridge_classifier_cv(p, by_run):
    x, targets, runs = problem(p=p, by_run=by_run)
    train, test = np.flatnonzero(runs != 2), np.flatnonzero(runs == 2)
    decision, chosen = RidgePath.of(x @ x.T, train).decide(targets, test)
    assert len(set(chosen.tolist())) > 1
    for v in range(targets.shape[1]):
        theirs = RidgeClassifierCV(alphas=np.geomspace(1e-3, 1e4, 8)).fit(x[train], targets[train, v])
        assert RIDGE_ALPHAS[chosen[v]] == theirs.alpha_
        np.testing.assert_allclose(decision[:, v], theirs.decision_function(x[test]), atol=1e-8)


def test_left_out_errors_are_those_of_leaving_out():
    from sklearn.linear_model import Ridge

    x, targets, _ = problem(n=12, p=30, n_vectors=1)
    train = np.arange(12)
    path = RidgePath.of(x @ x.T, train, np.array([3.0]))
    y = targets[:, 0]
    a = path.vectors @ ((path.vectors.T @ (y - y.mean())) / (path.values + 3.0))
    expected = [y[i] - Ridge(alpha=3.0).fit(np.delete(x, i, 0), np.delete(y, i)).predict(x[[i]])[0] for i in train]
    np.testing.assert_allclose(a / path.left_out[0], expected, rtol=1e-9)


def test_label_vectors_do_not_see_each_other():
    x, targets, runs = problem()
    path = RidgePath.of(x @ x.T, np.flatnonzero(runs != 0))
    together, _ = path.decide(targets, np.flatnonzero(runs == 0))
    alone = [path.decide(targets[:, [v]], np.flatnonzero(runs == 0))[0][:, 0] for v in range(7)]
    np.testing.assert_allclose(together, np.stack(alone, axis=1), atol=1e-12)


def test_judges_equal_scikit_learn_also_with_ties():
    rng = np.random.default_rng(0)
    decision = np.round(rng.standard_normal((15, 40)), 1)
    truth = np.where(rng.random((15, 40)) < 0.5, 1.0, -1.0)
    truth[:, 0] = 1.0
    assert np.isnan(judge_auc(decision, truth)[0])
    np.testing.assert_allclose(judge_auc(decision, truth)[1:], [roc_auc_score(truth[:, v], decision[:, v]) for v in range(1, 40)])
    expected = [accuracy_score(truth[:, v], np.where(decision[:, v] > 0, 1, -1)) for v in range(40)]
    np.testing.assert_allclose(judge_accuracy(decision, truth), expected)
