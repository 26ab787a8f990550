"""Gram matrices of many sets of voxels that have most voxels in common: common products once, differences a set.

The voxels that screening keeps change little from fold to fold. With R the voxels that most sets of a family keep,

    K_s = K_R + sum over voxels in s but not R of x x' - sum over voxels in R but not s of x x'

so a set costs only the voxels in which it differs from R. Every sum is exact to rounding in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk

from daskdecode.engine.moments import Bools, Floats, Ints

VOXELS_AT_ONCE = 4096
"""Voxels in one product: enough for BLAS to be at its best, little memory."""


def full_gram(x: NDArray[np.floating]) -> Floats:
    """Gram matrix of all voxels of a block, ``K = X X'``; (n_samples, n_samples) float64."""
    x = np.asarray(x, dtype=np.float64)
    # A product with its own transpose is symmetric, and NumPy asks BLAS for half of it.
    return np.asarray(x @ x.T)


def shared_grams(blocks: Sequence[NDArray[np.floating]], masks: Bools, families: Sequence[int]) -> Floats:
    """Gram matrices of several sets of voxels.

    Parameters
    ----------
    blocks : sequence of ndarray of float, shape (n_samples, n_voxels_of_block)
        Neighbouring voxels; Fortran order saves a copy of each.
    masks : ndarray of bool, shape (n_sets, n_voxels)
    families : sequence of int, length n_sets
        Sets of a family share their common products.

    Returns
    -------
    ndarray of float64, shape (n_sets, n_samples, n_samples)
        The lower triangles only: sum them over what is computed apart, then :func:`mirror`.

    Notes
    -----
    Memory: the result, and :data:`VOXELS_AT_ONCE` voxels in float64.
    """
    n_samples = blocks[0].shape[0]
    # Voxels as rows: a set's voxels are then gathered in long pieces.
    rows = [np.ascontiguousarray(block.T) for block in blocks]
    grams = np.zeros((len(masks), n_samples, n_samples))
    labels = np.asarray(families)
    for family in dict.fromkeys(families):
        members = np.flatnonzero(labels == family)
        common = masks[members].mean(axis=0) > 0.5
        base = np.zeros((n_samples, n_samples))
        if members.size > 1:
            _add(base, rows, np.flatnonzero(common), 1.0)
        for s in members:
            more, fewer, own = (np.flatnonzero(m) for m in (masks[s] & ~common, common & ~masks[s], masks[s]))
            if members.size > 1 and more.size + fewer.size < own.size:
                grams[s] = base
                _add(grams[s], rows, more, 1.0)
                _add(grams[s], rows, fewer, -1.0)
            else:
                _add(grams[s], rows, own, 1.0)
    return grams


def _add(gram: Floats, rows: Sequence[NDArray[np.floating]], voxels: Ints, factor: float) -> None:
    """Add ``factor`` times the products of some voxels to one triangle of a Gram matrix, in place."""
    bounds = np.cumsum([0, *(len(part) for part in rows)])
    for start in range(0, voxels.size, VOXELS_AT_ONCE):
        some = voxels[start : start + VOXELS_AT_ONCE]
        cuts = np.searchsorted(some, bounds)
        gathered = np.empty((some.size, gram.shape[0]))
        for part, low, lo, hi in zip(rows, bounds, cuts, cuts[1:], strict=False):
            gathered[lo:hi] = part[some[lo:hi] - low]
        # The transposes are views that Fortran reads without a copy: (n_samples, n_voxels), and the matrix itself.
        updated = dsyrk(factor, gathered.T, beta=1.0, c=gram.T, overwrite_c=1)
        assert np.shares_memory(updated, gram)


def mirror(triangles: Floats) -> Floats:
    """Copy lower triangles to the upper ones, of (n_sets, n_samples, n_samples)."""
    grams = triangles.copy()
    _mirror_in_place(grams)
    return grams


def whole_grams(blocks: Sequence[NDArray[np.floating]], masks: Bools, families: Sequence[int]) -> Floats:
    """:func:`shared_grams` of all voxels there are, both triangles."""
    grams = shared_grams(blocks, masks, families)
    _mirror_in_place(grams)
    return grams


@numba.njit(cache=True, nogil=True)
def _mirror_in_place(grams):  # type: ignore[no-untyped-def]
    n_sets, n, _ = grams.shape
    tile = 32  # both sides of the diagonal stay in the cache
    for s in range(n_sets):
        for top in range(0, n, tile):
            for left in range(0, top + 1, tile):
                for i in range(top, min(top + tile, n)):
                    for j in range(left, min(left + tile, i)):
                        grams[s, j, i] = grams[s, i, j]
