from __future__ import annotations

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from daskdecode.engine.rotation import Factor


def data(n=40, p=300, centred_runs=0, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, p))
    for run in np.array_split(np.arange(n), centred_runs) if centred_runs else []:
        x[run] -= x[run].mean(axis=0)
    return x


@pytest.mark.parametrize(("p", "centred_runs", "rank"), [(300, 0, 30), (300, 4, 27), (12, 0, 12)])
def test_factor_keeps_the_inner_products_of_every_sample_with_the_training_samples(p, centred_runs, rank):
    x = data(p=p, centred_runs=centred_runs)
    train = np.arange(30)
    factor = Factor.of(x @ x.T, train)
    assert factor.z.shape == (40, rank)
    gram = x @ x.T
    np.testing.assert_allclose(factor.z[train] @ factor.z.T, gram[train], atol=1e-9 * gram.max())


@pytest.mark.parametrize("centred_runs", [0, 4])
def test_a_solver_takes_the_same_steps_on_the_factor_and_on_the_voxels(centred_runs):
    x = data(centred_runs=centred_runs)
    y = np.where(np.arange(40) % 3 == 0, 1, -1)
    train, test = np.arange(30), np.arange(30, 40)
    factor = Factor.of(x @ x.T, train)
    full = LinearSVC(dual=True, random_state=0, max_iter=10_000).fit(x[train], y[train])
    small = LinearSVC(dual=True, random_state=0, max_iter=10_000).fit(factor.z[train], y[train])
    assert small.n_iter_ == full.n_iter_
    np.testing.assert_allclose(small.decision_function(factor.z[test]), full.decision_function(x[test]), atol=1e-10)
    np.testing.assert_allclose(factor.dual(small.coef_) @ x, full.coef_, atol=1e-10 * np.abs(full.coef_).max())


def test_weights_rest_on_training_samples_only():
    x = data()
    factor = Factor.of(x @ x.T, np.arange(5, 30))
    dual = factor.dual(np.ones((1, factor.z.shape[1])))
    assert not dual[:, :5].any()
    assert not dual[:, 30:].any()


def test_no_signal_at_all_gives_one_empty_column():
    factor = Factor.of(np.zeros((6, 6)), np.arange(4))
    assert factor.z.shape == (6, 1)
    assert not factor.z.any()
    assert not factor.dual(np.ones((2, 1))).any()
