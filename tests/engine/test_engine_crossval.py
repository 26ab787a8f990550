from __future__ import annotations

from functools import partial

import dask
import dask.array as da
import numpy as np
import pytest
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from daskdecode.engine.crossval import cross_validate
from daskdecode.engine.design import Design, training_sets
from daskdecode.engine.moments import Cells, Screening
from daskdecode.engine.plan import Workload, make_plan
from daskdecode.engine.registry import CLASSIFIERS
from daskdecode.engine.sweep import VoxelBlocks

CANDIDATES = [{"C": 1e-3}, {"C": 1e-2}, {"C": 1.0}]
N_RUNS = 4


def problem(n_voxels=70, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    classes = np.tile(np.arange(n_classes), 48 // n_classes)
    x = rng.standard_normal((48, n_voxels))
    x[:, :10] += 0.5 * rng.standard_normal((n_classes, 10))[classes]
    return x, classes, np.repeat(np.arange(N_RUNS), 48 // N_RUNS)


def leave_one_run_out(runs, within=None):
    within = np.arange(runs.size) if within is None else within
    return [(within[a], within[b]) for a, b in LeaveOneGroupOut().split(within, groups=runs[within])]


def design_of(classes, runs, screening, nested, n_voxels):
    n_classes = classes.max() + 1
    targets = np.stack([np.where(classes == c, 1, -1) for c in ([1] if n_classes == 2 else range(n_classes))])
    outer = leave_one_run_out(runs)
    return Design(
        classes=classes,
        targets=targets,
        outer=outer,
        inner=[leave_one_run_out(runs, train) for train, _ in outer] if nested else None,
        candidates=CANDIDATES,
        build=partial(CLASSIFIERS["svc"].build),
        scorer=get_scorer("roc_auc"),
        screening=screening,
        voxel_order=np.arange(n_voxels),
    )


def run(x, design, budget="1GB", chunk=16, block_nbytes=48 * 8 * 32):
    blocks = VoxelBlocks(da.from_array(x, chunks=(48, chunk)), block_nbytes)
    sets = training_sets(design)
    screening = design.screening
    work = Workload(
        n_samples=48,
        n_voxels=x.shape[1],
        itemsize=8,
        n_kept=x.shape[1] if screening is None else screening.n_kept(x.shape[1]),
        n_training_sets=len(sets),
        n_folds=len(design.outer),
        n_classes=len(design.targets),
        n_candidates=3,
        n_cells=0 if screening is None else Cells.of([s.train for s in sets], design.classes).counts.size,
        n_blocks=blocks.n_blocks,
        block_voxels=blocks.widest,
    )
    plan = make_plan(work, budget)
    return cross_validate(blocks, design, plan)[0], plan


def by_scikit_learn(x, classes, runs, k):
    """Nested leave-one-run-out with screening inside, written with scikit-learn alone: binary scores, choices and mean coefficients."""
    y = np.where(classes == 1, 1, -1)
    scores, chosen, coefs = [], [], []
    for train, test in LeaveOneGroupOut().split(x, y, runs):
        svc = LinearSVC(dual=train.size < (k or x.shape[1]), max_iter=10_000, random_state=0)
        pipe = make_pipeline(SelectKBest(f_classif, k=k or "all"), svc)
        grid = {"linearsvc__C": [p["C"] for p in CANDIDATES]}
        inner_train = train.size - train.size // 3
        svc.set_params(dual=inner_train < (k or x.shape[1]))
        search = GridSearchCV(pipe, grid, cv=LeaveOneGroupOut(), scoring="roc_auc", refit=False)
        search.fit(x[train], y[train], groups=runs[train])
        svc.set_params(dual=train.size < (k or x.shape[1]))
        best = pipe.set_params(**search.best_params_).fit(x[train], y[train])
        scores.append(get_scorer("roc_auc")(best, x[test], y[test]))
        chosen.append(search.best_index_)
        coef = np.zeros(x.shape[1])
        coef[best[0].get_support()] = best[1].coef_[0]
        coefs.append(coef)
    return np.array(scores), np.array(chosen), np.mean(coefs, axis=0), np.std(coefs, axis=0)


@pytest.mark.parametrize(("n_voxels", "k", "route"), [(70, None, "gram"), (150, 60, "gram"), (150, 20, "columns"), (30, None, "columns")])
def test_nested_cross_validation_equals_scikit_learn_written_out(n_voxels, k, route):
    x, classes, runs = problem(n_voxels)
    found, plan = run(x, design_of(classes, runs, None if k is None else Screening(n_features=k), True, n_voxels))
    assert plan.route == route
    scores, chosen, coef, std = by_scikit_learn(x, classes, runs, k)
    np.testing.assert_allclose(found.scores[:, 0], scores, rtol=1e-12)
    np.testing.assert_array_equal(found.chosen[:, 0], chosen)
    np.testing.assert_allclose(found.coef[0], coef, atol=1e-9 * np.abs(coef).max())
    np.testing.assert_allclose(found.std_coef[0], std, atol=1e-9 * np.abs(coef).max())


def test_pairs_of_runs_share_their_training_set():
    x, classes, runs = problem()
    sets = training_sets(design_of(classes, runs, None, True, x.shape[1]))
    assert len(sets) == N_RUNS + N_RUNS * (N_RUNS - 1) // 2
    assert sum(s.outer for s in sets) == N_RUNS
    assert {len(s.tests) for s in sets if not s.outer} == {2}


@pytest.mark.parametrize("screening", [None, Screening(n_features=60), Screening(n_features=20)])
def test_small_batches_and_streaming_change_nothing(screening):
    x, classes, runs = problem(150, n_classes=3)
    design = design_of(classes, runs, screening, True, 150)
    whole, plan = run(x, design)
    smallest = next(b for b in range(200_000, 10**7, 20_000) if _fits(x, design, b))
    tight, tight_plan = run(x, design, budget=smallest, chunk=7)
    assert plan.in_memory
    assert tight_plan.batch <= plan.batch
    assert not tight_plan.in_memory
    for name in ("scores", "chosen", "intercepts", "decision", "coef", "std_coef", "pattern"):
        np.testing.assert_allclose(getattr(tight, name), getattr(whole, name), rtol=1e-10, atol=1e-10, err_msg=name)


def _fits(x, design, budget):
    from daskdecode.errors import MemoryBudgetError

    try:
        run(x, design, budget)
    except MemoryBudgetError:
        return False
    return True


def test_patterns_are_the_covariance_with_the_decision():
    x, classes, runs = problem()
    found, _ = run(x, design_of(classes, runs, None, False, 70))
    decision = found.decision.mean(axis=0)[0]
    expected = [np.cov(x[:, v], decision)[0, 1] / decision.var(ddof=1) for v in range(70)]
    np.testing.assert_allclose(found.pattern[0], expected, atol=1e-12)


def test_the_held_out_fold_chooses_the_last_of_the_best():
    from daskdecode.engine.choice import _first_best, _last_best

    assert _last_best(np.array([0.7, 0.9, 0.9])) == 2
    assert _first_best(np.array([0.7, 0.9, 0.9])) == 1
    assert _first_best(np.array([0.7, 0.9, np.nextafter(0.9, 1)])) == 1
    assert _first_best(np.array([-np.inf, -np.inf])) == 0
    assert _last_best(np.array([np.nan, np.nan])) == 0


@pytest.mark.parametrize("screening", [None, Screening(n_features=60), Screening(n_features=20)])
@pytest.mark.parametrize("in_memory", [True, False])
def test_passes_are_as_planned(screening, in_memory):
    """Counted reads of every chunk, those of what is computed beside the first sweep included."""
    x, classes, runs = problem(150)
    design = design_of(classes, runs, screening, False, 150)
    reads = []

    def count(block):
        reads.append(block.shape)
        return block

    lazy = da.from_array(x, chunks=(48, 30)).map_blocks(count, dtype=float, meta=np.empty((0, 0)))
    plan = run(x, design, budget="1GB")[1]
    passes = 3 if screening is not None else 2
    blocks = VoxelBlocks(lazy, 48 * 8 * 60)
    if in_memory:
        with dask.config.set(scheduler="synchronous"):
            blocks, passes = blocks.keep(), 1
    also = blocks.map_sum(lambda block: np.isnan(block).sum())
    with dask.config.set(scheduler="synchronous"):
        _, n_missing = cross_validate(blocks, design, plan, also=also)
    assert n_missing == 0
    assert len(reads) == 5 * passes
