from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import accuracy_score, get_scorer, make_scorer, roc_auc_score

from daskdecode.engine import scoring
from daskdecode.engine.scoring import Decided, score_decisions

TARGET = np.array([-1, 1, 1, -1, 1, -1, -1])
DECISION = np.array([0.3, 0.2, 1.0, -1.0, 0.3, 0.0, -0.0])


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 150), share=st.floats(0.05, 0.95), levels=st.sampled_from([2, 5, 50, 10**9]), seed=st.integers(0, 10**6))
def test_scores_are_those_of_scikit_learn_to_the_last_bit(n, share, levels, seed):
    rng = np.random.default_rng(seed)
    target = np.where(rng.random(n) < share, 1, -1)
    target[:2] = [-1, 1]
    decision = np.round(rng.standard_normal(n) * levels) / levels
    assert score_decisions(get_scorer("roc_auc"), decision, target) == roc_auc_score(target, decision)
    assert score_decisions(get_scorer("accuracy"), decision, target) == accuracy_score(target, np.where(decision > 0, 1, -1))


@pytest.mark.parametrize("name", ["roc_auc", "accuracy"])
def test_the_common_scorers_are_not_asked(name, monkeypatch):
    scorer = get_scorer(name)
    expected = scorer(Decided(), DECISION[:, None], TARGET)
    monkeypatch.setattr(type(scorer), "__call__", lambda *_: pytest.fail("asked"))
    assert score_decisions(scorer, DECISION, TARGET) == expected


@pytest.mark.parametrize(
    "scorer",
    [
        get_scorer("balanced_accuracy"),
        get_scorer("neg_log_loss"),
        make_scorer(accuracy_score, normalize=False),
        make_scorer(accuracy_score, greater_is_better=False),
        make_scorer(roc_auc_score),  # of predictions, by scikit-learn's default
        make_scorer(roc_auc_score, response_method="predict_proba"),
        lambda estimator, X, y: float(estimator.predict(X) @ y),
    ],
)
def test_any_other_scorer_is_asked(scorer):
    assert scoring._quick(scorer) is None
    assert score_decisions(scorer, DECISION, TARGET) == scorer(Decided(), DECISION[:, None], TARGET)


def test_what_is_not_defined_is_left_to_scikit_learn():
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(score_decisions(get_scorer("roc_auc"), DECISION, np.ones(7, dtype=int)))
    with pytest.raises(ValueError, match="NaN"):
        score_decisions(get_scorer("roc_auc"), np.where(DECISION > 0.5, np.nan, DECISION), TARGET)
