"""Hyperband over pooled subjects."""

from __future__ import annotations

import itertools
import json

import dask.array as da
import numpy as np
import pytest
from scipy.stats import loguniform
from sklearn.feature_selection import f_classif
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import GaussianNB

import daskdecode as dd
from daskdecode.errors import DecodingError, MemoryBudgetError
from daskdecode.tuning.pooled import dask_ml_hyperband, hyperband
from daskdecode.tuning.pooled.blocks import Recipe, f_of_classes, load
from tests.tuning.pooled.made import SHAPE, P, dataset, make, zscored

SPACE = {"alpha": loguniform(1e-4, 10.0)}


def test_hyperband_finds_what_subjects_share(client, tmp_path):
    x, y, subjects, runs = make()
    ds = dataset(x, y, subjects, runs)
    decoder = dd.Decoder(SGDClassifier(loss="log_loss", random_state=0), screening_percentile=None)
    found = dd.search(decoder, ds, SPACE, method="hyperband", n_iter=9, random_state=1)
    assert found.score_ > 0.85
    assert found.nested_scores_.shape == (1,)
    assert found.cv_results_["test_score"][found.best_index_] == found.best_score_ == max(found.cv_results_["test_score"])
    assert "groups held out from the search" in str(found)
    assert len(found.to_frame()) == len(found.cv_results_["params"])
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["best_params"] == found.best_params_
    assert told["cv_results"]["partial_fit_calls"][found.best_index_] >= 1
    found.write(tmp_path)
    assert (tmp_path / "search.png").exists()
    # The scores of the held-out subject are the model's own on that subject's z-scored runs.
    z = zscored(x, runs)
    scores = {s: roc_auc_score(y[subjects == s] == "c1", found.best_estimator_.decision_function(z[subjects == s])) for s in set(subjects)}
    assert any(abs(found.nested_scores_[0] - score) < 1e-6 for score in scores.values())


def test_models_that_were_given_up_rank_below_those_that_were_trained_longer(client, monkeypatch):
    calls, scores = np.array([1, 4, 4, 1, 9]), np.array([0.61, 0.50, 0.57, np.nan, 0.55])
    assert hyperband.ranks_of(calls, scores, 2).tolist() == [4, 3, 1, 5, 2]  # chosen from another bracket, after 4 calls
    whole = dask_ml_hyperband.Hyperband.fit

    def lucky(self, *args, **kwargs):
        """As chance may have it: a model that was given up scored more than all others."""
        whole(self, *args, **kwargs)
        self.cv_results_["test_score"][np.argmin(self.cv_results_["partial_fit_calls"])] = 0.999
        return self

    monkeypatch.setattr(hyperband.Hyperband, "fit", lucky)
    decoder = dd.Decoder(SGDClassifier(random_state=0), screening_percentile=None)
    x, y, subjects, runs = make()
    found = dd.search(decoder, dataset(x, y, subjects, runs), SPACE, method="hyperband", n_iter=9, nested=False)
    table = found.to_frame()
    assert table["params"][0] == found.best_params_
    assert (table["test_score"][1:] == 0.999).sum() == 1
    assert table["partial_fit_calls"][1:].is_monotonic_decreasing
    header, first = next((a, b) for a, b in itertools.pairwise(str(found).splitlines()) if a.startswith("rank"))
    assert header.split()[-1] == "calls"
    assert first.split() == ["1", f"{found.best_params_['alpha']:.4g}", f"{found.best_score_:.4f}", str(table["partial_fit_calls"][0])]


def test_the_best_model_predicts_as_a_decoder_and_has_maps(client):
    x, y, subjects, runs = make()
    ds = dataset(x, y, subjects, runs)
    decoder = dd.Decoder(SGDClassifier(random_state=0), screening_percentile=None, screening_n_features=24)
    found = dd.search(decoder, ds, SPACE, method="hyperband", n_iter=9)
    best = found.best_decoder_
    kept = np.flatnonzero(best.coef_[0])
    assert kept.size == 24
    assert np.mean(kept < 30) > 0.8
    expected = found.best_estimator_.decision_function(zscored(x, runs)[:, kept])
    np.testing.assert_allclose(best.decision_function(ds), expected, atol=1e-4)
    np.testing.assert_array_equal(best.predict(ds) == "c1", expected > 0)
    assert best.coef_img_["c1"].shape == SHAPE


def test_several_classes_and_models_without_weights(client):
    x, y, subjects, runs = make(n_classes=3)
    ds = dataset(x, y, subjects, runs)
    found = dd.search(dd.Decoder(SGDClassifier(random_state=0)), ds, SPACE, method="hyperband", n_iter=9)
    assert found.best_decoder_.coef_.shape == (3, P)
    assert found.score_ > 0.8
    bayes = dd.search(dd.Decoder(GaussianNB()), ds, {"var_smoothing": loguniform(1e-9, 1.0)}, method="hyperband", n_iter=3)
    assert bayes.best_decoder_ is None
    assert bayes.score_ > 0.8


