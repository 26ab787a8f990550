"""Gram matrices of many sets of voxels that have most voxels in common: each product is made once for several sets.

The voxels that screening keeps change little from fold to fold, and those that change are kept by some of the folds. Take a few sets
together, and let the *pattern* of a voxel be the sets that differ, over it, from a common set of voxels R. With G_P the signed sum of x x'
over the voxels of pattern P (plus where the sets of P add the voxel to R, minus where they lack it),

    K_s = K_R + sum over the patterns P that hold s of G_P

so a voxel is multiplied once, not once a set, and m sets need at most 2^m - 1 pattern matrices. Every sum is exact to rounding in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dgemm, dsyrk

from daskdecode.engine.moments import Bools, Floats, Ints

VOXELS_AT_ONCE = 4096
"""Voxels in one product: enough for BLAS to be at its best, little memory."""

MOST_TOGETHER = 4
"""Sets whose patterns are told apart: with more, patterns double in number and hold too few voxels to be worth a matrix each."""

TABLE_NBYTES = 2**27
"""Pattern matrices at a time, bytes: samples are worked on tile by tile, so that this does not grow with them. A quarter
takes a tenth longer."""

_PATTERN_COST = 25
"""What a pattern costs beside its products (a product of few voxels, sums of matrices), in products of one voxel; measured."""

Rows = Sequence[NDArray[np.floating]]


def full_gram(x: NDArray[np.floating]) -> Floats:
    """Gram matrix of all voxels of a block, ``K = X X'``; (n_samples, n_samples) float64."""
    x = np.asarray(x, dtype=np.float64)
    # A product with its own transpose is symmetric, and NumPy asks BLAS for half of it.
    return np.asarray(x @ x.T)


def add_shared_grams(
    grams: Floats, blocks: Sequence[NDArray[np.floating]], masks: Bools, families: Sequence[int], most_nbytes: int = TABLE_NBYTES
) -> None:
    """Add the products of some voxels to the Gram matrices of several sets of voxels, in place.

    Parameters
    ----------
    grams : ndarray of float64, shape (n_sets, n_pairs(n_samples))
        Packed lower triangles; :func:`unpack` makes them square.
    blocks : sequence of ndarray of float, shape (n_samples, n_voxels_of_block)
        Neighbouring voxels; Fortran order saves a copy of each.
    masks : ndarray of bool, shape (n_sets, n_voxels)
    families : sequence of int, length n_sets
        Sets of a family share their common products.
    most_nbytes : int
        What pattern matrices may take at a time.

    Notes
    -----
    Memory: ``table_nbytes(n_samples, most_nbytes)``, and :data:`VOXELS_AT_ONCE` voxels in float64.
    """
    n_samples = blocks[0].shape[0]
    # Voxels as rows: a set's voxels are then gathered in long pieces.
    rows = [np.ascontiguousarray(block.T) for block in blocks]
    labels = np.asarray(families)
    table = np.empty(0)
    for family in dict.fromkeys(families):
        members = np.flatnonzero(labels == family)
        groups, common = _arrange(masks[members])
        patterns = [_patterns(masks[members[group]], common) for group in groups]
        n_codes = max(map(len, patterns))
        tiles = _tiles(n_samples, n_codes, most_nbytes)
        if table.size < n_codes * tiles[0].stop ** 2:
            table = np.empty(n_codes * tiles[0].stop ** 2)
        for at, rows_of in enumerate(tiles):
            for columns_of in tiles[: at + 1]:
                tile = (rows_of, columns_of)
                shape = (n_codes, rows_of.stop - rows_of.start, columns_of.stop - columns_of.start)
                some = table[: np.prod(shape)].reshape(shape)
                _multiply(some[0], rows, tile, (np.flatnonzero(common), np.empty(0, dtype=np.intp)))
                for group, voxels in zip(groups, patterns, strict=True):
                    held = np.array([bool(more.size + fewer.size) for more, fewer in voxels])
                    for code in np.flatnonzero(held):
                        _multiply(some[code], rows, tile, voxels[code])
                    _add_patterns(some, held, grams, members[group], rows_of.start, columns_of.start)


