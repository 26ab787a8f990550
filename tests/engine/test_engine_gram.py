from __future__ import annotations

import numpy as np
import pytest

from daskdecode.engine.gram import full_gram, mirror, shared_grams

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("families", [[0] * 6, [0, 1, 0, 1, 2, 2], list(range(6))])
@pytest.mark.parametrize("flips", [0.02, 0.5])
def test_each_set_has_the_products_of_its_own_voxels(families, flips, dtype):
    x = RNG.standard_normal((23, 90)).astype(dtype)
    masks = (RNG.random(90) < 0.3) ^ (RNG.random((6, 90)) < flips)
    masks[3] = False
    blocks = np.split(x, [7, 60], axis=1)
    grams = mirror(shared_grams([*blocks[:2], np.asfortranarray(blocks[2])], masks, families))
    for gram, mask in zip(grams, masks, strict=True):
        chosen = x[:, mask].astype(np.float64)
        np.testing.assert_allclose(gram, chosen @ chosen.T, atol=1e-12)
        np.testing.assert_array_equal(gram, gram.T)


def test_all_voxels():
    x = RNG.standard_normal((23, 90))
    np.testing.assert_allclose(full_gram(x.astype(np.float32)), x @ x.T, rtol=1e-5, atol=1e-5)


def test_sets_that_share_voxels_cost_less(monkeypatch):
    """Counted products: five sets that differ in a few voxels from forty common ones."""
    from daskdecode.engine import gram

    counted = []
    inner = gram._add
    monkeypatch.setattr(gram, "_add", lambda g, rows, voxels, factor: (counted.append(voxels.size), inner(g, rows, voxels, factor)))
    masks = np.zeros((5, 90), dtype=bool)
    masks[:, :40] = True
    for s in range(5):
        masks[s, s] = False
        masks[s, 50 + s] = True
    shared_grams([RNG.standard_normal((9, 90))], masks, [0] * 5)
    assert sum(counted) == 40 + 5 * 2
