from __future__ import annotations

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from daskdecode.engine.squared_hinge import decide_squared_hinge, is_squared_hinge


def problem(p, n_vectors=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, 10, p))
    targets = np.where(rng.random((50, n_vectors)) < 0.4, 1.0, -1.0)
    x = (x - x.mean(axis=1, keepdims=True)).reshape(50, p)
    x[:, :5] += 0.6 * targets[:, :1]
    return x, targets


@pytest.mark.parametrize("p", [6, 80, 400])
def test_decisions_are_those_of_scikit_learn(p):
    x, targets = problem(p)
    train, test = np.arange(40), np.arange(40, 50)
    found = decide_squared_hinge(x @ x.T, train, targets, test, [0.01, 0.03])
    for c, cost in enumerate([0.01, 0.03]):
        for v in range(targets.shape[1]):
            theirs = LinearSVC(C=cost, dual=True, tol=1e-7, max_iter=10**6, random_state=0).fit(x[train], targets[train, v])
            np.testing.assert_allclose(found[c, :, v], theirs.decision_function(x[test]), atol=1e-6)


@pytest.mark.parametrize("p", [6, 30, 80, 400])
@pytest.mark.parametrize("cost", [1e-4, 1e-2, 1.0, 100.0])
def test_the_minimum_of_the_loss_is_reached(p, cost):
    """Decisions on a basis of the voxels give the weights; the loss is strictly convex, so where its gradient is 0 is its minimum."""
    x, targets = problem(p)
    full = np.vstack([x, np.eye(p), np.zeros((1, p))])
    padded = np.vstack([targets, np.ones((p + 1, targets.shape[1]))])
    found = decide_squared_hinge(full @ full.T, np.arange(50), padded, np.arange(50, 51 + p), [cost])[0]
    solved = np.flatnonzero(np.isfinite(found).all(axis=0))
    # In fewer dimensions than samples the steps may go round in circles, which is said.
    assert solved.size == targets.shape[1] or (p < 50 and solved.size > 2)
    for v in solved:
        b, y = found[-1, v], targets[:, v]
        w = found[:-1, v] - b
        slack = 2 * cost * np.maximum(0, 1 - y * (x @ w + b)) * y
        np.testing.assert_allclose(w, slack @ x, rtol=0, atol=1e-6 * np.abs(w).max())
        assert b == pytest.approx(slack.sum(), rel=1e-6, abs=1e-8)


def test_some_samples_are_no_support_vectors_in_these_tests():
    x, targets = problem(80)
    beta = np.linalg.solve(x @ x.T + 1 + 50 * np.eye(50), targets)
    assert ((beta * targets) < 0).any(axis=0).sum() >= 2


@pytest.mark.parametrize(
    ("model", "known"),
    [
        (LinearSVC(), True),
        (LinearSVC(dual=False), True),
        (LinearSVC(loss="hinge"), False),
        (LinearSVC(class_weight="balanced"), False),
        (LinearSVC(fit_intercept=False), False),
        (LinearSVC(intercept_scaling=2), False),
        (LinearSVC(penalty="l1", dual=False), False),
    ],
)
def test_what_is_known(model, known):
    assert is_squared_hinge(model) == known
