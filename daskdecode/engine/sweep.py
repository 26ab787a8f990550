"""The engine's one Dask layer: sweeps over blocks of voxels, each a few big tasks.

A sweep reads the data once and leaves something small: sums of cells, Gram matrices, a few columns, coefficients. Whichever scheduler is
active does the work.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.core import flatten
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from daskdecode.engine.gram import TABLE_NBYTES, add_shared_grams, full_gram, n_pairs, unpack
from daskdecode.engine.moments import Bools, Floats, Ints
from daskdecode.engine.running import RunningSum
from daskdecode.engine.workers import active_client, n_threads_of_all, n_threads_of_one

_LEAST_TABLE_NBYTES = 2**22


@dataclass(frozen=True)
class InPlace:
    """A sum over blocks, made by ``add(values, blocks, part, *shared)``.

    Attributes
    ----------
    shape : tuple of int
    add : callable
        Adds blocks to ``values``, in place.
    columnwise : ndarray or None
        One column a voxel (last axis): ``part`` is the blocks' share.
    shared : tuple
    """

    shape: tuple[int, ...]
    add: Any
    columnwise: NDArray[Any] | None
    shared: tuple[Any, ...] = ()


class VoxelBlocks:
    """A lazy matrix (n_samples, n_voxels) cut along voxels only.

    Parameters
    ----------
    x : dask array, shape (n_samples, n_voxels)
        Storage chunks are merged into larger blocks, never split.
    block_nbytes : int
        Upper bound for a block in float64; at least one storage chunk.
    kept : bool
        Whether the blocks are in memory already, so that a task may take all of them.
    """

    def __init__(self, x: da.Array, block_nbytes: int = 2**27, *, kept: bool = False) -> None:
        self.block_nbytes, self.kept = block_nbytes, kept
        n_samples = x.shape[0]
        columns = _merge(x.chunks[1], max(1, block_nbytes // (8 * max(1, n_samples))))
        self.x = x.rechunk((n_samples, columns))
        self.bounds: list[int] = [0, *np.cumsum(columns).tolist()]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_samples, n_voxels)."""
        return (int(self.x.shape[0]), int(self.x.shape[1]))

    def like(self, x: da.Array) -> VoxelBlocks:
        """Cut another matrix in the same way."""
        return VoxelBlocks(x, self.block_nbytes)

    def read_whole(self) -> da.Array:
        """Make of the matrix one whose every block is read inside one task.

        Many small tasks a block would be begun for many blocks at once, which a cluster then holds; of whole ones it begins no more than
        it has threads for. What is worked out of the result in one graph shares what is read.
        """
        name = f"read-{tokenize(self.x)}"
        tasks: dict[Any, Any] = {(name, 0, number): (_Unread(self.x.blocks[0, number]),) for number in range(self.n_blocks)}
        return da.Array(HighLevelGraph.from_collections(name, tasks), name, self.x.chunks, dtype=self.x.dtype)

    def keep(self) -> VoxelBlocks:
        """Compute the blocks and keep them in memory, voxel by voxel (Fortran order): the order in which voxels are gathered."""
        return VoxelBlocks(self.x.map_blocks(np.asfortranarray).persist(), self.block_nbytes, kept=True)

    @property
    def n_blocks(self) -> int:
        """Number of blocks: tasks a sweep."""
        return len(self.bounds) - 1

    @property
    def widest(self) -> int:
        """Voxels in the largest block."""
        return max(np.diff(self.bounds).tolist())

    def _map(self, function: Any, *columnwise: NDArray[Any] | None) -> list[Delayed]:
        """Apply ``function(block, *slices)`` to each block, where each slice holds the block's columns (last axis) of an array."""
        task = _task(function)
        # Not optimised one by one: sweeps that are computed together then share the tasks that read.
        blocks = self.x.to_delayed(optimize_graph=False).ravel()
        return [
            task(block, *(None if a is None else a[..., lo:hi] for a in columnwise))
            for block, (lo, hi) in zip(blocks, pairwise(self.bounds), strict=True)
        ]

    def grams(self, masks: Bools | None, families: Sequence[int] = ()) -> list[Delayed]:
        """Gram matrices of several sets of voxels, lazily.

        Parameters
        ----------
        masks : ndarray of bool, shape (n_sets, n_voxels), or None
            None stands for one set with every voxel.
        families : sequence of int, length n_sets
            Sets of one family are expected to have most voxels in common.

        Returns
        -------
        list of Delayed
            For each set an ndarray of float64, shape (n_samples, n_samples).

        Notes
        -----
        Memory: half a matrix a set (:meth:`running`), and what is taken of the result.
        """
        if masks is None:
            return [tree_sum(self._map(full_gram))]
        square = dask.delayed(squared, pure=False)
        shares, limit = _shares(families), table_limit(8 * self.shape[0] * self.widest)
        sums = [
            InPlace((len(sets), n_pairs(self.shape[0])), add_shared_grams, masks[sets], ([families[s] for s in sets], limit))
            for sets in shares
        ]
        grams: dict[int, Delayed] = {}
        for sets, total in zip(shares, self.running(sums), strict=True):
            grams |= {s: square(total, position) for position, s in enumerate(sets)}
        return [grams[s] for s in range(len(masks))]

    def running(self, sums: Sequence[InPlace]) -> list[Delayed]:
        """Sums over all blocks that are made in place, side by side; lazily one :class:`RunningSum` each.

        Blocks in memory are added all at once. Others are read each inside one task, and only as many as a process has
        threads before the sums have taken what came before: without that, a scheduler reads while sums are busy, and data fill the memory.
        """
        task, begin = dask.delayed(_add, pure=False), dask.delayed(RunningSum, pure=False)
        totals: list[Delayed] = [begin(s.shape) for s in sums]
        arguments = [dask.delayed(s.shared, pure=False, traverse=False) for s in sums]
        if self.kept:
            blocks = list(self.x.to_delayed(optimize_graph=False).ravel())
            return [task(t, 0, s.add, blocks, s.columnwise, a) for t, s, a in zip(totals, sums, arguments, strict=True)]
        read, taken = dask.delayed(_read, pure=False), dask.delayed(_taken, pure=False)
        behind: list[list[Delayed]] = []
        ahead = n_threads_of_one()
        for number, (lo, hi) in enumerate(pairwise(self.bounds)):
            block = read(_Unread(self.x.blocks[0, number]), behind[number - ahead] if number >= ahead else [])
            parts = [None if s.columnwise is None else s.columnwise[..., lo:hi] for s in sums]
            totals = [task(t, number, s.add, [block], part, a) for t, s, part, a in zip(totals, sums, parts, arguments, strict=True)]
            behind.append([taken(total) for total in totals])
        return totals

    def columns(self, index: Ints) -> Delayed:
        """Take a few voxels, in the order of ``index``; lazily (n_samples, index.size) float64."""
        wanted = np.zeros(self.shape[1], dtype=bool)
        wanted[index] = True
        parts = self._map(_take, wanted)
        rank = np.argsort(np.argsort(index))
        joined: Delayed = dask.delayed(_join)(parts, rank)
        return joined

    def project(self, weights: Floats) -> Delayed:
        """X' times weights (n_samples, n_columns), lazily (n_voxels, n_columns) float64."""
        joined: Delayed = dask.delayed(np.concatenate)(self._map(_Project(weights)))
        return joined

    def map_join(self, function: Any, n: int) -> list[Delayed]:
        """Concatenate over voxels (last axis) each of the ``n`` arrays that ``function(block)`` returns, lazily."""
        parts: list[Any] = self._map(function)
        join = dask.delayed(np.concatenate)
        return [join([part[i] for part in parts], axis=-1) for i in range(n)]

    def map(self, function: Any, *columnwise: NDArray[Any]) -> list[Delayed]:
        """Apply ``function(block, *parts)`` to each block, lazily; parts are the block's shares of arrays with one column a voxel."""
        return self._map(function, *columnwise)

    def accumulate(self, function: Any, columnwise: NDArray[Any]) -> Delayed:
        """Sum of ``function(block, part)`` over the blocks, lazily, one after another: what is large as a sum is there once.

        ``part`` is the block's share of an array with one column a voxel.
        """
        add = dask.delayed(operator.add, pure=False)
        total: Delayed = reduce(add, self._map(function, columnwise))
        return total

    def map_sum(self, function: Any) -> Delayed:
        """Sum of ``function(block)`` over the blocks, lazily."""
        return tree_sum(self._map(function))

    def map_sum_with(self, function: Any, columnwise: NDArray[Any]) -> Delayed:
        """Sum of ``function(block, part)`` over the blocks, lazily; ``part`` is the block's share of an array with one column a voxel."""
        return tree_sum(self._map(function, columnwise))

    def times(self, weights: Floats) -> Delayed:
        """X times the transpose of weights (n_columns, n_voxels), lazily (n_samples, n_columns) float64."""
        return tree_sum(self._map(_times, weights))

    def ensemble(self, dual: Floats, masks: Bools) -> Delayed:
        """Mean and standard deviation over folds of screened coefficients.

        ``w_fc = mask_fc * (X' dual_fc)``; all folds and classes in one product.

        Parameters
        ----------
        dual : ndarray of float64, shape (n_folds, n_classes, n_samples)
        masks : ndarray of bool, shape (n_folds or 1, n_classes or 1, n_voxels)

        Returns
        -------
        Delayed
            ndarray of float64, shape (2, n_classes, n_voxels): mean, standard deviation (ddof 0).
        """
        joined: Delayed = dask.delayed(np.concatenate)(self._map(_Ensemble(dual), masks), axis=-1)
        return joined


