"""What a search tells: table, text, JSON, figure."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.svm import LinearSVC

import daskdecode as dd
from daskdecode.tuning.result import SearchResult


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    y = np.tile([0, 1], 20)
    x = rng.standard_normal((40, 60)) + 0.3 * y[:, None] * (np.arange(60) < 12)
    return x, y, np.repeat(np.arange(4), 10)


@pytest.fixture(scope="module")
def found(data):
    x, y, groups = data
    grid = {"C": [1e-4, 1e-2, 1.0], "loss": ["hinge", "squared_hinge"]}
    return dd.search(dd.Decoder("svc", standardize=None), x, grid, y, groups)


def test_the_results_have_scikit_learns_names(data, found):
    x, y, groups = data
    theirs = GridSearchCV(LinearSVC(dual=True), {"C": [1.0, 2.0], "loss": ["hinge"]}, cv=LeaveOneGroupOut(), refit=False)
    assert set(found.cv_results_) == set(theirs.fit(x, y, groups=groups).cv_results_)
    assert found.best_params_ == found.cv_results_["params"][found.best_index_]
    assert found.best_score_ == max(found.cv_results_["mean_test_score"])
    assert (found.cv_results_["mean_fit_time"] > 0).all()


def test_the_table_has_the_best_first(found):
    table = found.to_frame()
    assert isinstance(table, pd.DataFrame)
    assert len(table) == 6
    assert table["rank_test_score"].is_monotonic_increasing
    assert table["params"][0] == found.best_params_
    assert set(table) == set(found.cv_results_)
    assert list(table)[:5] == ["rank_test_score", "param_C", "param_loss", "mean_test_score", "std_test_score"]
    assert list(table)[-5:] == ["mean_fit_time", "std_fit_time", "mean_score_time", "std_score_time", "params"]


def test_the_text_says_which_score_to_report_and_which_is_optimistic(found):
    text = str(found)
    assert f"score {found.score_:.4f}" in text
    assert "4 outer folds, each searched without" in text
    assert f"{found.best_score_:.4f} on the samples that chose it, which is optimistic" in text
    assert "rank  C" in text
    assert found.score_ == pytest.approx(found.nested_scores_.mean())


def test_long_tables_are_cut_and_folds_without_a_score_left_out():
    n = 30
    table = {
        "params": [{"a": k} for k in range(n)],
        "param_a": np.arange(n),
        "mean_test_score": np.linspace(0, 1, n),
        "std_test_score": np.zeros(n),
        "rank_test_score": np.arange(n, 0, -1),
    }
    result = SearchResult(table, n - 1, "grid", "accuracy", "svc", nested_scores_=np.array([0.5, np.nan, 0.7]))
    assert "... and 10 more" in str(result)
    assert result.score_ == pytest.approx(0.6)
    assert SearchResult(table, 0, "grid", "accuracy", "svc").score_ is None


def test_everything_fits_into_json(found):
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["best_params"] == {"C": found.best_params_["C"], "loss": found.best_params_["loss"]}
    assert told["best_score_is_optimistic"]
    assert told["nested_scores"] == pytest.approx(found.nested_scores_.tolist())
    assert len(told["cv_results"]["mean_test_score"]) == 6


def test_the_figure_has_a_line_a_second_parameter_and_the_nested_score(found):
    ax = found.plot()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "loss = hinge" in labels
    assert "loss = squared_hinge" in labels
    assert f"without the fold that is scored: {found.score_:.3f}" in labels
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "C"
    plt.close(ax.figure)


def test_parameters_that_are_no_numbers_are_drawn_by_rank(data):
    x, y, groups = data
    found = dd.search(dd.Decoder("svc"), x, {"loss": ["hinge", "squared_hinge"]}, y, groups, refit=False, nested=False)
    ax = found.plot()
    assert ax.get_xlabel() == "setting, the best first"
    plt.close(ax.figure)
