from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdecode.engine.sweep import VoxelBlocks

RNG = np.random.default_rng(0)
X = RNG.standard_normal((14, 53))
MASKS = RNG.random((3, 53)) < 0.4


@settings(deadline=None, max_examples=20)
@given(columns=st.integers(1, 53), rows=st.integers(1, 14), block=st.integers(1, 53))
def test_sweeps_do_not_depend_on_chunks_or_blocks(columns, rows, block):
    blocks = VoxelBlocks(da.from_array(X, chunks=(rows, columns)), block_nbytes=8 * 14 * block)
    weights = RNG.standard_normal((2, 53))
    dual = RNG.standard_normal((4, 3, 14))
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_allclose(blocks.grams(None)[0].compute(), X @ X.T, rtol=1e-12, atol=1e-12)
        for each in (blocks, blocks.keep()):
            for gram, mask in zip(dask.compute(*each.grams(MASKS, [0, 1, 0])), MASKS, strict=True):
                np.testing.assert_allclose(gram, X[:, mask] @ X[:, mask].T, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(blocks.times(weights).compute(), X @ weights.T, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(blocks.project(X[:, :2]).compute(), X.T @ X[:, :2], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(blocks.accumulate(lambda x, w: x @ w.T, weights).compute(), X @ weights.T, rtol=1e-12, atol=1e-12)
        every = (dual.reshape(-1, 14) @ X).reshape(4, 3, 53) * MASKS
        np.testing.assert_allclose(blocks.ensemble(dual, MASKS[None]).compute(), [every.mean(0), every.std(0)], rtol=1e-10, atol=1e-12)


def test_columns_come_in_the_order_asked_for():
    index = np.array([40, 2, 17, 52, 0])
    blocks = VoxelBlocks(da.from_array(X, chunks=(14, 10)), block_nbytes=1)
    np.testing.assert_array_equal(blocks.columns(index).compute(), X[:, index])


@pytest.mark.parametrize("block", [1, 8 * 14 * 20, 10**9])
def test_storage_chunks_are_merged_and_never_split(block):
    blocks = VoxelBlocks(da.from_array(X, chunks=(14, 10)), block_nbytes=block)
    assert set(blocks.bounds) <= set(range(0, 60, 10)) | {53}
    assert blocks.bounds[-1] == 53
