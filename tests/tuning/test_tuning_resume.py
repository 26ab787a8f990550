"""Searches that are killed and go on: the same numbers to the bit, and little done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

import daskdecode as dd
from daskdecode.errors import DecodingError
from daskdecode.models.record import Record
from daskdecode.tuning import folds, table

N_RUNS = 5
N_SETS = N_RUNS + N_RUNS * (N_RUNS - 1) // 2
GRID = {"C": [1e-3, 0.1, 1.0, 10.0, 100.0]}


def make(n_classes=2, p=150, seed=0):
    rng = np.random.default_rng(seed)
    lengths = [(9, 11)[r % 2] * n_classes // 2 for r in range(N_RUNS)]
    y = np.concatenate([np.arange(n) % n_classes for n in lengths])
    centres = 0.4 * rng.standard_normal((n_classes, p)) * (np.arange(p) < 15)
    return rng.standard_normal((y.size, p)) + centres[y], np.array([f"c{c}" for c in y]), np.repeat(np.arange(N_RUNS), lengths)


@pytest.fixture
def n_fits(monkeypatch):
    """Count fits of whatever a search tries."""
    done = []
    fit = table.Fit.fit
    monkeypatch.setattr(table.Fit, "fit", lambda self, *args, **kwargs: done.append(0) or fit(self, *args, **kwargs))
    return lambda: len(done)


def raising_at(n):
    def moved(done, _):
        if done >= n:
            raise KeyboardInterrupt

    return moved


def assert_same(found, expected):
    assert found.cv_results_.keys() == expected.cv_results_.keys()
    for name, values in expected.cv_results_.items():
        if not name.endswith("_time"):
            np.testing.assert_array_equal(found.cv_results_[name], values, err_msg=name)
    np.testing.assert_array_equal(found.nested_scores_, expected.nested_scores_)
    assert found.nested_params_ == expected.nested_params_
    assert found.notes_ == expected.notes_


WAYS = {
    "one Gram matrix for all": (2, {}, "svc", None, GRID),
    "one Gram matrix a training set": (2, {}, "svc", 30, GRID),
    "several problems": (3, {}, "ridge_classifier", 30, {"alphas": [[0.1], [10.0], [1e3], [1e5]]}),
    "columns": (
        2,
        {},
        make_pipeline(PCA(random_state=0), LinearSVC(random_state=0)),
        None,
        {"pca__n_components": [3, 9], "linearsvc__C": [0.1, 1]},
    ),
    "scaled in folds": (2, {"standardize": "zscore_fold"}, "logistic", None, {"C": [1e-3, 0.1]}),
}


@pytest.mark.parametrize(
    ("way", "share"), [*((way, 0.5) for way in WAYS), ("one Gram matrix a training set", 0.1), ("one Gram matrix for all", 0.9)]
)
def test_a_killed_search_goes_on_where_it_was(way, share, tmp_path, n_fits):
    n_classes, options, estimator, screening, grid = WAYS[way]
    x, y, groups = make(n_classes)
    decoder = dd.Decoder(estimator, screening_percentile=screening, **options)
    n_settings = int(np.prod([len(values) for values in grid.values()]))
    n_problems = 1 if n_classes == 2 else n_classes
    n_all = N_SETS * n_problems * n_settings
    path = tmp_path / "search.npz"
    with dask.config.set(scheduler="synchronous"):
        whole = dd.search(decoder, x, grid, y, groups, refit=False)
        assert n_fits() == n_all
        with pytest.raises(KeyboardInterrupt):
            dd.search(decoder, x, grid, y, groups, refit=False, path=path, progress=raising_at(share * N_SETS * n_problems))
        before = n_fits() - n_all
        calls = []
        resumed = dd.search(decoder, x, grid, y, groups, refit=False, path=path, progress=lambda *done: calls.append(done))
    assert_same(resumed, whole)
    # All that had ended when it was killed was kept.
    assert share * n_all <= before <= share * n_all + n_all / 20 + 4 * n_settings
    assert n_fits() - n_all == n_all
    assert calls[-1] == (N_SETS * n_problems, N_SETS * n_problems)
    assert [p.name for p in tmp_path.iterdir()] == ["search.npz"]


def test_a_fit_that_is_killed_costs_one_part(tmp_path, n_fits, monkeypatch):
    """Killed inside a part, in the middle of its fits, early, half way and late."""
    x, y, groups = make()
    with dask.config.set(scheduler="synchronous"):
        for tenth in (1, 5, 9):
            path, n_all, start = tmp_path / f"{tenth}.npz", N_SETS * 5, n_fits()
            fit = table.Fit.fit

            def killed(self, *args, _fit=fit, _end=start + tenth * n_all // 10, **kwargs):
                if n_fits() >= _end:
                    raise KeyboardInterrupt
                return _fit(self, *args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(table.Fit, "fit", killed)
                with pytest.raises(KeyboardInterrupt):
                    dd.search(dd.Decoder("svc"), x, GRID, y, groups, refit=False, path=path)
            missing, before = n_all - (n_fits() - start), n_fits()
            dd.search(dd.Decoder("svc"), x, GRID, y, groups, refit=False, path=path)
            assert missing <= n_fits() - before <= missing + max(n_all / 20, 2 * 5)


def test_sweeps_that_ended_are_not_made_again(tmp_path, monkeypatch):
    x, y, groups = make()
    sweeps, make_table = [], folds._Batch
    monkeypatch.setattr(folds, "_batch_size", lambda *_: 7)
    monkeypatch.setattr(folds, "_Batch", lambda *args: sweeps.append(0) or make_table(*args))
    whole = dd.search(dd.Decoder("svc"), x, GRID, y, groups, refit=False)
    assert len(sweeps) == 3
    path = tmp_path / "search.npz"
    with pytest.raises(KeyboardInterrupt):
        dd.search(dd.Decoder("svc"), x, GRID, y, groups, refit=False, path=path, progress=raising_at(9))
    sweeps.clear()
    assert_same(dd.search(dd.Decoder("svc"), x, GRID, y, groups, refit=False, path=path), whole)
    assert len(sweeps) == 2


def test_what_has_ended_is_read_and_nothing_is_fitted(tmp_path, n_fits, monkeypatch):
    x, y, groups = make()
    path = tmp_path / "search.npz"
    whole = dd.search(dd.Decoder("svc"), x, GRID, y, groups, path=path)
    before = n_fits()
    monkeypatch.setattr("daskdecode.tuning.folds.screen_all", None)
    monkeypatch.setattr("daskdecode.tuning.folds._Batch", None)
    again = dd.search(dd.Decoder("svc"), da.from_array(x, chunks=(7, 40)), GRID, y, groups, path=path)
    assert n_fits() == before
    assert_same(again, whole)
    np.testing.assert_array_equal(again.cv_results_["mean_fit_time"], whole.cv_results_["mean_fit_time"])
    np.testing.assert_allclose(again.best_decoder_.coef_, whole.best_decoder_.coef_, rtol=1e-9)


class _Fussy(RidgeClassifier):
    def fit(self, X, y, sample_weight=None):
        if self.alpha == 2.0:
            raise ValueError("2 is not for me")
        return super().fit(X, y, sample_weight)


@pytest.mark.parametrize("score", [np.nan, 0.25])
def test_fits_that_failed_before_the_kill_are_counted(score, tmp_path):
    x, y, groups = make()
    decoder = dd.Decoder(_Fussy(), screening_percentile=None)
    grid = {"alpha": [2.0, 10.0]}
    with pytest.warns(UserWarning, match=f"{N_SETS} of {2 * N_SETS} fits failed"):
        whole = dd.search(decoder, x, grid, y, groups, error_score=score, refit=False)
    path = tmp_path / "search.npz"
    with pytest.raises(KeyboardInterrupt):
        dd.search(decoder, x, grid, y, groups, error_score=score, refit=False, path=path, progress=raising_at(10))
    with pytest.warns(UserWarning, match=f"{N_SETS} of {2 * N_SETS} fits failed"):
        resumed = dd.search(decoder, x, grid, y, groups, error_score=score, refit=False, path=path)
    assert_same(resumed, whole)
    with pytest.raises(DecodingError, match="error_score was"):
        dd.search(decoder, x, grid, y, groups, refit=False, path=path)


def test_fits_that_did_not_converge_before_the_kill_are_counted(tmp_path):
    x, y, groups = make()
    decoder = dd.Decoder("svc", estimator_args={"max_iter": 1}, screening_percentile=None)
    with pytest.raises(KeyboardInterrupt):
        dd.search(decoder, x, GRID, y, groups, refit=False, path=tmp_path / "s.npz", progress=raising_at(10))
    with pytest.warns(UserWarning, match=f"{5 * N_SETS} of {5 * N_SETS} fits stopped"):
        dd.search(decoder, x, GRID, y, groups, refit=False, path=tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": 1}, "the data differ"),
        ({"y": 1}, "the labels differ"),
        ({"grid": {"C": [1e-3, 0.1, 1.0, 10.0, 99.0]}}, "the settings differ"),
        ({"nested": False}, "the folds differ"),
        ({"decoder": {"standardize": None}}, "standardize was 'zscore_run' and is None"),
        ({"decoder": {"estimator": "svc_l1"}}, "estimator was 'svc' and is 'svc_l1'"),
        ({"error_score": 0.0}, "error_score was 'raise' and is 0.0"),
        ({"sample_weight": np.arange(1.0, 50.0)}, "the weights differ"),
    ],
)
def test_a_file_of_another_search_is_refused(change, said, tmp_path):
    x, y, groups = make()
    path = tmp_path / "search.npz"
    decoder = dd.Decoder("svc", screening_percentile=None)
    dd.search(decoder, x, GRID, y, groups, refit=False, path=path)
    decoder.set_params(**change.get("decoder", {}))
    if "x" in change:
        x = x.copy()
        x[[0, 1], 0] = x[[1, 0], 0]
    if "y" in change:
        y = y.copy()
        y[[2, 3]] = y[[3, 2]]
    before = path.read_bytes()
    options = {k: v for k, v in change.items() if k in ("nested", "error_score", "sample_weight")}
    with pytest.raises(DecodingError, match=f"search.npz holds another search: .*{said}"):
        dd.search(decoder, x, change.get("grid", GRID), y, groups, refit=False, path=path, **options)
    assert path.read_bytes() == before


def test_what_changes_no_score_is_no_other_search(tmp_path, n_fits):
    """A grid's settings drawn at random, another budget, other parameters that a search does not use."""
    x, y, groups = make()
    path = tmp_path / "search.npz"
    dd.search(dd.Decoder("svc", screening_percentile=None), x, GRID, y, groups, refit=False, path=path)
    before = n_fits()
    other = dd.Decoder("svc", screening_percentile=None, memory_budget="1GB", param_grid={"C": [1, 2]}, tune="held_out")
    dd.search(other, da.from_array(x, chunks=(5, 40)), GRID, y, groups, refit=False, path=path)
    assert n_fits() == before


