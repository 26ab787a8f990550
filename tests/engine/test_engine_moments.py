from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_selection import SelectKBest, SelectPercentile, f_classif, f_regression
from sklearn.model_selection import LeaveOneGroupOut, ShuffleSplit

from daskdecode.engine.moments import Cells, Screening, class_scores, regression_scores
from daskdecode.errors import DecodingError


def problem(seed=0, n=48, p=37, n_classes=3, n_runs=4):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p)) + rng.standard_normal(p) * 5
    classes = np.arange(n) % n_classes
    return x, classes, np.repeat(np.arange(n_runs), n // n_runs)


def splits_of(kind, x, runs):
    if kind == "run":
        return [train for train, _ in LeaveOneGroupOut().split(x, groups=runs)]
    return [np.sort(train) for train, _ in ShuffleSplit(5, test_size=0.3, random_state=1).split(x)]


@pytest.mark.parametrize("kind", ["run", "shuffle"])
def test_screening_by_subtraction_selects_what_scikit_learn_selects(kind):
    x, classes, runs = problem()
    trains = splits_of(kind, x, runs)
    cells = Cells.of(trains, classes)
    sums = cells.sums(x)
    for train in trains:
        for c in range(3):
            target = np.where(classes == c, 1, -1)
            ours = class_scores(sums, cells, train, np.stack([target > 0, target < 0]))[0]
            theirs, _ = f_classif(x[train], target[train])
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)  # tiny F values are differences of large sums
            for screening, selector in [
                (Screening(percentile=23), SelectPercentile(f_classif, percentile=23)),
                (Screening(n_features=5), SelectKBest(f_classif, k=5)),
            ]:
                selected = screening.keep(ours)
                np.testing.assert_array_equal(selected, selector.fit(x[train], target[train]).get_support())


def test_leave_one_run_out_needs_one_cell_a_run_and_class():
    x, classes, runs = problem()
    assert Cells.of(splits_of("run", x, runs), classes).counts.size == 4 * 3


def test_cells_cover_each_sample_once_and_never_straddle_a_training_set():
    x, classes, runs = problem(n=60)
    trains = splits_of("shuffle", x, runs)
    cells = Cells.of(trains, classes)
    assert cells.counts.sum() == 60
    for train in trains:
        member = np.isin(np.arange(60), train)
        np.testing.assert_array_equal(member, cells.within(train)[cells.of_sample])


@pytest.mark.parametrize("kind", ["run", "shuffle"])
@pytest.mark.parametrize("offset", [0, 500])
def test_screening_of_a_regression_selects_what_scikit_learn_selects(kind, offset):
    x, _, runs = problem()
    y = np.random.default_rng(3).standard_normal(48) + 0.3 * x[:, 4] + offset
    x[:, 7] = 3.0
    trains = splits_of(kind, x, runs)
    cells = Cells.of(trains, np.zeros(48, dtype=int), y)
    sums = cells.sums(x)
    assert sums.shape[0] == 3
    for train in trains:
        ours = regression_scores(sums, cells, train)
        theirs, _ = f_regression(x[train], y[train])
        varies = np.arange(37) != 7
        np.testing.assert_allclose(ours[varies], theirs[varies], rtol=1e-9, atol=1e-11)
        chosen = SelectPercentile(f_regression, percentile=23).fit(x[train], y[train]).get_support()
        np.testing.assert_array_equal(Screening(percentile=23).keep(ours), chosen)


def test_a_perfect_correlation_comes_first():
    x, _, runs = problem()
    train = splits_of("run", x, runs)[0]
    cells = Cells.of([train], np.zeros(48, dtype=int), -2 * x[:, 5] + 1)
    scores = regression_scores(cells.sums(x), cells, train)
    assert np.isfinite(scores).all()
    assert scores.argmax() == 5


@pytest.mark.parametrize("value", [0.0, 1234.567, 1e-9])
def test_constant_voxels_are_never_selected(value):
    """Sums of such values are not exact: what is left of their differences is rounding, and its ratios could be anything."""
    x, classes, runs = problem()
    train = splits_of("run", x, runs)[0]
    x[np.ix_(train, np.arange(3, 23))] = value * np.arange(1, 21)
    cells = Cells.of([train], classes)
    sums = cells.sums(x)
    kept = Screening(n_features=15).keep(class_scores(sums, cells, train, (classes == 1)[None])[0])
    assert not kept[3:23].any()
    assert kept.sum() == 15


def test_nothing_but_constant_voxels_is_an_error():
    classes = np.arange(12) % 2
    train = np.arange(8)
    cells = Cells.of([train], classes)
    with pytest.raises(DecodingError, match="every voxel is constant"):
        Screening(percentile=50).keep(class_scores(cells.sums(np.zeros((12, 5))), cells, train, (classes == 1)[None])[0])


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(1, 36), max_size=5), seed=st.integers(0, 5))
def test_sums_do_not_depend_on_blocks(cuts, seed):
    x, classes, runs = problem(seed)
    cells = Cells.of(splits_of("run", x, runs), classes)
    parts = [cells.sums(block) for block in np.split(x, sorted(set(cuts)), axis=1)]
    np.testing.assert_allclose(np.concatenate(parts, axis=-1), cells.sums(x), rtol=1e-12)
