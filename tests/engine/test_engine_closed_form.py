from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV, RidgeCV

from daskdecode.engine.closed_form import RIDGE_ALPHAS, RidgePath, closed_form
from daskdecode.engine.discriminant import Discriminant
from daskdecode.engine.spectrum import Spectrum


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
    decision, chosen = RidgePath.of(Spectrum.of(x @ x.T, train)).decide(targets, test)
    assert len(set(chosen.tolist())) > 1
    for v in range(targets.shape[1]):
        theirs = RidgeClassifierCV(alphas=np.geomspace(1e-3, 1e4, 8)).fit(x[train], targets[train, v])
        assert RIDGE_ALPHAS[chosen[v]] == theirs.alpha_
        np.testing.assert_allclose(decision[:, v], theirs.decision_function(x[test]), atol=1e-8)


def test_left_out_errors_are_those_of_leaving_out():
    from sklearn.linear_model import Ridge

    x, targets, _ = problem(n=12, p=30, n_vectors=1)
    train = np.arange(12)
    path = RidgePath.of(Spectrum.of(x @ x.T, train), np.array([3.0]))
    y = targets[:, 0]
    a = path.spectrum.vectors @ ((path.spectrum.vectors.T @ (y - y.mean())) / (path.spectrum.values + 3.0))
    expected = [y[i] - Ridge(alpha=3.0).fit(np.delete(x, i, 0), np.delete(y, i)).predict(x[[i]])[0] for i in train]
    np.testing.assert_allclose(a / path.left_out[0], expected, rtol=1e-9)


def test_label_vectors_do_not_see_each_other():
    x, targets, runs = problem()
    path = RidgePath.of(Spectrum.of(x @ x.T, np.flatnonzero(runs != 0)))
    together, _ = path.decide(targets, np.flatnonzero(runs == 0))
    alone = [path.decide(targets[:, [v]], np.flatnonzero(runs == 0))[0][:, 0] for v in range(7)]
    np.testing.assert_allclose(together, np.stack(alone, axis=1), atol=1e-12)


def test_values_are_predicted_as_by_ridge_cv():
    x, _, runs = problem()
    rng = np.random.default_rng(1)
    values = x[:, :4] @ rng.standard_normal((4, 6)) * rng.uniform(0, 2, 6) + 5 * rng.standard_normal((45, 6))
    train, test = np.flatnonzero(runs != 2), np.flatnonzero(runs == 2)
    predicted, chosen = RidgePath.of(Spectrum.of(x @ x.T, train)).decide(values, test)
    for v in range(6):
        theirs = RidgeCV(alphas=np.geomspace(1e-3, 1e4, 8)).fit(x[train], values[train, v])
        assert RIDGE_ALPHAS[chosen[v]] == theirs.alpha_
        np.testing.assert_allclose(predicted[:, v], theirs.predict(x[test]), rtol=1e-8)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (RidgeClassifierCV(), True),
        (RidgeClassifierCV(alphas=2.0), True),
        (RidgeCV(), True),
        (RidgeClassifierCV(class_weight="balanced"), False),
        (RidgeClassifierCV(cv=3), False),
        (RidgeCV(scoring="r2"), False),
        (RidgeCV(fit_intercept=False), False),
        (Discriminant(solver="lsqr", shrinkage=0.2), True),
        (Discriminant(solver="eigen", shrinkage=1), True),
        (Discriminant(solver="lsqr", shrinkage="auto"), False),
        (Discriminant(solver="lsqr", shrinkage=0), False),
        (Discriminant(solver="lsqr"), False),
        (Discriminant(solver="lsqr", shrinkage=0.2, priors=[0.3, 0.7]), False),
    ],
)
def test_what_has_a_closed_form(model, found):
    assert (closed_form([model], 60) is not None) == found
    assert closed_form([model, RidgeClassifierCV(cv=3)], 60) is None