def never(block):
    raise AssertionError("data were read")


def test_a_file_that_is_no_search_is_named_before_data_are_read(tmp_path):
    x, y, groups = make()
    lazy = da.from_array(x, chunks=(6, 150)).map_blocks(never, dtype=float, meta=np.empty((0, 0)))

    def refused(path, message):
        with pytest.raises(DecodingError, match=message):
            dd.search(dd.Decoder("svc"), lazy, GRID, y, groups, path=path)

    notes, test, cut = tmp_path / "notes.txt", tmp_path / "null.npz", tmp_path / "cut.npz"
    notes.write_text("mine")
    refused(notes, r"notes.txt is damaged, or not the file of a search\. Give another path, or delete the file")
    assert notes.read_text() == "mine"
    fast = dd.Decoder("ridge_classifier", param_grid={"alphas": [[1.0]]}, screening_percentile=None)
    dd.permutation_test(fast, x, y, groups, n_permutations=2, path=test)
    refused(test, "null.npz is the file of a permutation test, not of a search")
    dd.search(dd.Decoder("svc"), x, GRID, y, groups, refit=False, path=cut)
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    refused(cut, "cut.npz is damaged")
    cut.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    refused(cut, "cut.npz is damaged")
    refused(tmp_path / "no" / "such.npz", "must be a file in an existing folder")
    if Path("/proc").is_dir():  # which nobody can write to, whatever it says
        refused(Path("/proc/such.npz"), "cannot be written to")


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "s.npz"
    Record("search", path, {"a": 1}).keep(n=np.arange(3))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    record = Record("search", path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match=r"No space left on device: .*s\.npz"):
            record.keep(n=np.arange(5))
    np.testing.assert_array_equal(Record("search", path, {"a": 1}).arrays["n"], np.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


CHILD = """
import sys, time
import test_tuning_resume as t
import daskdecode as dd
x, y, groups = t.make()
slow = lambda done, total: time.sleep(0.3)
dd.search(dd.Decoder("svc"), x, t.GRID, y, groups, refit=False, path=sys.argv[1], progress=slow)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_where_it_was(tmp_path, n_fits):
    path = tmp_path / "search.npz"
    where = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], env={**os.environ, "PYTHONPATH": where})
    try:
        for _ in range(1200):
            if path.exists():
                with np.load(path) as file:
                    if file["n_in_batch"].sum() >= N_SETS // 2:
                        break
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        else:
            raise AssertionError("it never came so far")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with np.load(path) as file:
        n_missing = int(N_SETS - file["n_in_batch"].sum()) * 5
    assert 0 < n_missing <= N_SETS * 5 // 2
    x, y, groups = make()
    resumed = dd.search(dd.Decoder("svc"), x, GRID, y, groups, refit=False, path=path)
    assert n_fits() == n_missing
    assert_same(resumed, dd.search(dd.Decoder("svc"), x, GRID, y, groups, refit=False))
