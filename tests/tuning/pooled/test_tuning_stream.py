"""Grid and random searches over pooled subjects, block by block."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask_ml.linear_model import LogisticRegression as DaskLogistic
from dask_ml.wrappers import Incremental, ParallelPostFit
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, ParameterGrid
from sklearn.naive_bayes import GaussianNB

import daskdecode as dd
from daskdecode.data.preprocess import standardize_samples
from daskdecode.errors import DecodingError, MemoryBudgetError
from daskdecode.testing import CountingStore, NoCompute
from daskdecode.tuning.pooled import chains
from daskdecode.tuning.pooled.blocks import Block, Recipe
from tests.tuning.pooled.made import SHAPE, P, dataset, make, zscored

GRID = {"alpha": [1e-4, 1e-1, 10.0], "penalty": ["l2", "l1"]}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of two runs or so."""
    monkeypatch.setattr("daskdecode.tuning.pooled.blocks.BLOCK_NBYTES", 60 * P * 4)


def blocks_of(runs, seed=0):
    """Rows of each block: shuffled runs, put together as long as they fit."""
    names = list(dict.fromkeys(runs.tolist()))
    blocks = []
    for r in np.random.default_rng([seed, 1]).permutation(len(names)):
        rows = np.flatnonzero(runs == names[r])
        if blocks and len(blocks[-1]) + len(rows) <= 60:
            blocks[-1] = np.append(blocks[-1], rows)
        else:
            blocks.append(rows)
    assert 2 < len(blocks) < len(names)
    return blocks


def learn(estimator, params, z, y, train, blocks, orders=None):
    model = clone(estimator).set_params(**params)
    for order in orders or [range(len(blocks))]:
        for b in order:
            rows = blocks[b][np.isin(blocks[b], train)]
            if rows.size:
                model.partial_fit(z[rows], y[rows], classes=np.unique(y))
    return model


def score_of(model, z, y):
    """AUC, for more than two classes the mean of one against the rest."""
    if hasattr(model, "decision_function"):
        d = model.decision_function(z)
    else:
        d = np.log(np.clip(model.predict_proba(z), 1e-308, None))
        d = d[:, 1] - d[:, 0] if d.shape[1] == 2 else d
    classes = np.unique(y)
    return roc_auc_score(y == classes[1], d) if d.ndim == 1 else np.mean([roc_auc_score(y == c, d[:, k]) for k, c in enumerate(classes)])


@pytest.mark.parametrize(
    ("n_classes", "estimator", "grid"), [(2, SGDClassifier(random_state=3), GRID), (3, GaussianNB(), {"var_smoothing": [1e-9, 3.0]})]
)
@pytest.mark.parametrize("k", [None, 20])
def test_scores_are_those_of_a_loop_over_scikit_learn(n_classes, estimator, grid, k):
    x, y, subjects, runs = make(n_classes=n_classes)
    z, blocks, settings = zscored(x, runs), blocks_of(runs), list(ParameterGrid(grid))
    decoder = dd.Decoder(estimator, cv=GroupKFold(3), screening_percentile=None, screening_n_features=k)
    found = dd.search(decoder, dataset(x, y, subjects, runs), grid, route="stream")

    def scores(train, test):
        seen = z if k is None else z[:, SelectKBest(k=k).fit(z[train].astype(np.float64), y[train]).get_support()]
        return [score_of(learn(estimator, params, seen, y, train, blocks), seen[test], y[test]) for params in settings]

    splits = list(GroupKFold(3).split(z, y, subjects))
    outer = np.array([scores(train, test) for train, test in splits])
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], outer.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose([found.cv_results_[f"split{f}_test_score"] for f in range(3)], outer, atol=1e-6)
    assert found.cv_results_["params"] == settings
    for f, (train, _) in enumerate(splits):
        inner = [(train[a], train[b]) for a, b in GroupKFold(3).split(z[train], y[train], subjects[train])]
        pick = int(np.argmax(np.round(np.mean([scores(a, b) for a, b in inner], axis=0), 9)))
        assert found.nested_params_[f] == settings[pick]
        assert found.nested_scores_[f] == pytest.approx(outer[f, pick], abs=1e-6)
    # The rows of a table with times: every training set was trained, in some time.
    assert (found.cv_results_["mean_fit_time"] > 0).all()


