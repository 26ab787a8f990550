"""How often a decode reads each stored chunk."""

from __future__ import annotations

import dask
import pytest
from zarr.storage import LocalStore

import daskdecode as dd
from daskdecode.testing import CountingStore


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "tune", "screening", "standardize", "passes"),
    [
        ("400MB", "held_out", 20, "zscore_run", 1),
        ("100MB", "held_out", 20, "zscore_run", 3),
        ("120MB", "nested", 20, "zscore_run", 3),
        ("70MB", "nested", None, "zscore_run", 2),
        ("130MB", "held_out", None, "zscore_fold", 2),
    ],
)
def test_each_chunk_is_read_as_often_as_planned(brain, budget, tune, screening, standardize, passes):
    counting = CountingStore(LocalStore(brain))
    grid = {"C": [0.1, 10]}
    decoder = dd.Decoder("svc", param_grid=grid, tune=tune, screening_percentile=screening, standardize=standardize, memory_budget=budget)
    with dask.config.set(scheduler="threads", num_workers=2):
        ds = dd.open_subject(counting)
        counting.reset()
        assert decoder.explain(ds).passes == passes
        assert not counting.bold_reads
        decoder.fit(ds)
    assert len(counting.bold_reads) == 12 * len(ds["bold"].data.chunks[1])
    assert set(counting.bold_reads.values()) == {passes}