def table_limit(block_nbytes: int) -> int:
    """Bytes that products shared between sets may take: as much as a block, but no less than makes products large enough for BLAS."""
    return min(TABLE_NBYTES, max(block_nbytes, _LEAST_TABLE_NBYTES))


def tree_sum(parts: Sequence[Delayed]) -> Delayed:
    """Sum pairwise whatever can be added, so that partial results are freed as soon as their neighbour is there."""
    add = dask.delayed(operator.add, pure=False)
    level = list(parts)
    while len(level) > 1:
        level = [add(*level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]


def _merge(chunks: Sequence[int], most: int) -> tuple[int, ...]:
    """Join neighbouring chunks up to ``most`` columns each."""
    merged = [int(chunks[0])]
    for chunk in chunks[1:]:
        if merged[-1] + chunk <= most:
            merged[-1] += int(chunk)
        else:
            merged.append(int(chunk))
    return tuple(merged)


def _take(x: NDArray[np.floating], wanted: Bools) -> Floats:
    return np.asarray(x[:, wanted], dtype=np.float64)


def _join(parts: Sequence[Floats], rank: Ints) -> Floats:
    return np.ascontiguousarray(np.concatenate(parts, axis=1)[:, rank])


def _times(x: NDArray[np.floating], weights: Floats) -> Floats:
    return np.asarray(np.asarray(x, dtype=np.float64) @ weights.T)


def _task(function: Any) -> Any:
    """Make tasks that call ``function``. On a cluster it is one object for all of them.

    What a function holds would else be sent with each task, and workers keep their tasks until the sweep ends: gigabytes in all.
    """
    held: Any = _Held(function)
    if active_client() is not None:
        held = _at_first(held)
    name = getattr(function, "__name__", type(function).__name__)
    task = dask.delayed(_call, pure=False)
    return lambda *args: task(held, *args, dask_key_name=f"{name}-{uuid4().hex}")


class _Held:
    """A function that Dask is not to look into, nor to name by all that it holds."""

    def __init__(self, function: Any) -> None:
        self.function = function


def _at_first(value: Any) -> Delayed:
    """A value that tasks share. On a cluster it is there before any of them: blocks would else be kept for those that wait for theirs."""
    name = f"shared-{uuid4().hex}"
    with dask.annotate(priority=1):
        return Delayed(name, HighLevelGraph.from_collections(name, {name: value}))


def _call(held: _Held, *args: Any) -> Any:
    return held.function(*args)


class _Unread:
    """A block that is still to be computed, by calling this. Its graph is not Dask's to look into: it is done within one task."""

    def __init__(self, block: da.Array) -> None:
        (self.key,) = flatten(block.__dask_keys__())
        (optimised,) = dask.optimize(block)
        self.graph = dict(optimised.__dask_graph__())

    def __call__(self) -> NDArray[np.floating]:
        """Compute the block on this thread."""
        return np.asarray(dask.get(self.graph, self.key))


def _read(block: _Unread, _behind: Sequence[None]) -> NDArray[np.floating]:
    return block()


def _taken(total: RunningSum) -> None:
    """Nothing: tells that a sum has come so far, without the sum."""


def _add(total: RunningSum, number: int, add: Any, blocks: Sequence[NDArray[np.floating]], part: Any, shared: Sequence[Any]) -> RunningSum:
    return total.add(number, add, blocks, part, *shared)


def squared(total: RunningSum, position: int) -> Floats:
    """One of the Gram matrices (n_samples, n_samples) that are packed in a sum."""
    return unpack(total.values[position])


def _shares(families: Sequence[int]) -> list[list[int]]:
    """Deal sets out to tasks: a family a task, or a few where there are fewer families than cores."""
    distinct = list(dict.fromkeys(families))
    n_parts = -(-n_threads_of_all() // len(distinct))
    shares = [[s for s, f in enumerate(families) if f == family] for family in distinct]
    return [part.tolist() for share in shares for part in np.array_split(share, n_parts) if part.size]


class _Project:
    def __init__(self, weights: Floats) -> None:
        self.weights = weights

    def __call__(self, x: NDArray[np.floating]) -> Floats:
        return np.asarray(np.asarray(x, dtype=np.float64).T @ self.weights)


class _Ensemble:
    def __init__(self, dual: Floats) -> None:
        self.dual = dual

    def __call__(self, x: NDArray[np.floating], masks: Bools) -> Floats:
        n_folds, n_classes, n_samples = self.dual.shape
        weights = self.dual.reshape(-1, n_samples) @ np.asarray(x, dtype=np.float64)
        screened = weights.reshape(n_folds, n_classes, -1) * masks
        return np.stack([screened.mean(axis=0), screened.std(axis=0)])
