"""Scaling and confounds learnt inside each training set, against the same written out with scikit-learn on the voxels."""

from __future__ import annotations

import warnings
from functools import partial

import dask
import dask.array as da
import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LinearRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from daskdecode.engine.crossval import cross_validate
from daskdecode.engine.design import Design, training_sets
from daskdecode.engine.moments import Cells, Screening
from daskdecode.engine.plan import Workload, make_plan
from daskdecode.engine.registry import CLASSIFIERS
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.engine.within_fold import WithinFold, means_and_scales, shifted

GRID = [1e-3, 1e-2, 1.0]
N, P, RUNS = 48, 150, np.repeat(np.arange(4), 12)


class Clean(TransformerMixin, BaseEstimator):
    """Regress the last k columns out of the others."""

    def __init__(self, k=0):
        self.k = k

    def fit(self, X, y=None):
        x, c = X[:, : X.shape[1] - self.k], X[:, X.shape[1] - self.k :]
        self.center_ = c.mean(axis=0)
        self.slopes_ = LinearRegression().fit(c, x).coef_.T if self.k else np.zeros((0, x.shape[1]))
        return self

    def transform(self, X):
        return X[:, : X.shape[1] - self.k] - (X[:, X.shape[1] - self.k :] - self.center_) @ self.slopes_