def test_the_same_seed_gives_the_same_search(client):
    x, y, subjects, runs = make()
    ds = dataset(x, y, subjects, runs)
    one, two = (
        dd.search(dd.Decoder(SGDClassifier(random_state=0)), d, SPACE, method="hyperband", n_iter=9, random_state=5)
        for d in (ds, dataset(x, y, subjects, runs, chunks=(400, 7)))
    )
    assert one.best_params_ == two.best_params_
    np.testing.assert_allclose(one.nested_scores_, two.nested_scores_)
    np.testing.assert_allclose(one.best_decoder_.coef_, two.best_decoder_.coef_, rtol=1e-5, atol=1e-7)


def test_models_share_the_reading_of_a_block(client):
    def n_read():
        return client.cluster.scheduler.task_prefixes["samples"].state_counts["memory"]

    ds, before = dataset(*make(n_subjects=10)), n_read() if "samples" in client.cluster.scheduler.task_prefixes else 0
    found = dd.search(dd.Decoder(SGDClassifier()), ds, SPACE, method="hyperband", n_iter=9, nested=False)
    n_fits = int(np.sum(found.cv_results_["partial_fit_calls"]))
    # Three brackets of models, each with its own order of blocks: 9 a bracket, and one that is begun beforehand.
    assert n_fits > 60
    assert n_read() - before <= 3 * 11


def test_no_group_is_on_two_sides(client, monkeypatch):
    x, y, subjects, runs = make(n_subjects=10)
    seen = {}
    split = hyperband._split
    monkeypatch.setattr(hyperband, "_split", lambda *a, **k: seen.setdefault("parts", split(*a, **k)))
    found = dd.search(dd.Decoder(SGDClassifier()), dataset(x, y, subjects, runs), SPACE, method="hyperband", n_iter=3)
    parts = seen["parts"]
    of = lambda numbers: {n // 2 for n in numbers}  # noqa: E731  # two runs a subject
    test = set().union(*(of(own) for own in parts.test.values()))
    assert len(test) == found.nested_scores_.size == 2
    assert len(of(parts.validation)) == 2
    assert not of(parts.train) & of(parts.validation)
    assert not of(parts.train) & test
    assert not of(parts.validation) & test
    assert of(parts.train) | of(parts.validation) | test == set(range(10))


def test_screening_is_scikit_learns():
    x, y, *_ = make(n_classes=3)
    codes = np.unique(y, return_inverse=True)[1]
    x = x.astype(np.float64) - x.mean(axis=0)
    sums = np.stack([*(x[codes == k].sum(axis=0) for k in range(3)), np.square(x).sum(axis=0)])
    np.testing.assert_allclose(f_of_classes(sums, np.bincount(codes)), f_classif(x, codes)[0], rtol=1e-7)


def test_a_recipe_gives_its_runs_one_after_another():
    x = np.arange(40.0).reshape(8, 5)
    recipe = Recipe([da.from_array(x[:3], chunks=2), da.from_array(x[5:], chunks=2)], np.array([4, 0]))
    np.testing.assert_array_equal(load(recipe), np.vstack([x[:3], x[5:]])[:, [4, 0]])
    assert recipe.shape == (6, 2)


@pytest.mark.parametrize(
    ("decoder", "space", "message"),
    [
        (dd.Decoder("svc"), {"C": [1]}, "LinearSVC has no partial_fit"),
        (dd.DecoderRegressor("ridge"), {"alphas": [1]}, "found DecoderRegressor"),
        (dd.Decoder(SGDClassifier()), {"alhpa": [1]}, r"no parameter 'alhpa'.*'alpha'"),
        (dd.Decoder(SGDClassifier()), [], "as one dict"),
        (dd.Decoder(SGDClassifier()), {"alpha": []}, "expected values in a list"),
        (dd.Decoder(SGDClassifier()), {"alpha": 0.1}, "is 0.1: expected values in a list"),
        (dd.Decoder(SGDClassifier(), standardize="zscore_sample"), SPACE, "reads run by run"),
        (dd.Decoder(SGDClassifier(), memory_budget="100kB"), SPACE, r"A worker needs .* copies of a block"),
    ],
)
def test_what_hyperband_cannot_do_is_said_first(client, decoder, space, message):
    x, y, subjects, runs = make()
    with pytest.raises((DecodingError, MemoryBudgetError), match=message):
        dd.search(decoder, dataset(x, y, subjects, runs), space, method="hyperband")


def test_two_groups_are_too_few(client):
    x, y, subjects, runs = make(n_subjects=2)
    with pytest.raises(DecodingError, match="at least 3 groups"):
        dd.search(dd.Decoder(SGDClassifier()), dataset(x, y, subjects, runs), SPACE, method="hyperband")
    found = dd.search(dd.Decoder(SGDClassifier()), dataset(x, y, subjects, runs), SPACE, method="hyperband", n_iter=3, nested=False)
    assert found.score_ is None


def test_without_a_cluster_hyperband_says_how_to_get_one(monkeypatch):
    def none():
        raise ValueError("No clients found")

    monkeypatch.setattr(dask_ml_hyperband, "default_client", none)
    with pytest.raises(DecodingError, match=r"dd\.connect"):
        dd.search(dd.Decoder(SGDClassifier()), dataset(*make()), SPACE, method="hyperband")
