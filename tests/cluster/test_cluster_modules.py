"""Estimators of a user's own modules, which workers may not have."""

from __future__ import annotations

import importlib
import threading

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from sklearn.linear_model import RidgeClassifier, SGDClassifier

import daskdecode as dd
from daskdecode.errors import ClusterError, DecodingError

RNG = np.random.default_rng(0)
X, Y, RUNS = RNG.standard_normal((24, 30)), ["a", "b"] * 12, np.repeat([0, 1, 2], 8)
MODULE = """
from sklearn.linear_model import RidgeClassifier, SGDClassifier

class Mine(RidgeClassifier):
    pass

class Streamed(SGDClassifier):
    pass
"""


@pytest.fixture(scope="module")
def client():
    """One worker in a process of its own, which tests make modules for after it has started."""
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def mine(client, tmp_path, monkeypatch):
    """A module that only this process can import."""
    (tmp_path / "of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("of_mine")
    monkeypatch.delitem(importlib.sys.modules, "of_mine")


@pytest.mark.timeout(60)  # of what waits for ever otherwise
@pytest.mark.parametrize("how", ["fit", "explain", "permutations", "search", "hyperband"])
def test_what_workers_lack_is_named_before_they_die_of_it(mine, client, how):
    decoder = dd.Decoder(mine.Streamed() if how == "hyperband" else mine.Mine(), screening_percentile=None)
    calls = {
        "fit": lambda: decoder.fit(X, Y, RUNS),
        "explain": lambda: decoder.explain(X, Y, RUNS),
        "permutations": lambda: dd.permutation_test(decoder, X, Y, RUNS, n_permutations=9),
        "search": lambda: dd.search(decoder, X, {"alpha": [1.0, 2.0]}, Y, RUNS),
        "hyperband": lambda: dd.search(decoder, X, {"alpha": [1e-4, 1e-3]}, Y, RUNS, method="hyperband", n_iter=3),
    }
    with pytest.raises(ClusterError, match=r"cannot be loaded on 1 of the workers .*No module named 'of_mine'.*upload_file"):
        calls[how]()
    assert len(client.nthreads()) == 1


def test_a_module_that_was_sent_is_found(mine, client, tmp_path):
    client.upload_file(str(tmp_path / "of_mine.py"))
    found = dd.Decoder(mine.Mine(), screening_percentile=None).fit(X, Y, RUNS)
    with dask.config.set(scheduler="threads"):
        expected = dd.Decoder(RidgeClassifier(), screening_percentile=None).fit(X, Y, RUNS)
    assert found.cv_scores_ == expected.cv_scores_


def test_what_cannot_be_sent_is_named(client):
    estimator = SGDClassifier()
    estimator.lock = threading.Lock()
    build = dd.Decoder(estimator, scoring=lambda model, x, y: float(estimator.lock.locked()), screening_percentile=None)
    with pytest.raises(DecodingError, match="cannot be sent to workers: TypeError"):
        build.fit(X, Y, RUNS)