def problem(n_confounds, seed=1):
    """Raw signals: means of thousands, standard deviations from 1 to 50, confounds that go with the classes, in float32."""
    rng = np.random.default_rng(seed)
    classes = np.tile([0, 1], N // 2)
    units = np.array([1, 100, 0.01])[:n_confounds]
    confounds = (rng.standard_normal((N, n_confounds)) + 0.5 * classes[:, None]) * units + 5
    x = rng.standard_normal((N, P)) + confounds / units @ rng.standard_normal((n_confounds, P))
    x[:, :10] += 0.5 * rng.standard_normal((2, 10))[classes]
    x = x * np.geomspace(1, 50, P) + 10_000
    if not n_confounds:  # the residuals of such voxels are rounding, from which scikit-learn takes F and scales
        x[:, 5], x[:, 77] = 3.25, np.where(RUNS == 0, 4000.0, 7.0)  # constant; constant where run 0 does not train
    return x.astype(np.float32), classes, confounds


def folds(within):
    return [(within[a], within[b]) for a, b in LeaveOneGroupOut().split(within, groups=RUNS[within])]


def run(x, classes, confounds, *, scale, k, budget="1GB", chunk=16, read=None, nested=True, in_memory=True, engine="auto"):
    outer = folds(np.arange(N))
    design = Design(
        classes=classes,
        targets=np.where(classes == 1, 1, -1)[None],
        outer=outer,
        inner=[folds(train) for train, _ in outer] if nested else None,
        candidates=[{"C": c} for c in GRID],
        build=partial(CLASSIFIERS["svc"].build),
        scorer=get_scorer("roc_auc"),
        screening=None if k is None else Screening(n_features=k),
        voxel_order=np.arange(P),
        within=WithinFold(scale, confounds),
    )
    lazy = da.from_array(x, chunks=(N, chunk))
    if read is not None:
        lazy = lazy.map_blocks(read, dtype=x.dtype, meta=np.empty((0, 0), dtype=x.dtype))
    blocks = VoxelBlocks(lazy, N * 8 * 32)
    sets = training_sets(design)
    work = Workload(
        n_samples=N,
        n_voxels=P,
        itemsize=4,
        n_kept=k or P,
        n_training_sets=len(sets),
        n_folds=4,
        n_classes=1,
        n_candidates=3,
        n_cells=0 if k is None else Cells.of([s.train for s in sets], classes).counts.size,
        n_blocks=blocks.n_blocks,
        block_voxels=blocks.widest,
        scaled=scale,
        n_confounds=confounds.shape[1],
        engine=engine,
    )
    plan = make_plan(work, budget)
    return cross_validate(blocks.keep() if in_memory else blocks, design, plan)[0], plan


def by_scikit_learn(x, classes, confounds, scale, k):
    y, both, k_kept = np.where(classes == 1, 1, -1), np.hstack([x.astype(np.float64), confounds]), k or P
    found = []
    for train, test in folds(np.arange(N)):
        svc = LinearSVC(max_iter=10_000, random_state=0)
        steps = [Clean(confounds.shape[1]), *([StandardScaler()] if scale else []), SelectKBest(f_classif, k=k or "all"), svc]
        pipe = make_pipeline(*steps)
        inner = GridSearchCV(pipe, {"linearsvc__C": GRID}, cv=LeaveOneGroupOut(), scoring="roc_auc", refit=False)
        svc.set_params(dual=k_kept > 2 * N // 4)
        inner.fit(both[train], y[train], groups=RUNS[train])
        svc.set_params(dual=train.size < k_kept)
        means = inner.cv_results_["mean_test_score"]
        pick = int(np.argmax(means >= means.max() - 1e-12))  # of a tie the first, which rounding must not decide
        best = pipe.set_params(linearsvc__C=GRID[pick]).fit(both[train], y[train])
        coef = np.zeros(P)
        coef[best[-2].get_support()] = best[-1].coef_[0]
        coef /= best[1].scale_ if scale else 1
        slopes = -best[0].slopes_ @ coef
        # What the pipeline says of samples at 0, so that the parts add up to its decision for any sample.
        intercept = best.decision_function(both[train[:1]])[0] - both[train[0]] @ np.r_[coef, slopes]
        found.append((get_scorer("roc_auc")(best, both[test], y[test]), pick, coef, slopes, intercept, best, both))
    return found


@pytest.mark.filterwarnings("ignore:Features .* are constant:UserWarning", "ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(("k", "route"), [(None, "gram"), (60, "gram"), (20, "columns")])
@pytest.mark.parametrize(("scale", "n_confounds"), [(True, 0), (True, 3), (False, 3)])
def test_nested_cross_validation_equals_a_pipeline(k, route, scale, n_confounds):
    x, classes, confounds = problem(n_confounds)
    if not scale:  # svc on raw signals does not converge; what is removed from voxels of mean 0 is what is tested
        x = ((x - x.mean(axis=0)) / np.geomspace(1, 50, P)).astype(np.float32)
    found, plan = run(x, classes, confounds, scale=scale, k=k)
    assert plan.route == route
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = by_scikit_learn(x, classes, confounds, scale, k)
    scores, chosen, coef, slopes, intercept, *_ = map(list, zip(*expected, strict=True))
    np.testing.assert_array_equal(found.scores[:, 0], scores)
    np.testing.assert_array_equal(found.chosen[:, 0], chosen)
    largest = np.abs(coef).max()
    np.testing.assert_allclose(found.coef[0], np.mean(coef, axis=0), atol=1e-8 * largest)
    np.testing.assert_allclose(found.std_coef[0], np.std(coef, axis=0), atol=1e-8 * largest)
    np.testing.assert_allclose(found.slopes[0], np.mean(slopes, axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.intercepts[:, 0], intercept, rtol=1e-7, atol=1e-7)
    for f, (*_, pipe, both) in enumerate(expected):
        np.testing.assert_allclose(found.decision[f, 0], pipe.decision_function(both), rtol=1e-7, atol=1e-7)
    if not n_confounds:
        assert found.coef[0, 5] == 0


@pytest.mark.parametrize(("scale", "n_confounds"), [(True, 0), (True, 3), (False, 3)])
@pytest.mark.parametrize("k", [None, 60, 20])
def test_streaming_small_batches_and_the_other_route_change_nothing(k, scale, n_confounds):
    x, classes, confounds = problem(n_confounds)
    x = x if scale else x - 10_000
    whole, plan = run(x, classes, confounds, scale=scale, k=k)
    tight, tight_plan = run(
        x, classes, confounds, scale=scale, k=k, chunk=7, in_memory=False, budget=smallest(x, classes, confounds, scale, k)
    )
    assert tight_plan.batch <= plan.batch
    other, _ = run(x, classes, confounds, scale=scale, k=k, engine="dual" if plan.route == "columns" else "direct")
    for name in ("scores", "chosen", "intercepts", "decision", "coef", "std_coef", "slopes", "pattern"):
        size = np.abs(getattr(whole, name)).max(initial=0) * 1e-9
        np.testing.assert_allclose(getattr(tight, name), getattr(whole, name), atol=size, err_msg=name)
        if scale:  # svc on raw signals does not converge
            np.testing.assert_allclose(getattr(other, name), getattr(whole, name), atol=size * 1e3, err_msg=name)


def smallest(x, classes, confounds, scale, k):
    from daskdecode.errors import MemoryBudgetError

    for budget in range(100_000, 10**7, 20_000):
        try:
            run(x, classes, confounds, scale=scale, k=k, budget=budget, nested=False)
        except MemoryBudgetError:
            continue
        return 3 * budget
    raise AssertionError


@pytest.mark.parametrize(("k", "passes"), [(None, 2), (60, 3)])
def test_data_are_read_as_often_as_without_scaling(k, passes):
    x, classes, confounds = problem(3)
    reads = []

    def count(block):
        reads.append(block.shape)
        return block

    with dask.config.set(scheduler="synchronous"):
        run(x, classes, confounds, scale=True, k=k, read=count, chunk=30, in_memory=False)
        assert len(reads) == 5 * passes
        run(x, classes, confounds, scale=True, k=k, read=count, chunk=30)
        assert len(reads) == 5 * passes + 5


def test_means_and_scales_are_those_of_standard_scaler_where_sums_of_squares_would_fail():
    rng = np.random.default_rng(3)
    x = (1e6 + rng.standard_normal((N, 40)) * np.geomspace(0.3, 30, 40)).astype(np.float32)
    x[:, 0] = 0.1
    x[:40, 1] = x[0, 1]
    within = WithinFold(True, np.zeros((N, 0)))
    lessons = [within.learn(train) for train in (np.arange(40), np.arange(10, 48))]
    cells = Cells.of([lesson.train for lesson in lessons], np.zeros(N, dtype=np.intp))
    means, scales = means_and_scales(*shifted(x), lessons, cells)
    for row, lesson in enumerate(lessons):
        scaler = StandardScaler().fit(x[lesson.train].astype(np.float64))
        np.testing.assert_allclose(means[row], scaler.mean_, rtol=1e-14)
        np.testing.assert_allclose(scales[row], scaler.scale_, rtol=1e-11)
    assert scales[0, 1] == 1.0 != scales[1, 1]


@pytest.mark.parametrize("k", [None, 60])
def test_voxels_that_confounds_explain_carry_nothing(k):
    x, classes, confounds = problem(3)
    x = x.astype(np.float64)
    x[:, 20] = 50 + confounds @ [1.0, 0.5, 20.0]
    x[:, 21] = 0.1
    found, _ = run(x, classes, confounds, scale=True, k=k)
    direct, _ = run(x, classes, confounds, scale=True, k=k, engine="direct")
    x[:, 20:22] = 0
    without, _ = run(x, classes, confounds, scale=True, k=k)
    np.testing.assert_allclose(found.decision, without.decision, atol=1e-6)
    np.testing.assert_allclose(direct.decision, without.decision, atol=1e-6)


def test_redundant_confounds_and_those_that_do_not_vary_in_training_are_left_alone():
    rng = np.random.default_rng(0)
    confounds = np.column_stack([rng.standard_normal(N), np.zeros(N), np.ones(N)])
    confounds[:, 1], doubled = 2 * confounds[:, 0] + 3, np.zeros(N)
    doubled[45] = 1.0  # a spike outside the training samples
    train = np.arange(36)
    lesson = WithinFold(False, np.column_stack([confounds, doubled])).learn(train)
    alone = WithinFold(False, confounds[:, :1]).learn(train)
    assert lesson.basis.shape == (36, 1)
    gram = np.cov(rng.standard_normal((N, 60)))
    np.testing.assert_allclose(lesson.on_gram(gram), alone.on_gram(gram), atol=1e-12)
