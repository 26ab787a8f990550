from __future__ import annotations

import numpy as np
import pytest

from daskdecode.engine import gram
from daskdecode.engine.gram import add_shared_grams, full_gram, n_pairs, unpack

RNG = np.random.default_rng(0)


def shared_grams(blocks, masks, families, *limit):
    """Add blocks one after another, and unpack the sums."""
    n_samples = blocks[0].shape[0]
    packed, start = np.zeros((len(masks), n_pairs(n_samples))), 0
    for some in ([blocks[0]], blocks[1:]):
        if some:
            width = sum(block.shape[1] for block in some)
            add_shared_grams(packed, some, masks[:, start : start + width], families, *limit)
            start += width
    return [unpack(triangle) for triangle in packed]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("families", [[0] * 6, [0, 1, 0, 1, 2, 2], list(range(6))])
@pytest.mark.parametrize("flips", [0.02, 0.5])
def test_each_set_has_the_products_of_its_own_voxels(families, flips, dtype):
    x = RNG.standard_normal((23, 90)).astype(dtype)
    masks = (RNG.random(90) < 0.3) ^ (RNG.random((6, 90)) < flips)
    masks[3] = False
    blocks = np.split(x, [7, 60], axis=1)
    grams = shared_grams([*blocks[:2], np.asfortranarray(blocks[2])], masks, families)
    for found, mask in zip(grams, masks, strict=True):
        chosen = x[:, mask].astype(np.float64)
        np.testing.assert_allclose(found, chosen @ chosen.T, atol=1e-12)
        np.testing.assert_array_equal(found, found.T)


def test_all_voxels():
    x = RNG.standard_normal((23, 90))
    np.testing.assert_allclose(full_gram(x.astype(np.float32)), x @ x.T, rtol=1e-5, atol=1e-5)


def count_products(masks, families, monkeypatch):
    counted = []
    inner = gram._multiply
    monkeypatch.setattr(
        gram, "_multiply", lambda g, rows, tile, voxels: (counted.append(sum(v.size for v in voxels)), inner(g, rows, tile, voxels))
    )
    shared_grams([RNG.standard_normal((9, masks.shape[1]))], masks, families)
    return sum(counted)


def test_sets_that_share_voxels_cost_less(monkeypatch):
    """Counted products: five sets that each add a voxel of their own to four hundred common ones, and lack another."""
    masks = np.zeros((5, 900), dtype=bool)
    masks[:, :400] = True
    for s in range(5):
        masks[s, s] = False
        masks[s, 500 + s] = True
    assert count_products(masks, [0] * 5, monkeypatch) == 400 + 5 * 2


def test_voxels_that_several_sets_keep_are_multiplied_once(monkeypatch):
    """Four sets out of which each voxel is kept by two: six patterns, each of as many voxels, and no voxel twice."""
    pairs = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]], dtype=bool)
    masks = np.repeat(pairs.T, 500, axis=1)
    assert count_products(masks, [0] * 4, monkeypatch) == 3000


@pytest.mark.parametrize("n_sets", [1, 4, 7])
@pytest.mark.parametrize("nbytes", [1, 8 * 16 * 9 * 9, 2**27])
def test_tiles_of_samples_bound_the_memory_and_change_nothing(n_sets, nbytes):
    x = RNG.standard_normal((23, 900))
    masks = (RNG.random(900) < 0.3) ^ (RNG.random((n_sets, 900)) < 0.3)
    whole = shared_grams([x[:, :100], x[:, 100:]], masks, [0] * n_sets, nbytes)
    for found, mask in zip(whole, masks, strict=True):
        np.testing.assert_allclose(found, x[:, mask] @ x[:, mask].T, atol=1e-11)
    widest = gram._tiles(23, 16, nbytes)[0].stop
    assert widest == 1 or 8 * 16 * widest**2 <= nbytes
    assert gram.table_nbytes(23, nbytes) <= nbytes
