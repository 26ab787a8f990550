"""Chance levels and headline numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from daskdecode.results.scores import chance_level, score_table, summarize


def test_chance_is_what_a_blind_answer_reaches():
    one_in_eight = np.arange(80) % 8 == 0
    assert chance_level("roc_auc", one_in_eight) == 0.5
    assert chance_level("balanced_accuracy", one_in_eight) == 0.5
    assert chance_level("accuracy", one_in_eight) == 7 / 8  # always "not this class"
    assert chance_level("average_precision", one_in_eight) == 1 / 8
    assert np.isnan(chance_level("neg_log_loss", one_in_eight))
    assert np.isnan(chance_level("roc_auc", np.empty(0, dtype=bool)))


@pytest.mark.parametrize("classes", [("cat", "face"), ("cat", "face", "house")])
def test_summary_is_json_and_right(make_decoder, classes):
    decoder = make_decoder(classes)
    summary = json.loads(json.dumps(summarize(decoder), allow_nan=False))
    by_fold = np.mean([decoder.cv_scores_[c] for c in classes], axis=0)
    assert summary["score"]["mean"] == pytest.approx(by_fold.mean())
    assert summary["score"]["sd"] == pytest.approx(by_fold.std(ddof=1))
    assert summary["score"]["chance"] == 0.5
    assert summary["accuracy"]["mean"] == pytest.approx(decoder.cv_metrics_["accuracy"].mean())
    assert summary["accuracy"]["chance"] == pytest.approx(1 / len(classes))
    assert summary["class_scores"]["face"] == pytest.approx(np.mean(decoder.cv_scores_["face"]))


def test_one_fold_and_unscored_folds(make_decoder):
    decoder = make_decoder()
    for scores in decoder.cv_scores_.values():
        scores[0] = float("nan")
    assert summarize(decoder)["score"]["mean"] == pytest.approx(np.mean(decoder.cv_scores_["face"][1:]))
    decoder.cv_metrics_ = decoder.cv_metrics_.iloc[:1]
    summary = summarize(decoder)
    assert summary["score"]["mean"] is None
    assert summary["score"]["sd"] is None


def test_chance_of_one_against_rest_accuracy(make_decoder):
    decoder = make_decoder(("cat", "face", "house"), scoring="accuracy")
    assert score_table(decoder)["chance"].unique() == pytest.approx([2 / 3])
    assert summarize(decoder)["accuracy"]["chance"] == pytest.approx(1 / 3)
