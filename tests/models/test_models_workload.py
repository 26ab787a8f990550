"""A budget that a refusal names is enough."""

from __future__ import annotations

import re

import dask.array as da
import numpy as np
import pytest

from daskdecode import Decoder
from daskdecode.errors import MemoryBudgetError


@pytest.mark.parametrize("options", [{}, {"standardize": "zscore_fold"}])
def test_the_memory_that_a_refusal_asks_for_is_enough(options):
    runs, y = np.repeat([1, 2, 3, 4], [13, 11, 12, 12]), np.arange(48) % 3
    x = da.zeros((48, 20_000), chunks=(12, 3000), dtype=np.float32)

    def explain(budget):
        return Decoder(param_grid={"C": [0.1, 1]}, memory_budget=budget, **options).explain(x, y, runs)

    with pytest.raises(MemoryBudgetError) as refused:
        explain("1MB")
    needed = float(re.search(r"at least ([\d.]+) MiB", str(refused.value))[1])
    for factor in np.linspace(1.001, 4, 25):
        assert explain(int(needed * factor * 2**20)).peak_nbytes <= needed * factor * 2**20
    with pytest.raises(MemoryBudgetError):
        explain(int(needed * 0.99 * 2**20))