def n_pairs(n_samples: int) -> int:
    """Count the numbers of a packed triangle of a Gram matrix."""
    return n_samples * (n_samples + 1) // 2


def unpack(triangle: Floats) -> Floats:
    """Turn a packed lower triangle, row by row (n_pairs,), into a symmetric matrix (n_samples, n_samples)."""
    n_samples = int((2 * triangle.size) ** 0.5)
    gram = np.empty((n_samples, n_samples))
    _unpack(triangle, gram)
    return gram


def table_nbytes(n_samples: int, most_nbytes: int = TABLE_NBYTES) -> int:
    """Bytes of the pattern matrices that :func:`add_shared_grams` holds at a time, at most."""
    return min(most_nbytes, 8 * n_samples**2 << MOST_TOGETHER)


def _tiles(n_samples: int, n_codes: int, most_nbytes: int) -> list[slice]:
    """Cut the samples so that a table of pattern matrices has a bounded size; the first is the largest."""
    widest = max(1, int((most_nbytes / (8 * n_codes)) ** 0.5))
    edges = [0, *np.cumsum([part.size for part in np.array_split(np.arange(n_samples), -(-n_samples // widest))]).tolist()]
    return [slice(lo, hi) for lo, hi in pairwise(edges)]


def _arrange(masks: Bools) -> tuple[list[Ints], Bools]:
    """Cut sets (n_sets, n_voxels) into groups whose patterns are told apart, and choose the common set: the cheapest arrangement.

    A voxel belongs to the common set where that saves products: it is multiplied once for it, and once more for each group in which some
    set lacks it, instead of once for each group in which some set has it.
    """
    best: tuple[float, list[Ints], Bools] | None = None
    for n_groups in sorted({-(-len(masks) // size) for size in range(1, MOST_TOGETHER + 1)}):
        groups = np.array_split(np.arange(len(masks)), n_groups)
        counts = [masks[group].sum(axis=0, dtype=np.uint8) for group in groups]
        has = np.sum([count > 0 for count in counts], axis=0)
        lacks = np.sum([count < group.size for count, group in zip(counts, groups, strict=True)], axis=0)
        common = 1 + lacks < has
        cost = np.minimum(has, 1 + lacks).sum() + _PATTERN_COST * sum((1 << group.size) - 1 for group in groups)
        if best is None or cost < best[0]:
            best = (float(cost), groups, common)
    assert best is not None
    return best[1], best[2]


def _patterns(masks: Bools, common: Bools) -> list[tuple[Ints, Ints]]:
    """Voxels of each pattern of a few sets, those that are added to the common set and those that are taken off.

    Patterns are numbered by the sets that differ from the common set, a bit a set; number 0, no difference, is left empty.
    """
    codes = np.zeros(common.size, dtype=np.uint8)
    for bit, mask in enumerate(masks):
        codes |= (mask != common).astype(np.uint8) << np.uint8(bit)
    order = np.argsort(codes, kind="stable").astype(np.intp)
    ends = np.searchsorted(codes[order], np.arange(1, (1 << len(masks)) + 1))
    none = np.empty(0, dtype=np.intp)
    pieces = [order[lo:hi] for lo, hi in pairwise(ends)]
    return [(none, none), *((piece[~common[piece]], piece[common[piece]]) for piece in pieces)]


def _multiply(gram: Floats, rows: Rows, tile: tuple[slice, slice], voxels: tuple[Ints, Ints]) -> None:
    """Write products of voxels, plus the first and minus the second, into a tile of a Gram matrix; one triangle of it on the diagonal."""
    beta = 0.0
    for chosen, sign in zip(voxels, (1.0, -1.0), strict=True):
        for start in range(0, chosen.size, VOXELS_AT_ONCE):
            some = chosen[start : start + VOXELS_AT_ONCE]
            left = _gather_all(rows, some, tile[0])
            # The transposes are views that Fortran reads without a copy: (n_samples, n_voxels), and the matrix itself.
            if tile[0] == tile[1]:
                updated = dsyrk(sign, left.T, beta=beta, c=gram.T, overwrite_c=1)
            else:
                updated = dgemm(sign, _gather_all(rows, some, tile[1]).T, left.T, trans_b=1, beta=beta, c=gram.T, overwrite_c=1)
            assert np.shares_memory(updated, gram)
            beta = 1.0
    if beta == 0.0:
        gram[:] = 0.0


def _gather_all(rows: Rows, voxels: Ints, samples: slice) -> Floats:
    """Copy samples of voxels (in ascending order) out of neighbouring blocks, (n_voxels, n_samples) float64."""
    bounds = np.cumsum([0, *(len(part) for part in rows)])
    cuts = np.searchsorted(voxels, bounds)
    gathered = np.empty((voxels.size, samples.stop - samples.start))
    for part, low, lo, hi in zip(rows, bounds, cuts, cuts[1:], strict=False):
        _gather(part[:, samples], voxels[lo:hi] - low, gathered[lo:hi])
    return gathered


@numba.njit(cache=True, nogil=True)
def _gather(rows, index, out):  # type: ignore[no-untyped-def]
    for i in range(index.size):
        row = rows[index[i]]
        for j in range(row.size):
            out[i, j] = row[j]


@numba.njit(cache=True, nogil=True)
def _add_patterns(table, held, grams, sets, top, left):  # type: ignore[no-untyped-def]
    """Add to each set's tile the common one and those of the patterns that hold the set; the tile starts at row top and column left.

    Sets are taken off one at a time, from the highest bit down: patterns that hold the set are summed up for it, then added to the patterns
    without it; so 2^m patterns take about 2^(m + 1) sums, not m 2^(m - 1). Row by row, so that they happen in the cache.
    """
    n_rows, n_columns = table.shape[1:]
    work = np.empty((held.size, n_columns))
    for i in range(n_rows):
        row = top + i
        width = min(n_columns, row + 1 - left)
        start = row * (row + 1) // 2 + left
        live = held.copy()
        for code in range(1, held.size):
            if live[code]:
                _copy(table[code, i], work[code], width)
        for s in range(sets.size - 1, -1, -1):
            half = 1 << s
            total = grams[sets[s], start : start + width]
            _add(table[0, i], total, width)
            for code in range(half, 2 * half):
                rest = code - half
                if not live[code]:
                    continue
                if rest == 0:
                    _add(work[code], total, width)
                elif live[rest]:
                    _add_to_both(work[code], total, work[rest], width)
                else:
                    _add(work[code], total, width)
                    _copy(work[code], work[rest], width)
                    live[rest] = True


@numba.njit(cache=True, nogil=True, inline="always")
def _copy(source, target, width):  # type: ignore[no-untyped-def]
    for j in range(width):
        target[j] = source[j]


@numba.njit(cache=True, nogil=True, inline="always")
def _add(source, target, width):  # type: ignore[no-untyped-def]
    for j in range(width):
        target[j] += source[j]


@numba.njit(cache=True, nogil=True, inline="always")
def _add_to_both(source, one, other, width):  # type: ignore[no-untyped-def]
    for j in range(width):
        one[j] += source[j]
        other[j] += source[j]


def add_triangle(gram: Floats, total: Floats) -> None:
    """Add the lower triangle of a matrix (n_samples, n_samples) to a packed one (n_pairs,), in place."""
    _add_triangle(gram, total)


@numba.njit(cache=True, nogil=True)
def _add_triangle(gram, total):  # type: ignore[no-untyped-def]
    for i in range(len(gram)):
        start = i * (i + 1) // 2
        _add(gram[i], total[start : start + i + 1], i + 1)


@numba.njit(cache=True, nogil=True)
def _unpack(triangle, gram):  # type: ignore[no-untyped-def]
    n = len(gram)
    tile = 32  # both sides of the diagonal stay in the cache
    for top in range(0, n, tile):
        for left in range(0, top + 1, tile):
            for i in range(top, min(top + tile, n)):
                for j in range(left, min(left + tile, i + 1)):
                    gram[i, j] = gram[j, i] = triangle[i * (i + 1) // 2 + j]