@pytest.mark.parametrize("alpha", [1e-4, 1e-3, 1e-1])
def test_models_are_as_precise_as_the_signals(monkeypatch, alpha):
    """Of float64 signals, scores and weights are those of a loop in float64; what float32 signals differ by is their rounding."""
    x, y, subjects, runs = make()
    exact = zscored(x.astype(np.float64), runs)
    decoder = dd.Decoder(SGDClassifier(loss="log_loss", random_state=0), cv=GroupKFold(3), screening_percentile=None)
    splits, blocks = list(GroupKFold(3).split(exact, y, subjects)), blocks_of(runs)
    models = [learn(decoder.estimator, {"alpha": alpha}, exact, y, train, blocks) for train, _ in splits]
    expected = [score_of(model, exact[test], y[test]) for model, (_, test) in zip(models, splits, strict=True)]
    weights = learn(decoder.estimator, {"alpha": alpha}, exact, y, np.arange(len(y)), blocks).coef_
    off = {}
    for dtype in (np.float32, np.float64):
        monkeypatch.setattr("daskdecode.tuning.pooled.blocks.BLOCK_NBYTES", 60 * P * np.dtype(dtype).itemsize)  # the same runs a block
        found = dd.search(decoder, dataset(x.astype(dtype), y, subjects, runs), {"alpha": [alpha]}, route="stream")
        coef = found.best_estimator_.estimator_.coef_
        assert coef.dtype == dtype
        off[dtype] = np.linalg.norm(coef - weights) / np.linalg.norm(weights)
        pairs = [(y[test] == "c0").sum() * (y[test] == "c1").sum() for _, test in splits]
        flipped = np.abs(found.nested_scores_ - expected) * pairs  # pairs of samples that change ranks
        assert (flipped < (1e-6 if dtype == np.float64 else 3)).all()
    assert off[np.float64] < 1e-10
    assert 1e-8 < off[np.float32] < 1e-3


@pytest.mark.parametrize("n_passes", [1, 3])
def test_the_best_estimator_is_dask_mls_incremental(n_passes):
    x, y, subjects, runs = make()
    # To the bit: signals are scaled by the same rounding.
    z = standardize_samples(da.from_array(x, chunks=(23, 50)), runs, "zscore_run").compute()
    blocks = blocks_of(runs, seed=4)
    decoder = dd.Decoder(SGDClassifier(random_state=0), screening_percentile=None)
    ds = dataset(x, y, subjects, runs)
    found = dd.search(decoder, ds, {"alpha": [1e-3]}, route="stream", random_state=4, n_passes=n_passes)
    peer = Incremental(SGDClassifier(alpha=1e-3, random_state=0), shuffle_blocks=False)
    orders = [np.arange(len(blocks)), *(np.random.default_rng([4, 2, n]).permutation(len(blocks)) for n in range(1, n_passes))]
    for order in orders:
        rows = np.concatenate([blocks[b] for b in order])
        chunks = tuple(len(blocks[b]) for b in order)
        peer.partial_fit(da.from_array(z[rows], chunks=(chunks, P)), da.from_array(y[rows], chunks=(chunks,)), classes=np.unique(y))
    best = found.best_estimator_
    assert type(best) is Incremental
    np.testing.assert_array_equal(best.estimator_.coef_, peer.estimator_.coef_)
    assert best.estimator_.t_ == peer.estimator_.t_ == 1 + n_passes * len(y)
    # It goes on, and predicts lazily.
    lazy = best.predict(da.from_array(z, chunks=(50, P)))
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(), peer.predict(z))
    best.partial_fit(da.from_array(z, chunks=(50, P)), da.from_array(y, chunks=50))
    assert best.estimator_.t_ == peer.estimator_.t_ + len(y)
    # One setting: it is scored on each subject.
    splits = list(LeaveOneGroupOut().split(z, y, subjects))
    expected = [
        score_of(learn(SGDClassifier(alpha=1e-3, random_state=0), {}, z, y, train, blocks, orders), z[test], y[test])
        for train, test in splits
    ]
    np.testing.assert_allclose(found.nested_scores_, expected, atol=1e-6)


