"""A store larger than what a worker may hold, on a cluster of processes that are killed where they hold more."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import daskdecode as dd

LIMIT = 900 * 10**6
"""Of which Python and its packages take nearly half."""


@pytest.fixture(scope="module")
def large(write_store, tmp_path_factory):
    """720 volumes x 700,000 voxels of noise that hardly compresses, as int16; the decode sees twice as many bytes, as float32."""
    return write_store(tmp_path_factory.mktemp("large"), 700_000, repeats=30, noise=16_000)


@pytest.mark.slow
def test_a_store_larger_than_a_workers_memory_is_decoded(large):
    stored = sum(path.stat().st_size for path in Path(large).rglob("*") if path.is_file())
    assert stored > LIMIT
    ds = dd.open_subject(large)
    with dd.connect("local", n_workers=1, threads_per_worker=2, memory_limit=LIMIT) as client:
        pids = client.run(os.getpid)
        for budget in ("2GB", None):  # what is asked for is held to what the worker has
            decoder = dd.Decoder("svc", param_grid={"C": 1}, memory_budget=budget)
            plan = decoder.explain(ds)
            assert (plan.in_memory, plan.passes) == (False, 3)
        decoder.fit(ds)
        assert client.run(os.getpid) == pids, "the worker was killed"
    alone = dd.Decoder("svc", param_grid={"C": 1}, memory_budget="400MB").fit(ds)
    for label, scores in alone.cv_scores_.items():
        np.testing.assert_allclose(decoder.cv_scores_[label], scores, atol=1e-12)
