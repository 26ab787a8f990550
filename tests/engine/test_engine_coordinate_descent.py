from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from daskdecode.engine.coordinate_descent import can_solve, fit_dual


def problem(n=60, p=200, share=0.4, signal=0.3, seed=0):
    rng = np.random.default_rng(seed)
    target = np.where(rng.permutation(n) < share * n, 1, -1)
    x = rng.standard_normal((n, p))
    x[:, :10] += signal * target[:, None]
    return x, target


def assert_same(x, target, **settings_of_model):
    model = LinearSVC(dual=True, max_iter=10_000, **{"random_state": 0} | settings_of_model)
    assert can_solve(model)
    ours = fit_dual(x @ x.T, np.arange(target.size), target, [model])[0]
    theirs = model.fit(x, target)
    assert ours.n_iter == theirs.n_iter_
    np.testing.assert_allclose(ours.beta @ x, theirs.coef_[0], atol=1e-10 * np.abs(theirs.coef_).max())
    assert ours.intercept == pytest.approx(theirs.intercept_[0], abs=1e-10)


@pytest.mark.parametrize("cost", [1e-5, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
def test_the_steps_of_liblinear(cost, loss):
    assert_same(*problem(), C=cost, loss=loss)


@pytest.mark.parametrize("options", [{"class_weight": "balanced"}, {"class_weight": {-1: 3, 1: 0.5}}, {"random_state": 7}, {"tol": 1e-8}])
def test_the_settings_of_liblinear(options):
    assert_same(*problem(share=0.15), **options)


@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced"}, {"loss": "hinge"}])
def test_the_sample_weights_of_liblinear(options):
    x, target = problem(share=0.3)
    weight = np.random.default_rng(1).uniform(0.1, 3, target.size)
    weight[::7] = 0
    model = LinearSVC(dual=True, max_iter=10_000, random_state=0, C=0.5, **options)
    ours = fit_dual(x @ x.T, np.arange(target.size), target, [model], weight)[0]
    theirs = model.fit(x, target, sample_weight=weight)
    assert ours.n_iter == theirs.n_iter_
    assert not ours.beta[::7].any()
    np.testing.assert_allclose(ours.beta @ x, theirs.coef_[0], atol=1e-10 * np.abs(theirs.coef_).max())


def rotations(x, n=12):
    yield x[:, ::-1]
    for seed in range(n):
        yield x @ np.linalg.qr(np.random.default_rng(seed).standard_normal((x.shape[1], x.shape[1])))[0]


@settings(deadline=None, max_examples=25)
@example(n=6, p=6, signal=2.0, seed=5)
@given(n=st.integers(6, 60), p=st.integers(3, 60), signal=st.floats(0, 2), seed=st.integers(0, 1000))
def test_the_steps_of_liblinear_on_any_problem(n, p, signal, seed):
    """Where the last bit decides a tie, liblinear itself goes either way when the columns are reversed or rotated; so may ours."""
    x, target = problem(n, p, signal=signal, seed=seed)
    model = LinearSVC(dual=True, C=0.1, max_iter=10_000, random_state=0)
    ours = fit_dual(x @ x.T, np.arange(n), target, [model])[0]
    if ours.n_iter == model.fit(x, target).n_iter_:
        np.testing.assert_allclose(ours.beta @ x, model.coef_[0], atol=1e-9 * np.abs(model.coef_).max())
    else:
        assert ours.n_iter in {model.fit(turned, target).n_iter_ for turned in rotations(x)}


def test_a_fit_that_does_not_converge_stops_where_liblinear_stops():
    x, target = problem(p=5, signal=0)
    model = LinearSVC(dual=True, C=100, max_iter=3, random_state=0)
    assert fit_dual(x @ x.T, np.arange(target.size), target, [model])[0].n_iter == 3


def test_fits_that_overlap_in_threads_do_not_disturb_each_other():
    x, target = problem(200, 400)
    gram, model = x @ x.T, LinearSVC(dual=True, C=1.0, random_state=0)
    every = np.arange(200)
    alone = fit_dual(gram, every, target, [model])[0]
    with ThreadPoolExecutor(4) as pool:
        for fit in pool.map(lambda _: fit_dual(gram, every, target, [model])[0], range(16)):
            np.testing.assert_array_equal(fit.beta, alone.beta)


@pytest.mark.parametrize("options", [{"dual": False}, {"fit_intercept": False}, {"intercept_scaling": 2.0}])
def test_what_is_left_to_scikit_learn(options):
    assert not can_solve(LinearSVC(**{"dual": True} | options))