def test_the_best_decoder_predicts_and_has_maps():
    x, y, subjects, runs = make(n_classes=3)
    ds = dataset(x, y, subjects, runs)
    decoder = dd.Decoder(SGDClassifier(random_state=0), screening_percentile=None, screening_n_features=24)
    found = dd.search(decoder, ds, {"alpha": [1e-3, 1.0]}, route="stream", nested=False)
    kept = np.flatnonzero(found.best_decoder_.coef_.any(axis=0))
    z = zscored(x, runs)
    np.testing.assert_array_equal(kept, np.flatnonzero(SelectKBest(k=24).fit(z.astype(np.float64), y).get_support()))
    expected = found.best_estimator_.decision_function(z[:, kept]) if hasattr(found.best_estimator_, "decision_function") else None
    expected = found.best_estimator_.estimator_.decision_function(z[:, kept]) if expected is None else expected
    np.testing.assert_allclose(found.best_decoder_.decision_function(ds), expected, atol=1e-4)
    assert found.best_decoder_.coef_img_["c2"].shape == SHAPE
    assert found.nested_scores_ is None
    assert dd.search(decoder, ds, {"alpha": [1.0]}, route="stream", refit=False).best_estimator_ is None


@pytest.mark.parametrize("n_classes", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "estimator", ["logistic", DaskLogistic(solver="lbfgs", tol=1e-9, max_iter=1000, solver_kwargs={"normalize": False})]
)
def test_logistic_regression_is_scikit_learns(n_classes, estimator):
    # dask-ml penalises the intercept as liblinear does. Solvers stop at tol=1e-4 of the gradient by default: looser.
    loose = isinstance(estimator, str)
    x, y, subjects, runs = make(n_classes=n_classes)
    z, settings = zscored(x, runs).astype(np.float64), [1e-3, 1e-1]
    decoder = dd.Decoder(estimator, cv=GroupKFold(2), screening_percentile=None)
    found = dd.search(decoder, dataset(x, y, subjects, runs), {"C": settings}, route="stream", nested=False)
    positive = ["c1"] if n_classes == 2 else np.unique(y)

    def fitted(C, rows):
        return [LogisticRegression(solver="liblinear", C=C, tol=1e-12, max_iter=10_000).fit(z[rows], y[rows] == c) for c in positive]

    def scores(C, train, test):
        return np.mean([roc_auc_score(y[test] == c, m.decision_function(z[test])) for c, m in zip(positive, fitted(C, train), strict=True)])

    expected = [np.mean([scores(C, *split) for split in GroupKFold(2).split(z, y, subjects)]) for C in settings]
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], expected, atol=2e-3 if loose else 1e-9)
    peers = fitted(found.best_params_["C"], slice(None))
    tolerance = {"rtol": 0, "atol": 1e-4 if loose else 1e-6}
    np.testing.assert_allclose(found.best_decoder_.coef_, np.concatenate([m.coef_ for m in peers]), **tolerance)
    np.testing.assert_allclose(found.best_decoder_.intercept_, np.concatenate([m.intercept_ for m in peers]), **tolerance)
    best = found.best_estimator_
    assert type(best) is ParallelPostFit
    lazy = best.predict(da.from_array(z, chunks=(50, P)))
    assert isinstance(lazy, da.Array)
    decision = np.stack([m.decision_function(z) for m in peers], axis=1)
    wanted = np.where(decision[:, 0] > 0, "c1", "c0") if n_classes == 2 else np.unique(y)[decision.argmax(axis=1)]
    assert np.mean(lazy.compute() == wanted) > 0.99
    p = best.predict_proba(da.from_array(z, chunks=(50, P))).compute()
    assert p.shape == (len(y), n_classes)
    np.testing.assert_allclose(p.sum(axis=1), 1)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["newton", "gradient_descent", "proximal_grad", "admm"])
def test_other_solvers_give_the_numbers_that_dask_ml_gives(monkeypatch, solver):
    x, y, _, runs = make(n_subjects=8)
    x = zscored(x, runs)[:, 25:37].astype(np.float64)
    monkeypatch.setattr("daskdecode.tuning.pooled.blocks.BLOCK_NBYTES", 60 * x.shape[1] * 8)
    estimator = DaskLogistic(solver=solver, C=0.1, penalty="l2", max_iter=5 if solver == "newton" else 20)
    found = dd.search(dd.Decoder(estimator, standardize=None), x, {"tol": [1e-6]}, y, runs, route="stream", nested=False)
    blocks = blocks_of(runs)
    rows, chunks = np.concatenate(blocks), tuple(map(len, blocks))
    peer = clone(estimator).set_params(tol=1e-6)
    peer.fit(da.from_array(x[rows], chunks=(chunks, x.shape[1])), da.from_array((y[rows] == "c1").astype(int), chunks=(chunks,)))
    np.testing.assert_allclose(found.best_decoder_.coef_[0], peer.coef_, rtol=1e-6, atol=1e-9)
    assert found.best_score_ > 0.6


