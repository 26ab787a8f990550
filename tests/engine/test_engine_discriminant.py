from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from daskdecode.engine.discriminant import Discriminant, decide_discriminants, ledoit_wolf_amount
from daskdecode.engine.rotation import Factor
from daskdecode.engine.spectrum import Spectrum


def problem(n=50, p=300, seed=0):
    """Unequal classes, voxels of unequal variance around unequal means, one of them constant."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p)) * rng.uniform(0.5, 3, p) + 4 * rng.standard_normal(p)
    y = rng.permutation(np.repeat([-1, 1], [n // 3, n - n // 3]))
    x[y > 0, : p // 10] += 0.7
    x[:, -1] = 3.0
    return x, y


@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
@pytest.mark.parametrize("shrinkage", ["auto", 0.05, 0.3, 1.0, 1])
def test_the_same_numbers_as_scikit_learn_without_a_covariance_of_voxels(solver, shrinkage):
    x, y = problem()
    theirs = LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage).fit(x, y)
    ours = Discriminant(solver=solver, shrinkage=shrinkage).fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=0, atol=1e-9 * np.abs(theirs.coef_).max())
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-9)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-9)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    assert not hasattr(ours, "covariance_")


def test_what_has_no_small_form_is_left_to_scikit_learn():
    x, y = problem(p=20)
    for options in (
        {},
        {"solver": "lsqr"},
        {"solver": "lsqr", "shrinkage": 0.1, "priors": [0.2, 0.8]},
        {"solver": "lsqr", "shrinkage": "auto"},
    ):
        np.testing.assert_array_equal(Discriminant(**options).fit(x, y).coef_, LinearDiscriminantAnalysis(**options).fit(x, y).coef_)
    x, _ = problem(p=120)
    three = np.arange(50) % 3
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, three)
    np.testing.assert_array_equal(Discriminant(solver="lsqr", shrinkage="auto").fit(x, three).coef_, theirs.coef_)


def test_forty_thousand_voxels_take_no_more_memory_than_the_samples():
    import tracemalloc

    x = np.random.default_rng(0).standard_normal((40, 40_000))
    y = np.tile([-1, 1], 20)
    tracemalloc.start()
    Discriminant(solver="lsqr", shrinkage="auto").fit(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * x.nbytes


@pytest.mark.parametrize("shape", [(30, 200), (30, 1500), (40, 25)])
def test_ledoit_wolf_in_n_by_n(shape):
    x = np.random.default_rng(0).standard_normal(shape) * np.linspace(0.5, 2, shape[1])
    centred = x - x.mean(axis=0)
    amount, mean_variance = ledoit_wolf_amount(centred)
    assert amount == pytest.approx(ledoit_wolf_shrinkage(x), rel=1e-10)
    assert mean_variance == pytest.approx(np.square(centred).mean(), rel=1e-12)


@pytest.mark.parametrize("shrinkage", [0.05, 0.4, 1.0])
def test_a_factor_stands_for_the_voxels(shrinkage):
    x, y = problem(p=400)
    train, test = np.arange(38), np.arange(38, 50)
    gram = x @ x.T
    factor = Factor.of(gram, train)
    ours = Discriminant(solver="lsqr", shrinkage=shrinkage, n_voxels=400).fit(factor.z[train], y[train])
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x[train], y[train])
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(factor.dual(ours.coef_) @ x, theirs.coef_, rtol=0, atol=1e-9 * scale)
    expected = theirs.decision_function(x[test])
    np.testing.assert_allclose(ours.decision_function(factor.z[test]), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize(("n", "p", "by_run"), [(50, 300, False), (50, 300, True), (50, 12, False)])
def test_many_label_vectors_from_one_decomposition(n, p, by_run):
    x, _ = problem(n, p)
    rng = np.random.default_rng(3)
    if by_run:  # the training samples then span fewer directions than there are
        x = np.concatenate([part - part.mean(axis=0) for part in np.split(x, 5)])
    targets = np.where(rng.random((n, 6)) < [0.2, 0.4, 0.5, 0.5, 0.6, 0.8], 1.0, -1.0)
    train, test = np.arange(40), np.arange(40, 50)
    found = decide_discriminants(Spectrum.of(x @ x.T, train), targets, test, [0.1, 1.0], p)
    for s, shrinkage in enumerate([0.1, 1.0]):
        for v in range(6):
            theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x[train], targets[train, v])
            expected = theirs.decision_function(x[test])
            np.testing.assert_allclose(found[s, :, v], expected, rtol=0, atol=1e-9 * np.abs(expected).max())
