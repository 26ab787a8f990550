"""dask-ml's Hyperband beside the faults that are gone around, and what becomes of a fit that fails."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from dask_ml.model_selection import HyperbandSearchCV, _incremental
from scipy.stats import loguniform
from sklearn.linear_model import SGDClassifier

from daskdecode.errors import DecodingError
from daskdecode.tuning.pooled import dask_ml_hyperband
from daskdecode.tuning.pooled.dask_ml_hyperband import Hyperband, SampleBlocks, Split


def data(n=60, p=5, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return rng.standard_normal((n, p)) + 0.8 * y[:, None], y


def accuracy(model, X, y):
    return float(np.mean(model.predict(X) == y))


def _rows(x):
    return x


def pooled(n_blocks=12, rows=20, p=4):
    """Blocks in an order that matters: each has labels of its own, and there are more than ten."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, n_blocks * rows + 30)
    x = rng.standard_normal((y.size, p)) + 0.8 * y[:, None]
    blocks = SampleBlocks.of(_rows, [x[k * rows : (k + 1) * rows] for k in range(n_blocks)])
    labels = da.from_array(y[: n_blocks * rows], chunks=rows)
    held_out = da.from_array(x[-30:], chunks=(30, p)), da.from_array(y[-30:], chunks=30)
    return Split(blocks, held_out[0]), Split(labels, held_out[1]), x, y


def test_hyperband_runs_on_todays_distributed(client):
    X, Y, x, y = pooled()
    search = Hyperband(SGDClassifier(random_state=0), {"alpha": loguniform(1e-4, 1.0)}, max_iter=9, random_state=0, scoring=accuracy)
    search.fit(X, Y, classes=[0, 1])
    assert search.best_score_ == accuracy(search.best_estimator_, x[-30:], y[-30:])
    assert search.best_score_ > 0.7
    assert max(search.cv_results_["partial_fit_calls"]) == 9
    assert isinstance(_incremental.dask, dask_ml_hyperband._DaskForIncremental)
    assert _incremental.dask.config is dask.config


def test_hyperband_of_dask_ml_alone_is_refused(client, monkeypatch):
    # If this fails, dask-ml has been mended and the stand-in can go.
    monkeypatch.setattr(_incremental, "dask", dask)
    x, y = data(80, 4)
    search = HyperbandSearchCV(SGDClassifier(), {"alpha": loguniform(1e-4, 1.0)}, max_iter=3)
    with pytest.raises(RuntimeError, match="asynchronous Client"):
        search.fit(da.from_array(x, chunks=(20, 4)), da.from_array(y, chunks=20), classes=[0, 1])


def test_another_release_of_dask_ml_is_not_patched(client, monkeypatch):
    monkeypatch.setattr(dask_ml_hyperband, "version", lambda name: "2031.1.0")
    with pytest.raises(DecodingError, match=r"found 2031\.1\.0"):
        Hyperband(SGDClassifier(), {}).fit(*pooled()[:2])


def test_a_fit_that_raises_ends_hyperband_with_its_error(client):
    X, Y, *_ = pooled()
    search = Hyperband(SGDClassifier(), {"alpha": [1e-4, -1.0]}, max_iter=3, random_state=0, scoring=accuracy)
    with pytest.raises(ValueError, match="alpha"):
        search.fit(X, Y, classes=[0, 1])