# ------------------------------------------------------------------------------------------------------------------- where it is done


@pytest.mark.parametrize(
    ("estimator", "grid"), [(SGDClassifier(random_state=0), GRID), pytest.param("logistic", {"C": [1e-2]}, marks=pytest.mark.slow)]
)
def test_numbers_do_not_depend_on_scheduler_threads_or_chunks(request, estimator, grid):
    data = make()
    decoder = dd.Decoder(estimator, cv=GroupKFold(2), screening_percentile=None, screening_n_features=40)

    def scores(chunks=(23, 50), **how):
        with dask.config.set(**how):
            found = dd.search(decoder, dataset(*data, chunks=chunks), grid, route="stream")
        return np.r_[found.cv_results_["mean_test_score"], found.nested_scores_, found.best_decoder_.coef_.ravel()]

    expected = scores(scheduler="synchronous", num_workers=1)
    np.testing.assert_array_equal(scores(scheduler="threads", num_workers=3), expected)
    np.testing.assert_allclose(scores(chunks=(400, 7)), expected, rtol=1e-6, atol=1e-9)
    request.getfixturevalue("client")
    np.testing.assert_array_equal(scores(), expected)


def test_a_block_is_read_once_for_all_folds_and_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("daskdecode.tuning.pooled.blocks.BLOCK_NBYTES", 3 * 60 * P * 4)
    x, y, subjects, runs = make(n_subjects=12)
    ends = np.flatnonzero(np.append(runs[1:] != runs[:-1], True)) + 1
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "x.zarr"))
    group = zarr.create_group(store)
    names = list(dict.fromkeys(runs.tolist()))
    for n, name in enumerate(names):
        group.create_array(f"r{n}/bold", data=x[runs == name], chunks=(40, P))
    lazy = da.concatenate([da.from_zarr(group[f"r{n}/bold"]) for n in range(len(names))])
    assert lazy.shape[0] == ends[-1]
    ds = dataset(lazy, y, subjects, runs)
    decoder = dd.Decoder(SGDClassifier(random_state=0), screening_percentile=None, screening_n_features=40)
    grid = {"alpha": np.geomspace(1e-4, 1, 2).tolist()}
    with NoCompute(), pytest.raises(AssertionError):
        dd.search(decoder, ds, grid, route="stream")
    assert not store.bold_reads
    with dask.config.set(scheduler="threads", num_workers=1):
        dd.search(decoder, ds, grid, route="stream", nested=False)
    # Screening of 12 folds, training of 24 models, their scores, and the best one on all samples. A scan a model would be 24 + 24 + 1.
    assert set(store.bold_reads.values()) == {1 + 1 + 1 + 1}
    assert len(store.bold_reads) == len(names)


