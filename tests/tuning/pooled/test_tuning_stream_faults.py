"""Stream searches whose workers are killed all the time, or whose driver is: the same numbers to the bit, and little done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import numpy as np
import pytest
from dask_ml.linear_model import LogisticRegression
from sklearn.base import clone
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GroupKFold

import daskdecode as dd
from daskdecode.tuning.pooled import glm
from tests.killing import child_env, killing_workers
from tests.tuning.pooled.made import P, dataset, make

pytestmark = pytest.mark.slow

N_SUBJECTS = 12
N_OF_CHECK = 8
"""Samples of the fits that only find out whether a setting can be fitted."""


def pace():
    """Take as long as the environment says, here and in the processes that inherit it."""
    time.sleep(float(os.environ.get("DASKDECODE_TEST_PAUSE_S", "0")))


def tell(done):
    """Add a line to the file that the environment names."""
    if path := os.environ.get("DASKDECODE_TEST_LOG"):
        with Path(path).open("a") as file:
            file.write(f"{done}\n")


class Paced(SGDClassifier):
    """Takes its time, and tells whenever it has learnt."""

    def partial_fit(self, X, y, classes=None):
        if len(y) > N_OF_CHECK:
            pace()
        super().partial_fit(X, y, classes=classes)
        if len(y) > N_OF_CHECK:
            tell(f"{self.alpha!r} {self.t_!r}")
        return self


def fit_and_tell(*args, fit=glm.fit_linear):
    """Fit one of dask-ml's linear models, and tell."""
    found = fit(*args)
    tell("fit")
    return found


MODELS = {
    "sgd": (Paced(random_state=0), {"alpha": [1e-4, 1e-3, 1e-2, 1e-1]}),
    "logistic": (LogisticRegression(solver="lbfgs", solver_kwargs={"normalize": False}), {"C": [1e-3, 1e-2]}),
}


def searched(model, cv, path=None, *, max_iter=6, **options):
    estimator, grid = MODELS[model]
    decoder = dd.Decoder(clone(estimator).set_params(max_iter=max_iter), cv=cv, screening_percentile=None, screening_n_features=60)
    with dask.config.set({"num_workers": 2}):
        return dd.search(decoder, dataset(*make(n_subjects=N_SUBJECTS)), grid, route="stream", path=path, **options)


def assert_same(found, expected):
    for name in (name for name in expected.cv_results_ if name.startswith("split")):
        np.testing.assert_array_equal(found.cv_results_[name], expected.cv_results_[name])
    np.testing.assert_array_equal(found.nested_scores_, expected.nested_scores_)
    np.testing.assert_array_equal(found.best_decoder_.coef_, expected.best_decoder_.coef_)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("daskdecode.tuning.pooled.blocks.BLOCK_NBYTES", 60 * P * 4)


@pytest.mark.parametrize("model", MODELS)
def test_workers_that_are_killed_all_the_time_change_no_number(model, monkeypatch):
    # A solver passes over the data again and again: two folds of it are enough to kill many.
    cv, nested = (GroupKFold(3), True) if model == "sgd" else (GroupKFold(2), False)
    expected = searched(model, cv, nested=nested)
    monkeypatch.setenv("DASKDECODE_TEST_PAUSE_S", "0.02")
    with dd.connect("local", n_workers=2, threads_per_worker=1, allowed_failures=1000) as client:
        began = time.monotonic()
        with killing_workers(client, lives={"sgd": 2, "logistic": 1}[model]) as killed:
            while len(killed) < 2:  # on a busy machine a search may end before
                assert_same(searched(model, cv, nested=nested), expected)
        print(f"{model}: {len(killed)} killed in {time.monotonic() - began:.0f} s")


CHILD = """
import sys
import tests.tuning.pooled.test_tuning_stream_faults as t
t.glm.fit_linear = t.fit_and_tell
from daskdecode.tuning.pooled import blocks
blocks.BLOCK_NBYTES = 60 * t.P * 4
t.searched(sys.argv[1], t.CV[sys.argv[1]], sys.argv[2], max_iter=2)
"""

CV = {"sgd": "run", "logistic": GroupKFold(4)}
"""78 training sets of 4 settings, and 20 of 2."""


def told(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("model", MODELS)
def test_a_driver_that_is_killed_goes_on_where_it_was(model, tmp_path, monkeypatch):
    monkeypatch.setattr(glm, "fit_linear", fit_and_tell)
    logs = {name: tmp_path / f"{name}.log" for name in ("whole", "killed", "again")}
    monkeypatch.setenv("DASKDECODE_TEST_LOG", str(logs["whole"]))
    expected = searched(model, CV[model], max_iter=2)
    n_all, path = len(told(logs["whole"])), tmp_path / "search.npz"
    env = child_env(DASKDECODE_TEST_LOG=str(logs["killed"]), DASKDECODE_TEST_PAUSE_S="0.002")
    child = subprocess.Popen([sys.executable, "-c", CHILD, model, str(path)], env=env)
    try:
        while len(told(logs["killed"])) < 0.4 * n_all:
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    n_missing = n_all - len(told(logs["killed"]))
    monkeypatch.setenv("DASKDECODE_TEST_LOG", str(logs["again"]))
    assert_same(searched(model, CV[model], path, max_iter=2), expected)
    n_again = len(told(logs["again"])) - n_missing
    print(f"{model}: {n_missing} of {n_all} missing when it was killed, {n_again} done again")
    # What a kill loses is what was on its way: a twentieth of all fits at most.
    assert 0 <= n_again <= n_all / 19
    assert n_again < 0.1 * n_missing
