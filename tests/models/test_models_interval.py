from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.exceptions import NotFittedError

from daskdecode import Decoder, score_interval
from daskdecode.errors import DecodingError


def fitted(n_classes=2, n_runs=6, seed=0, **options):
    rng = np.random.default_rng(seed)
    y = np.tile(np.repeat([f"c{c}" for c in range(n_classes)], 4), n_runs)
    x = rng.standard_normal((y.size, 120)) + 0.2 * (y == "c1")[:, None] * (np.arange(120) < 20)
    return Decoder(param_grid={"C": 1e-2}, **options).fit(x, y, np.repeat(np.arange(n_runs), 4 * n_classes))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_interval_is_the_expanded_percentile_of_means_of_drawn_runs(n_classes):
    decoder = fitted(n_classes)
    found = score_interval(decoder, 0.9, n_bootstrap=500, random_state=3)
    folds = np.array(list(decoder.cv_scores_.values())).mean(axis=0)
    rng = np.random.default_rng(3)
    means = [np.mean([folds[i] for i in draw]) for draw in rng.integers(6, size=(500, 6))]
    tail = norm.cdf(np.sqrt(6 / 5) * student.ppf(0.05, 5))
    assert tail < 0.05
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [tail, 1 - tail]))
    assert found.score == pytest.approx(folds.mean())
    assert found.low < found.score < found.high
    for name, scores in decoder.cv_scores_.items():
        assert found.class_intervals[name][0] == pytest.approx(np.mean(scores))
    assert json.loads(json.dumps(found.to_dict()))["level"] == 0.9
    assert "90% interval" in str(found)


def test_a_wider_level_gives_a_wider_interval_and_a_seed_the_same():
    decoder = fitted()
    narrow, wide = score_interval(decoder, 0.5), score_interval(decoder, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert score_interval(decoder, 0.5) == narrow


def test_it_covers_about_as_often_as_it_says():
    """Fold scores that are independent: what the interval can promise."""
    rng = np.random.default_rng(0)
    decoder = fitted(n_runs=8)
    covered = 0
    for _ in range(300):
        values = rng.beta(6, 4, 8)
        decoder.cv_scores_ = {"c0": values.tolist(), "c1": values.tolist()}
        interval = score_interval(decoder, 0.9, n_bootstrap=2000)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.85 < covered / 300 < 0.94


def test_what_has_no_interval_is_refused():
    with pytest.raises(NotFittedError):
        score_interval(Decoder())
    with pytest.raises(DecodingError, match="level=95"):
        score_interval(fitted(), 95)
    with pytest.raises(DecodingError, match="at least 3"):
        score_interval(fitted(n_runs=2))
    with pytest.warns(UserWarning, match="same run"):
        cut = fitted(n_runs=5, cv=3)
    with pytest.raises(DecodingError, match=r"is tested in \d folds"):
        score_interval(cut)
    unknown = Decoder(cv=3, standardize=None, param_grid={"C": 1}).fit(
        np.random.default_rng(0).standard_normal((24, 9)), np.tile(["a", "b"], 12)
    )
    with pytest.raises(DecodingError, match="runs of the samples are not known"):
        score_interval(unknown)


def test_a_class_that_no_fold_can_score_is_named():
    decoder = fitted(3)
    decoder.cv_scores_["c1"] = [np.nan] * 6
    with pytest.raises(DecodingError, match="Class 'c1' has a score in no fold"):
        score_interval(decoder)