def test_a_search_over_more_models_than_chains_hold_is_the_same(monkeypatch):
    data, decoder = make(), dd.Decoder(SGDClassifier(random_state=0), cv=GroupKFold(2))
    one = dd.search(decoder, dataset(*data), GRID, route="stream")
    monkeypatch.setattr("daskdecode.tuning.pooled.stream._MODELS_OF_A_CHAIN", 1)
    other = dd.search(decoder, dataset(*data), GRID, route="stream")
    np.testing.assert_array_equal(one.cv_results_["mean_test_score"], other.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(one.nested_scores_, other.nested_scores_)


# ---------------------------------------------------------------------------------------------------------------- kills and failures


@pytest.mark.parametrize(
    ("estimator", "grid"), [(SGDClassifier(random_state=0), GRID), pytest.param("logistic", {"C": [1e-3, 1e-2]}, marks=pytest.mark.slow)]
)
def test_a_killed_search_goes_on(tmp_path, monkeypatch, estimator, grid):
    monkeypatch.setattr("daskdecode.tuning.folds._FITS_OF_A_THREAD", 1)
    data, path = make(), tmp_path / "search.npz"
    decoder = dd.Decoder(estimator, cv=GroupKFold(2), screening_percentile=None, screening_n_features=40)
    whole = dd.search(decoder, dataset(*data), grid, route="stream")
    seen, fits = [], []
    learn = "learn_linear" if estimator == "logistic" else "chain"
    real = getattr(__import__("daskdecode.tuning.pooled.stream", fromlist=["x"]), learn)

    def counted(lessons, *args):
        fits.extend(lessons.models)
        return real(lessons, *args)

    monkeypatch.setattr(f"daskdecode.tuning.pooled.stream.{learn}", counted)

    def kill(done, total):
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dd.search(decoder, dataset(*data), grid, route="stream", path=path, progress=kill)
    done, total = seen[-1]
    assert 0 < done < total == 2 + 2 * 2
    fits.clear()
    again = dd.search(decoder, dataset(*data, chunks=(31, 20)), grid, route="stream", path=path)
    n_settings = len(ParameterGrid(grid))
    assert len(fits) == (total - done) * n_settings + 1
    np.testing.assert_array_equal(again.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(again.nested_scores_, whole.nested_scores_)
    fits.clear()
    dd.search(decoder, dataset(*data), grid, route="stream", path=path)
    assert len(fits) == 1
    x, *rest = data
    x = x.copy()
    x[7, 9] += 1
    with pytest.raises(DecodingError, match="the data differ"):
        dd.search(decoder, dataset(x, *rest), grid, route="stream", path=path)
    with pytest.raises(DecodingError, match="random_state was 0 and is 1"):
        dd.search(decoder, dataset(*data), grid, route="stream", path=path, random_state=1)


class Fragile(SGDClassifier):
    """Fails in its second block where alpha is 1."""

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        if self.alpha == 1 and getattr(self, "t_", 1) > 10:
            raise ValueError("It broke.")
        return super().partial_fit(X, y, classes, sample_weight)


def test_fits_that_fail_are_put_up_with_where_asked():
    data, decoder = make(), dd.Decoder(Fragile(random_state=0), cv=GroupKFold(2))
    grid = {"alpha": [1e-2, 1.0]}
    # Not in threads: those that go on when another has failed would take back the filter of warnings that the next lines put up.
    with dask.config.set(scheduler="synchronous"), pytest.raises(ValueError, match="It broke"):
        dd.search(decoder, dataset(*data), grid, route="stream")
    with pytest.warns(UserWarning, match="6 of 12 fits failed"):
        found = dd.search(decoder, dataset(*data), grid, route="stream", error_score=np.nan)
    assert np.isnan(found.cv_results_["mean_test_score"][1])
    assert found.best_params_ == {"alpha": 1e-2}
    with pytest.warns(UserWarning, match="6 of 12 fits failed"):
        found = dd.search(decoder, dataset(*data), grid, route="stream", error_score=0.25)
    assert found.cv_results_["mean_test_score"][1] == 0.25
    with pytest.raises(DecodingError, match="fits failed: there is no setting"):
        dd.search(decoder, dataset(*data), {"alpha": [1.0]}, route="stream", error_score=np.nan)


def test_random_settings_are_scikit_learns_draws():
    found = dd.search(
        dd.Decoder(SGDClassifier(random_state=0), cv=GroupKFold(2)),
        dataset(*make()),
        {"alpha": loguniform(1e-4, 1)},
        route="stream",
        method="random",
        n_iter=3,
        random_state=7,
        nested=False,
    )
    drawn = loguniform(1e-4, 1).rvs(size=3, random_state=np.random.RandomState(7))
    np.testing.assert_allclose([p["alpha"] for p in found.cv_results_["params"]], drawn)


SGD = SGDClassifier()


@pytest.mark.parametrize(
    ("decoder", "space", "how", "message"),
    [
        (dd.Decoder("svc"), {"C": [1]}, {}, "LinearSVC has no partial_fit"),
        (dd.DecoderRegressor("ridge"), {"alphas": [1]}, {}, "found DecoderRegressor.*leave out route='stream'"),
        (dd.Decoder(SGD), {"alhpa": [1]}, {}, r"no parameter 'alhpa'.*'alpha'"),
        (dd.Decoder(SGD), {"alpha": [-1.0]}, {}, "'alpha' parameter"),
        (dd.Decoder(SGDClassifier(class_weight="balanced")), {"alpha": [1.0]}, {}, "refuses to learn.*class_weight"),
        (dd.Decoder(SGD, standardize="zscore_fold"), GRID, {}, "reads run by run"),
        (dd.Decoder(SGD, confounds=["motion"]), GRID, {}, "takes no confounds"),
        (dd.Decoder(SGD), GRID, {"sample_weight": np.ones(3)}, "takes no sample_weight"),
        (dd.Decoder(SGD, cv=3), GRID, {}, r"Fold 0 cuts the group 01.*GroupKFold"),
        (dd.Decoder(SGD), GRID, {"groups": [1, 2]}, "groups has shape"),
        (dd.Decoder(SGD), GRID, {"n_passes": 0}, "n_passes=0 must be a whole number"),
        (dd.Decoder(SGD), GRID, {"n_passes": 2, "route": "auto"}, "n_passes= is for"),
        (dd.Decoder(SGD), GRID, {"route": "steam"}, "'stream'"),
        (dd.Decoder(SGD, scoring="neg_log_loss"), GRID, {}, "needs predict_proba"),
        (dd.Decoder("logistic"), {"C": [1]}, {"n_passes": 2}, "n_passes= is for estimators with partial_fit"),
        (dd.Decoder("logistic"), {"solver": ["sgd"]}, {}, "'solver' must be"),
        (dd.Decoder("logistic"), {"penalty": ["none"]}, {}, "no penalty 'none'"),
        (dd.Decoder("logistic"), {"class_weight": ["balanced"]}, {}, "takes no notice of class_weight"),
        (dd.Decoder(DaskLogistic(solver="newton")), {"C": [1, 2]}, {}, "C changes nothing"),
    ],
)
def test_what_cannot_be_streamed_is_said_before_anything_is_read(decoder, space, how, message):
    with NoCompute(), pytest.raises(DecodingError, match=message):
        dd.search(decoder, dataset(*make()), space, **{"route": "stream", **how})


@pytest.mark.parametrize("decoder", [dd.Decoder(SGD, memory_budget="100kB"), dd.Decoder("logistic", memory_budget="300kB")])
def test_too_little_memory_is_said_before_anything_is_read(decoder):
    with NoCompute(), pytest.raises(MemoryBudgetError, match="copies of a block"):
        dd.search(decoder, dataset(*make()), {"alpha": [1]} if decoder.estimator is SGD else {"C": [1]}, route="stream")


def test_where_memory_is_too_small_for_other_routes_the_stream_is_named():
    with pytest.raises(MemoryBudgetError, match="route='stream'"):
        dd.search(dd.Decoder(SGD, memory_budget="1MB"), dataset(*make()), {"alpha": [1]})


def test_models_are_copied_before_they_learn_more():
    """A task that is done again, because its worker was lost, must find models as they were."""
    x, y, subjects, _ = make()
    _, who = np.unique(subjects, return_inverse=True)
    block = Block(Recipe([da.from_array(x[:40])]), (y[:40] == "c1").astype(int), who[:40])
    lessons = chains.Lessons(
        np.ones((1, 5), dtype=bool),
        [np.ones((0, 5), dtype=bool)],
        [None],
        [(0, {})],
        build=lambda *_, **__: SGDClassifier(random_state=0),
        classes=np.array(["c0", "c1"]),
        scorer=None,
    )
    before = chains._teach(chains._begin(lessons), lessons, block)
    weights = before.models[0].coef_.copy()
    one, two = (chains._teach(before, lessons, block) for _ in range(2))
    np.testing.assert_array_equal(before.models[0].coef_, weights)
    np.testing.assert_array_equal(one.models[0].coef_, two.models[0].coef_)
    assert not np.array_equal(one.models[0].coef_, weights)


def test_three_subjects_on_two_threads_score_as_on_one():
    # One thread gets the models that one subject tests, the other those that two do.
    x, y, subjects, runs = make(n_subjects=3)[:4]
    decoder = dd.Decoder(SGDClassifier(loss="log_loss", random_state=0), screening_percentile=None)
    found = []
    for n_threads in (1, 2):
        with dask.config.set(scheduler="threads", num_workers=n_threads):
            found.append(dd.search(decoder, dataset(x, y, subjects, runs), {"alpha": [1e-3, 1e-1]}, route="stream", refit=False))
    np.testing.assert_array_equal(found[1].cv_results_["mean_test_score"], found[0].cv_results_["mean_test_score"])
    np.testing.assert_array_equal(found[1].nested_scores_, found[0].nested_scores_)
