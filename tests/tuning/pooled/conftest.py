"""What tests of searches over pooled subjects share."""

from __future__ import annotations

import gc

import pytest
from distributed import Client, LocalCluster


@pytest.fixture(scope="module")
def client():
    """A cluster of two threads of this process."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as found,
    ):
        yield found
    gc.collect()
